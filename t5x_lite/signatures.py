"""The parameters of all configurables of the package, kept beside it: signatures.json.

The file says what gin files can bind without importing anything; a test holds it equal to the
code. After a change of a signature: python -m t5x_lite.signatures
"""

import functools
import inspect
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import gin

FILE = Path(__file__).with_name("signatures.json")


class Parameter(NamedTuple):
    """annotation: as it is written; default: its repr, None if a value is needed."""

    annotation: str
    default: str | None

    @property
    def needed(self) -> bool:
        return self.default in (None, "REQUIRED")  # gin.REQUIRED, of a user's own function


Signature = dict[str, Parameter] | None  # None: any name will do


def signature_of(
    target: Callable, hidden: Collection[str] = (), shown: Collection[str] | None = None
) -> Signature:
    """The parameters of a class or function that a gin file may bind."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # builtins
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    found = {}
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL or p.name in hidden or (shown and p.name not in shown):
            continue
        empty = p.default is p.empty
        found[p.name] = Parameter(_text(p.annotation), None if empty else _shown(p.default))
    return found


def _text(annotation: object) -> str:
    if annotation is inspect.Parameter.empty:
        return "Any"
    if isinstance(annotation, str):
        return annotation
    # Without modules, where classes may come from another one with the next version.
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", inspect.formatannotation(annotation))


def _shown(default: object) -> str:
    if default is gin.REQUIRED:
        return "REQUIRED"
    factory = type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS"
    return "..." if factory or " at 0x" in repr(default) else repr(default)


@functools.cache
def stored() -> dict[str, Signature]:
    """What the file says, by the configurable's name."""
    names = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return {
        name: None if rows is None else {
            key: Parameter(row["type"], row.get("default")) for key, row in rows.items()
        }
        for name, rows in names.items()
    }  # fmt: skip


def current() -> dict[str, Signature]:
    """The same of the code (this imports all of it)."""
    from t5x_lite import registry

    names = (name for names in registry.TABLE.values() for name in names.split())
    entries = (registry._ENTRIES[f"{registry.MODULE}.{name}"] for name in names)
    return {
        e.name: signature_of(
            e.target, registry.HIDDEN.get(e.name, ()), registry.SHOWN.get(e.name)
        )
        for e in entries
    }  # fmt: skip


def as_text(signatures: dict[str, Signature]) -> str:
    """The file's text: one line a parameter, so that a change is read in a diff."""
    blocks = []
    for name, parameters in sorted(signatures.items()):
        rows = []
        for key, parameter in (parameters or {}).items():
            row = {"type": parameter.annotation}
            row |= {} if parameter.default is None else {"default": parameter.default}
            rows.append(f"  {json.dumps(key)}: {json.dumps(row)}")
        body = "null" if parameters is None else "{\n" + ",\n".join(rows) + "\n }" if rows else "{}"
        blocks.append(f" {json.dumps(name)}: {body}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(as_text(current()), encoding="utf-8")
