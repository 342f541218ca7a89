"""What is wrong with the values of a config, before anything is imported or called."""

from typing import Any

import gin

from t5x_lite import config_checks as checks
from t5x_lite import registry, value_checks
from t5x_lite.config_checks import MACRO, Binding, Macro, Reference
from t5x_lite.value_checks import Unknown

Final = dict[tuple, Binding]


def places(final: Final) -> dict[tuple[str, str, str], str]:
    """Where each parameter's value stands, the macro's place included."""
    found = {}
    for b in final.values():
        if b.selector != MACRO:
            macros = [m for m in checks.leaves(b.value, Macro) if ("", MACRO, m.name) in final]
            wheres = [f"{m.name}, {final['', MACRO, m.name].where}" for m in macros]
            found[b.key] = "; ".join(wheres) if wheres else b.where
    return found


def wrong_values(final: Final) -> list[str]:
    """A line for each value that its parameter's annotation doesn't allow; a macro's just once."""
    found: dict[tuple[str, str], str] = {}
    for b in final.values():
        if b.selector == MACRO:
            continue
        known = checks.parameters(gin.config._REGISTRY[b.selector]) or {}
        if b.name not in known:
            continue
        annotation = value_checks.parsed(known[b.name].annotation)
        value = _resolved(b.value, final)
        if value_checks.fits(value, annotation, _may_be):
            continue
        label, where = b.label, b.where
        if isinstance(b.value, Macro):
            label, where = f"{b.value.name} ({b.label})", final["", MACRO, b.value.name].where
        key = (b.value.name if isinstance(b.value, Macro) else b.label, str(value))
        found.setdefault(key, _line(label, value, annotation, where))
    return list(found.values())


def _line(label: str, value: Any, annotation: Any, where: str) -> str:
    if isinstance(value, Reference):
        shown = f"@{value.name}, without brackets; write @{value.name}()"
        return f"{label} is {shown} ({where})"
    expected = value_checks.described(annotation, registry.NAMES)
    shown, more = _shown(value), value_checks.advice(value, annotation)
    if isinstance(value, str) and _is_name(value):
        more = f"; write @{value.removesuffix('()')}()"
    return f"{label} is {shown}; expected {expected}{more} ({where})"


def _is_name(text: str) -> bool:
    name = text.removesuffix("()").rpartition("/")[2]
    return bool(gin.config._REGISTRY.matching_selectors(name))


def _shown(value: Any) -> str:
    match value:
        case Reference():
            return f"@{value.name}"
        case Unknown():
            return value.text
        case dict():
            return "{" + ", ".join(f"{_shown(k)}: {_shown(v)}" for k, v in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value!r:.80}"


def _resolved(value: Any, final: Final) -> Any:
    """The value with its macros' values in their place."""
    match value:
        case Macro():
            binding = final.get(("", MACRO, value.name))
            given = binding is not None
            return _resolved(binding.value, final) if given else Unknown(f"%{value.name}")
        case Reference() if value.evaluate:  # what it returns is seen when it is called
            return Unknown(f"@{value.name}()")
        case dict():
            return {_resolved(k, final): _resolved(v, final) for k, v in value.items()}
        case list() | tuple():
            return type(value)(_resolved(part, final) for part in value)
    return value


def _may_be(value: Any, kind: Any) -> bool:
    """Whether a value of a gin file may be of a class: a name without brackets is a function."""
    return isinstance(value, Reference) and kind in (value_checks.Callable, type)


# -------------------------------------------------------------------------------------- cycles


def cycles(final: Final) -> list[str]:
    """A line for the first macros, or references, that need each other."""
    done: set[tuple] = set()
    for start in final.values():
        if ring := _ring(start, final, [], done):
            *_, last = ring
            named = [f"{_name(b)} ({b.where})" for b in ring[:-1]]
            return [f"{' needs '.join(named)} needs {_name(last)}: give one of them a value"]
    return []


def _ring(b: Binding, final: Final, path: list[Binding], done: set[tuple]) -> list[Binding] | None:
    if b in path:
        return [*path[path.index(b) :], b]
    if b.key in done:
        return None
    for needed in _needs(b, final):
        if ring := _ring(needed, final, [*path, b], done):
            return ring
    done.add(b.key)
    return None


def _needs(b: Binding, final: Final) -> list[Binding]:
    found = [final.get(("", MACRO, macro.name)) for macro in checks.leaves(b.value, Macro)]
    for reference in checks.leaves(b.value, Reference):
        if reference.evaluate:
            found += _arguments(reference, final)
    return [binding for binding in found if binding is not None]


def _arguments(reference: Reference, final: Final) -> list[Binding]:
    """The bindings that a call takes for certain: of each parameter the one of the inmost scope."""
    *scopes, _ = reference.name.split("/")
    selector = checks.find_configurable(reference.selector, "a reference").selector
    best: dict[str, Binding] = {}
    for b in final.values():
        if b.selector != selector or not checks.applies(b.scope, reference):
            continue
        if b.scope and not scopes:  # which scope the caller is in isn't known here
            return []
        if b.name not in best or len(b.scope) > len(best[b.name].scope):
            best[b.name] = b
    return list(best.values())


def _name(b: Binding) -> str:
    return f"%{b.name}" if b.selector == MACRO else b.label
