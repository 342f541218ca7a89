"""Whether a value is what a parameter's annotation says: the border between gin files and Python.

Before anything is imported, a configuration's literal values are compared with the annotations of
signatures.json; when gin calls a class or function, what references made is compared with the
annotations themselves.
"""

import ast
import collections.abc
import dataclasses
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal

from t5x_lite.ranges import Range

Test = Callable[[Any, Any], bool]  # (value, class) -> whether it may be one

_NUMBERS = {bool: "True or False", int: "an integer", float: "a number", str: "text"}
_LISTS = (
    tuple,
    list,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)
_UNIONS = (typing.Union, types.UnionType)
_DICTS = (dict, collections.abc.Mapping)


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Stands for a value that can't be known yet; `text` shows it."""

    text: str


def fits(value: Any, annotation: Any, test: Test) -> bool:
    """Whether a value may be given for an annotation; `test` decides about classes."""
    if isinstance(value, Unknown):
        return True
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (Any, object, inspect.Parameter.empty) or isinstance(
        annotation, str | typing.TypeVar | typing.ForwardRef
    ):
        return True
    if annotation in (None, type(None)):
        return value is None
    if origin in _UNIONS:
        return any(fits(value, part, test) for part in args)
    if origin is Annotated:
        return fits(value, args[0], test) and all(
            r.holds(value) for r in args[1:] if isinstance(r, Range) and _is_number(value)
        )
    if origin is Literal:
        return any(type(value) is type(known) and value == known for known in args)
    if annotation in _NUMBERS:
        return _is_plain(value, annotation)
    kind = origin or annotation
    if kind in _LISTS:
        return _is_list(value, kind, args, test)
    if kind in _DICTS:
        return _is_dict(value, args, test)
    if kind is collections.abc.Callable:
        return test(value, Callable) and _takes(value, args)
    return test(value, kind)


def _is_plain(value: Any, kind: type) -> bool:
    if kind is float:
        return _is_number(value) and not math.isnan(value)
    return type(value) is kind if kind is not str else isinstance(value, str)


def is_plain_value(value: Any) -> bool:
    """Whether a gin file can hold it as it is."""
    if isinstance(value, list | tuple):
        return all(map(is_plain_value, value))
    if isinstance(value, dict):
        return all(map(is_plain_value, [*value.keys(), *value.values()]))
    return value is None or isinstance(value, bool | int | float | str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any, kind: Any, args: tuple, test: Test) -> bool:
    if not isinstance(value, list | tuple):  # of a class of its own: its elements are its affair
        return not isinstance(value, str | bytes) and test(value, kind)
    if not args:
        return True
    if kind is tuple and args[-1] is not Ellipsis:
        pairs = zip(value, args, strict=False)
        return len(value) == len(args) and all(fits(v, a, test) for v, a in pairs)
    return all(fits(part, args[0], test) for part in value)


def _is_dict(value: Any, args: tuple, test: Test) -> bool:
    if not isinstance(value, collections.abc.Mapping):
        return test(value, dict)
    if not args:
        return True
    return all(fits(k, args[0], test) and fits(v, args[1], test) for k, v in value.items())


def _has(value: Any, name: str) -> bool:
    # What passes its attributes on, as a proxy does, is asked.
    passes_on = hasattr(type(value), "__getattr__")
    missing = object()
    found = inspect.getattr_static(value, name, missing) is not missing
    return found or (passes_on and hasattr(value, name))


def _takes(function: Any, args: tuple) -> bool:
    """Whether a function can be called with as many arguments as its annotation says."""
    if not args or not isinstance(args[0], list) or not callable(function):
        return True
    try:
        inspect.signature(function).bind(*args[0])
    except ValueError:  # of a builtin isn't known
        return True
    except TypeError:
        return False
    return True


def is_instance(value: Any, kind: Any) -> bool:
    """The test of values as they are: an object of a class, or with a protocol's methods."""
    if kind is Callable:
        return callable(value)
    if isinstance(value, type):  # named without brackets
        return kind is type
    if getattr(kind, "_is_protocol", False):
        names = {*vars(kind), *vars(kind).get("__annotations__", {})}
        wanted = [n for n in names if not n.startswith("_") or n == "__call__"]
        if "__call__" in wanted and not callable(value):
            return False
        # Not by hasattr: a property may read a file that isn't there yet.
        return all(_has(value, name) for name in wanted if name != "__call__")
    return not isinstance(kind, type) or isinstance(value, kind)


_PLURALS = {"True or False": "True or False", "an integer": "integers", "a number": "numbers"}


