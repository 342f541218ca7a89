"""The statements of a gin config as data, and the checks of every name in them.

gin's own parser reads the text; references and macros stay placeholders until all names are known
to be right. The checks look at gin's registry rather than at its error texts, which may change.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator

import gin
from gin import config_parser

from t5x_lite import registry, t5x_names
from t5x_lite.errors import UserError
from t5x_lite.signatures import Signature, signature_of

MACRO = "gin.macro"


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/name` or, evaluated, `@scope/name()`."""

    name: str
    evaluate: bool

    @property
    def selector(self) -> str:
        return self.name.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME`: a macro or one of gin's constants."""

    name: str


class Placeholders(config_parser.ParserDelegate):
    """What gin's parser shall put for `@` and `%`."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return Reference(scoped_configurable_name, evaluate)

    def macro(self, macro_name):
        return Macro(macro_name)


@dataclasses.dataclass(frozen=True, eq=False)
class Binding:
    """`scope/selector.name = value`, or for a macro `name = value`, given at `where`."""

    scope: str
    selector: str  # complete, or MACRO
    name: str  # the parameter; of a macro its name with its scopes
    value: object
    where: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.scope, self.selector, self.name

    @property
    def gin_key(self) -> tuple[str, str, str]:
        return (self.name, MACRO, "value") if self.selector == MACRO else self.key

    @property
    def label(self) -> str:
        """As a user writes it."""
        if self.selector == MACRO:
            return self.name
        short = gin.config._REGISTRY.minimal_selector(self.selector)
        return f"{self.scope}/{short}.{self.name}" if self.scope else f"{short}.{self.name}"


# ------------------------------------------------------------------- one name, when it is read


def find_configurable(selector: str, where: str, parameter: str = ""):
    """gin's entry for a name such as "train" or "t5x_lite.train", or a UserError.

    parameter: of it that is meant, for the message.
    """
    registry = gin.config._REGISTRY
    matches = registry.matching_selectors(selector)
    if len(matches) == 1:
        return registry[matches[0]]
    if matches:
        raise UserError(f"'{selector}' ({where}) is ambiguous: {', '.join(sorted(matches))}")
    near = nearest(selector.rpartition(".")[2], [c.name for c in _configurables()])
    hint = t5x_names.hint(f"{selector}.{parameter}" if parameter else selector)
    raise UserError(f"unknown configurable '{selector}' ({where}).{hint or near}")


def check_parameter(configurable, name: str, where: str) -> None:
    """Raises a UserError if the configurable has no parameter of this name."""
    names = parameters(configurable)
    if names is not None and name not in names:
        hint = nearest(name, names.keys()) or f" It has: {', '.join(names) or 'none'}."
        raise UserError(f"'{configurable.name}' has no parameter '{name}' ({where}).{hint}")


def needed_parameters(configurable) -> list[str]:
    """The parameters without a default."""
    return [name for name, p in (parameters(configurable) or {}).items() if p.needed]


def parameters(configurable) -> Signature:
    """The parameters that gin may bind, or None if any name will do, or isn't known."""
    found = registry.entry(configurable)
    if found is not None:
        return found.parameters
    hidden, shown = configurable.denylist or (), configurable.allowlist
    return signature_of(configurable.wrapped, hidden, shown)


def _configurables() -> list:
    return [c for _, c in gin.config._REGISTRY.items() if c.module != "gin"]


# ----------------------------------------------------------------- all names, when all is read


def unused_macros(bindings: list[Binding], only_of_t5x: bool = False) -> list[str]:
    """Macros that no statement refers to are misspelt, or lack their "name." in front.

    only_of_t5x: name those alone that T5X has; the others may be used by a file that is missing.
    """
    used = {macro.name for b in bindings for macro in leaves(b.value, Macro)}
    used = {name for name in used if not gin.config._CONSTANTS.matching_selectors(name)}
    found = []
    for b in bindings:
        hint = t5x_names.hint(b.name)
        if b.selector == MACRO and b.name not in used and (hint or not only_of_t5x):
            owners = [c.name for c in _configurables()
                      if b.name in (parameters(c) or ())]  # fmt: skip
            near = nearest(b.name, used) or _quoted(f"{owner}.{b.name}" for owner in owners[:3])
            found.append(f"nothing in the config uses %{b.name} ({b.where}).{hint or near}")
    return found


def override_macros(final: dict[tuple, Binding], from_files: list[Binding]) -> None:
    """Lets an override of the only parameter that a macro is for be one of the macro.

    So `--gin.train.total_steps=9` and `--gin.TOTAL_STEPS=9` do the same, and the config that a run
    writes can still be changed by both.
    """
    before = {b.key: b for b in from_files}
    for key, binding in list(final.items()):
        earlier = before.get(key)
        if earlier is None or earlier is binding or not isinstance(earlier.value, Macro):
            continue
        macro = ("", MACRO, earlier.value.name)
        others = {m.name for b in final.values() for m in leaves(b.value, Macro)}
        plain = not [*leaves(binding.value, Macro), *leaves(binding.value, Reference)]
        if (
            plain
            and macro in final
            and final[macro] is before.get(macro)
            and macro[2] not in others
        ):
            final[macro] = dataclasses.replace(
                final[macro], value=binding.value, where=binding.where
            )
            final[key] = earlier


def unused_scopes(bindings: list[Binding], declared: Iterable[str]) -> list[str]:
    """A scope is entered by `@scope/name`, by a macro (gin evaluates it in its own), or by code."""
    known, found = _entered(bindings, declared), []
    for b in bindings:
        for scope in b.scope.split("/") if b.scope else ():
            if scope not in known:
                hint = nearest(scope, known) or " A reference enters it: @scope/name."
                found.append(f"nothing in the config uses the scope '{scope}' ({b.where}).{hint}")
    return found


def _entered(bindings: Iterable[Binding], declared: Iterable[str]) -> set[str]:
    known = set(declared)
    for b in bindings:
        known.update(b.name.split("/") if b.selector == MACRO else ())
        for reference in leaves(b.value, Reference):
            known.update(reference.name.split("/")[:-1])
    return known


def drop_unused_scopes(final: dict[tuple, Binding], declared: Iterable[str]) -> None:
    """Leaves out what is of a scope whose every use was overridden, as by another task's file."""
    while True:
        known = _entered(final.values(), declared)
        unused = [k for k, b in final.items() if b.scope and not set(b.scope.split("/")) <= known]
        if not unused:
            return
        for key in unused:
            del final[key]
        drop_unreferenced_macros(final)


def drop_unreferenced_macros(final: dict[tuple, Binding]) -> None:
    """Leaves out macros whose every use was overridden, so that the config can be read back."""
    queue = [b for b in final.values() if b.selector != MACRO]
    kept = {b.key for b in queue}
    while queue:
        for macro in leaves(queue.pop().value, Macro):
            key = ("", MACRO, macro.name)
            if key in final and key not in kept:
                kept.add(key)
                queue.append(final[key])
    for key in final.keys() - kept:
        del final[key]


def not_all_given(
    final: dict[tuple, Binding], bindings: list[Binding], root: str | None = None
) -> list[str]:
    """One line for all: undefined macros, %REQUIRED, and `@name()` without its arguments.

    bindings: all that were read, to tell where a later %REQUIRED has undone a value.
    root: ask only for what this configurable, or one "name.parameter", leads to.
    """
    macros = [b.name for b in final.values() if b.selector == MACRO]
    scopes_of: dict[tuple[str, str], list[str]] = {}  # (selector, parameter) -> scopes
    for b in final.values():
        scopes_of.setdefault((b.selector, b.name), []).append(b.scope)
    missing: dict[str, str] = {}
    for b in _reachable(final, root) if root else final.values():
        for macro in leaves(b.value, Macro):
            constants = gin.config._CONSTANTS.matching_selectors(macro.name)
            if "gin.REQUIRED" in constants:
                undone = [o.where for o in bindings if o.key == b.key and o.value != b.value]
                note = f", which overrides {undone[-1]}" if undone else ""
                missing.setdefault(b.label, b.where + note)
            elif not constants and macro.name not in macros:
                missing.setdefault(macro.name, f"{b.where}{nearest(macro.name, macros)}")
        for reference in leaves(b.value, Reference):
            configurable = find_configurable(reference.selector, b.where)
            for parameter in needed_parameters(configurable) if reference.evaluate else ():
                scopes = scopes_of.get((configurable.selector, parameter), [])
                if not any(applies(scope, reference) for scope in scopes):
                    missing.setdefault(f"{reference.name}.{parameter}", b.where)
    return [str(not_given(f"{n} ({where})" for n, where in missing.items()))] if missing else []


def _reachable(final: dict[tuple, Binding], root: str) -> list[Binding]:
    """The bindings of `root` and, through references and macros, all that its values use."""
    name, _, parameter = root.partition(".")
    selectors = gin.config._REGISTRY.matching_selectors(name)
    queue = [b for b in final.values() if b.selector in selectors and parameter in ("", b.name)]
    found = {b.key for b in queue}
    while queue:
        value = queue.pop().value
        used = [final.get(("", MACRO, macro.name)) for macro in leaves(value, Macro)]
        for reference in leaves(value, Reference):
            selector = find_configurable(reference.selector, "a reference").selector
            used += [b for b in final.values()
                     if b.selector == selector and applies(b.scope, reference)]  # fmt: skip
        new = {b.key: b for b in used if b and b.key not in found}
        found.update(new)
        queue += new.values()
    return [b for b in final.values() if b.key in found]


def applies(scope: str, reference: Reference) -> bool:
    """Whether a call by `reference` takes bindings in `scope`."""
    *scopes, _ = reference.name.split("/")
    # Without a scope of its own a reference runs in whichever its caller is in.
    return not scopes or scopes[: len(_split(scope))] == _split(scope)


def not_given(names: Iterable[str]) -> UserError:
    """The error for values that are needed, all in one line."""
    return UserError(
        f"not given: {', '.join(names)}; give each in a gin file or as --gin.NAME=value"
    )


def is_used(binding: Binding, operative: dict[tuple[str, str], dict]) -> bool:
    """Whether any call so far took the binding's value (gin's operative config)."""
    if binding.selector == MACRO:
        return (binding.name, MACRO) in operative
    scope = _split(binding.scope)
    return any(
        selector == binding.selector and binding.name in args and _split(at)[: len(scope)] == scope
        for (at, selector), args in operative.items()
    )


# ------------------------------------------------------------------------------- small parts


def leaves(value, kind: type) -> Iterator:
    """The placeholders of one kind anywhere in a value."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, dict):
        yield from leaves([*value.keys(), *value.values()], kind)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part, kind)


def to_gin(value):
    """The value with gin's own references in place of the placeholders."""
    make = gin.config.ParserDelegate()
    match value:
        case Reference():
            return make.configurable_reference(value.name, value.evaluate)
        case Macro():
            return make.macro(value.name)
        case dict():
            return {to_gin(k): to_gin(v) for k, v in value.items()}
        case list() | tuple():
            return type(value)(to_gin(part) for part in value)
    return value


def nearest(name: str, candidates: Iterable[str] | dict[str, str]) -> str:
    """Like errors.did_you_mean, but blind to case; of a dict, the values of the nearest keys."""
    shown = candidates if isinstance(candidates, dict) else {c: c for c in candidates}
    lower = {key.lower(): text for key, text in shown.items()}
    limit = 1 if name.lower() in lower else 3
    near = difflib.get_close_matches(name.lower(), list(lower), n=limit, cutoff=0.6)
    return _quoted(dict.fromkeys(lower[n] for n in near))


def _quoted(names: Iterable[str]) -> str:
    text = " or ".join(f"'{name}'" for name in names)
    return f" Did you mean {text}?" if text else ""


def _split(scope: str) -> list[str]:
    return scope.split("/") if scope else []
