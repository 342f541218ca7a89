"""Fields of records as text: what is text, what isn't, and templates that say what to write then.

`{name}` in a template is the field of that name, "a/b" or `a[b]` a nested one. A text or a finite
number is written; null, a list, an object, NaN or bytes that are not UTF-8 raise UserError, unless
the template says what to write:

  {stars|default(unknown)}   this text where the field is null, NaN or isn't there
  {words|join( )}            a list, with this text between its items
  {words|join(, )|default()} both

A format ({price:.2f}), or !r, may be at the end, as for Python's str.format; {{ and }} are braces.
"""

import datetime
import decimal
import functools
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.errors import UserError, did_you_mean

_WORDS = (str, bool, np.bool_, int, np.integer, datetime.date, datetime.time)
_REAL = (float, np.floating, decimal.Decimal)


def as_text(value: Any, field: str) -> str:
    """A text, truth value or finite number as text; UserError, with the field's name, if none."""
    if type(value) is str:
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as e:
            raise UserError(f"field {field!r} is bytes that are not UTF-8 ({e.reason})") from e
    if isinstance(value, _WORDS):
        return str(value)
    if isinstance(value, _REAL) and math.isfinite(value):
        return format(value, "")
    advice = _advice(value, field)
    raise UserError(f"field {field!r} is {_kind(value)}, expected text or a number; {advice}")


def string_of(record: Mapping[str, Any], key: str) -> str:
    """The text under `key`; UserError if it is anything else."""
    value = record[key]
    if not isinstance(value, str):
        raise UserError(f"field {key!r} is {_kind(value)}, expected text")
    return value


def list_of(value: Any, field: str) -> list[str]:
    """The texts of a list; a text is one. UserError if it is neither."""
    if isinstance(value, str | bytes):
        return [as_text(value, field)]
    if not isinstance(value, Sequence | np.ndarray):
        raise UserError(f"field {field!r} is {_kind(value)}, expected a list of texts")
    return [as_text(item, f"{field}[{i}]") for i, item in enumerate(value)]


def number_of(value: Any, field: str) -> float:
    """A finite number, also one that is written as text; UserError if it is none."""
    text = as_text(value, field)
    try:
        number = float(text)
    except ValueError as e:
        raise UserError(f"field {field!r} is {value!r}, expected a number") from e
    if not math.isfinite(number) or isinstance(value, bool | np.bool_):
        raise UserError(f"field {field!r} is {value!r}, expected a finite number")
    return number


def integer_of(value: Any, field: str) -> int:
    """As `number_of`, of a whole number."""
    number = number_of(value, field)
    if number != int(number):
        raise UserError(f"field {field!r} is {value!r}, expected a whole number")
    return int(number)


def value_at(record: Mapping[str, Any], path: str) -> Any:
    """The value of a field, "a/b" of a nested one; KeyError if it isn't there."""
    value: Any = record
    for part in (path,) if path in record else path.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            raise KeyError(path)
        value = value[part]
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        names = ", ".join(map(repr, list(value)[:6])) or "none"
        return f"an object (its fields: {names})"
    if isinstance(value, Sequence | np.ndarray | set | frozenset) and not isinstance(value, str):
        return f"a list of {len(value)}"
    if isinstance(value, _REAL):
        return "NaN" if math.isnan(value) else f"the number {value}"
    return f"{type(value).__name__} {value!r:.40}"


def _advice(value: Any, field: str) -> str:
    if value is None or _is_nan(value):
        return f"leave such records out, or write {{{field}|default(TEXT)}} in a template"
    if isinstance(value, Mapping):
        return f"name one of these: {{{field}[NAME]}} in a template"
    if isinstance(value, Sequence | np.ndarray):
        return f"write {{{field}|join( )}}, or {{{field}[0]}} for its first, in a template"
    return "correct the record"


def _is_nan(value: Any) -> bool:
    return isinstance(value, _REAL) and math.isnan(value)


# ---- templates

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_FIELD = re.compile(
    r"(?P<name>[^|!:]+)(?P<filters>(\|[a-z]+\([^()]*\))*)(!(?P<conversion>[rsa]))?(:(?P<format>.*))?",
    re.DOTALL,
)
_FILTER = re.compile(r"\|([a-z]+)\(([^()]*)\)")
_FILTERS = ("default", "join")


def fill(template: str, record: Mapping[str, Any]) -> str:
    """The template with the record's fields; UserError as above, KeyError for one not there."""
    return "".join(p if isinstance(p, str) else p(record) for p in _parts(template))


@functools.lru_cache(maxsize=1024)
def _parts(template: str) -> tuple[str | Callable[[Mapping[str, Any]], str], ...]:
    parts: list[str | Callable[[Mapping[str, Any]], str]] = []
    for piece in _PIECE.finditer(template):
        text = piece[0]
        if piece[1] is not None:
            parts.append(_field(template, piece[1]))
        elif text in "{}":
            raise UserError(f"template {template!r} has a single {text!r}; write {text * 2!r}")
        else:
            parts.append(text[0] if text in ("{{", "}}") else text)
    return tuple(parts)


def _field(template: str, content: str) -> Callable[[Mapping[str, Any]], str]:
    found = _FIELD.fullmatch(content)
    filters = dict(_FILTER.findall(found["filters"])) if found else {}
    if found is None or not set(filters) <= set(_FILTERS):
        unknown = next((name for name in filters if name not in _FILTERS), "")
        raise UserError(
            f"template {template!r} has {{{content}}}; expected {{NAME}}, "
            "{NAME|default(TEXT)} or {NAME|join(TEXT)}" + did_you_mean(unknown, _FILTERS)
        )
    name, conversion, spec = found["name"], found["conversion"], found["format"]

    def write(record: Mapping[str, Any]) -> str:
        try:
            value = _look_up(name, record)
        except (KeyError, IndexError) as e:
            if "default" not in filters:
                if isinstance(e, KeyError):
                    raise
                raise UserError(
                    f"field {name!r} isn't there: its list is shorter; leave such records out, or "
                    f"write {{{name}|default(TEXT)}} in a template"
                ) from e
            value = None
        if conversion in ("r", "a"):  # which says what to write of anything
            return format(repr(value) if conversion == "r" else ascii(value), spec or "")
        if (value is None or _is_nan(value)) and "default" in filters:
            return filters["default"]
        if "join" in filters:
            value = filters["join"].join(list_of(value, name))
        text = as_text(value, name)
        if not spec:
            return text
        try:
            return format(text if isinstance(value, str | bytes) or conversion else value, spec)
        except ValueError as e:
            raise UserError(f"field {name!r} is {value!r:.40}, and the format {spec!r}: {e}") from e

    return write


def _look_up(name: str, record: Mapping[str, Any]) -> Any:
    if name in record:
        return record[name]
    if "/" in name:
        return value_at(record, name)
    if name[0].isdigit():  # to Python, the number of an argument
        raise KeyError(name)
    try:
        return string.Formatter().get_field(name, (), record)[0]
    except (TypeError, AttributeError, ValueError) as e:  # of a value that has no such part
        raise KeyError(name) from e