def described(annotation: Any, names: Collection[str] = ()) -> str:
    """What an annotation expects, in words; `names` are those that gin files can call."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        parts = list(dict.fromkeys(described(part, names) for part in args))
        return f"{', '.join(parts[:-1])} or {parts[-1]}" if len(parts) > 1 else parts[0]
    if origin is Annotated:
        return f"{described(args[0], names)} {' and '.join(map(str, args[1:]))}"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if annotation in _NUMBERS:
        return _NUMBERS[annotation]
    if annotation in (None, type(None)):
        return "None"
    kind = origin or annotation
    if kind in _LISTS:
        inner = [_plural(described(a, names)) for a in args if a is not Ellipsis]
        if kind is tuple and args and args[-1] is not Ellipsis:
            return f"a list of {len(args)} ({', '.join(described(a, names) for a in args)})"
        return f"a list of {inner[0]}" if inner else "a list"
    if kind in _DICTS:
        keys, values = (described(a, names) for a in args) if args else ("", "")
        return f"a dict of {_plural(keys)} to {_plural(values)}" if args else "a dict"
    if kind is collections.abc.Callable:
        known = args and isinstance(args[0], list)
        count = f" of {len(args[0])} argument{'s' * (len(args[0]) > 1)}" if known else ""
        return f"a function{count}"
    if kind is os.PathLike:
        return "a path"
    name = getattr(kind, "__name__", "anything")
    if name in names:
        return f"@{name}()"
    article = "an" if name[0] in "AEIOU" else "a"
    return f"{article} {name}, such as {_EXAMPLES.get(name, '@NAME()')}"


_EXAMPLES = {
    "Method": "@Greedy()", "Objective": "@SpanCorruption()", "Optimizer": "@AdamW()",
    "Service": "@WandB()", "Source": "@open_files()", "Step": "@Repair()",
    "Vocabulary": "@SentencePieceVocabulary()",
}  # fmt: skip


def _plural(words: str) -> str:
    return " or ".join(_PLURALS.get(part, part) for part in words.split(" or "))


def advice(value: Any, annotation: Any) -> str:
    """What to write instead, where that is clear."""
    if isinstance(value, str):
        if value.lower() in _WORDS and fits(_WORDS[value.lower()], annotation, lambda *_: False):
            return f"; write {_WORDS[value.lower()]} without quotes"
        for kind in (int, float):
            try:
                number = kind(value)
            except ValueError:
                continue
            if fits(number, annotation, lambda *_: False):
                return f"; write {value.strip()} without quotes"
    if type(value) is float and value.is_integer() and fits(int(value), annotation, is_instance):
        return f"; write {int(value)}"
    if (
        _is_number(value)
        and not isinstance(value, bool)
        and fits(str(value), annotation, is_instance)
    ):
        return f"; write '{value}' in quotes"
    return ""


_WORDS = {"none": None, "null": None, "true": True, "false": False}


def as_tuple(value: Any, annotation: Any) -> Any:
    """A gin file's list as a tuple, where one is expected."""
    parts = (
        typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else [annotation]
    )
    kinds = [typing.get_origin(part) or part for part in parts]
    return tuple(value) if type(value) is list and tuple in kinds and list not in kinds else value


# ------------------------------------------------------------------- annotations without imports


class _Names(dict):
    """What an annotation's text may hold; other names are classes that aren't imported."""

    def __missing__(self, name: str) -> Any:
        self[name] = type(name, (), {"__class_getitem__": classmethod(lambda cls, _: cls)})
        return self[name]


_KNOWN = {
    "Range": Range, "inf": math.inf, "Annotated": Annotated, "Any": Any, "Literal": Literal,
    "Optional": typing.Optional, "Union": typing.Union, "Callable": collections.abc.Callable,
    "PathLike": os.PathLike, "int": int, "float": float, "str": str, "bool": bool, "dict": dict,
    "list": list, "tuple": tuple, "type": type, "object": object, "None": None,
    **{kind.__name__: kind for kind in (*_LISTS[2:], _DICTS[1])},
}  # fmt: skip
_NAMES = _Names(_KNOWN)


def parsed(text: str) -> Any:
    """An annotation from signatures.json, with stand-ins for the package's own classes."""
    try:
        return _made(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, NotImplementedError):  # a user's, of a kind unknown here
        return Any


def _made(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value):
            return _made(ast.parse(value, mode="eval").body) if isinstance(value, str) else value
        case ast.Name(name) | ast.Attribute(attr=name):
            return _NAMES[name]
        case ast.BinOp(left, ast.BitOr(), right):
            return typing.Union[_made(left), _made(right)]  # noqa: UP007
        case ast.Subscript(ast.Name("Literal"), values):
            return Literal[ast.literal_eval(values)]
        case ast.Subscript(kind, inner):
            return _made(kind)[_made(inner)]
        case ast.Tuple(parts):
            return tuple(map(_made, parts))
        case ast.List(parts):
            return list(map(_made, parts))
        case ast.Call(ast.Name("Range"), arguments):
            return Range(*map(_made, arguments))
        case ast.UnaryOp(ast.USub(), value):
            return -_made(value)
    raise NotImplementedError(ast.dump(node))
