"""The base and the scaling of rotary embeddings, as config.json spells them."""

from collections.abc import Mapping
from math import inf
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.interop.fields import Fields
from t5x_lite.models.config import TransformerConfig

_LLAMA3 = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
_KINDS = {"default": (), "linear": ("factor",), "llama3": _LLAMA3}
Rope = tuple[float, tuple | None]  # rope_theta and rope_scaling of TransformerConfig


def read(fields: Fields) -> Rope:
    """Fields in files of transformers 4, one object in 5's."""
    found: Rope = fields.number("rope_theta", kind=float), None
    one_spelling(fields)
    for name in ("rope_scaling", "rope_parameters"):
        found = parsed(fields.get(name) or {}, found, f"{fields.where}: {name}")
    return found


def one_spelling(fields: Fields) -> None:
    """UserError for a file with both objects: transformers leaves one of them out."""
    old, new = fields.get("rope_scaling"), fields.get("rope_parameters")
    if old and new and old != new:
        raise UserError(
            f"{fields.where}: rope_scaling = {old!r:.80} and rope_parameters = {new!r:.80} are one "
            f"thing in two spellings: expected one of them."
        )


def parsed(rope: Any, found: Rope, what: str) -> Rope:
    """``found``, changed by what an object says; ``what`` it is, for messages."""
    if not isinstance(rope, Mapping):
        raise UserError(f"{what} is {rope!r}, expected an object.")
    theta, scaling = found
    rope = dict(rope)
    old = rope.pop("type", None)
    kind = rope.pop("rope_type", old or "default")
    if old is not None and old != kind:
        raise UserError(f"{what} has type {old!r} and rope_type {kind!r}: expected one of them.")
    theta = rope.pop("rope_theta", theta)
    for name, value in dict(rope_theta=theta, **rope).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
            raise UserError(f"{what}: {name} is {value!r}, expected a number above 0.")
    wanted = _KINDS.get(kind if isinstance(kind, str) else "")
    if wanted is None or set(rope) != set(wanted):
        held = ", ".join(sorted(rope)) or "nothing"
        raise UserError(
            f"{what} of type {kind!r} with {held} isn't supported; expected linear with factor, "
            f"or llama3 with {', '.join(_LLAMA3)}."
        )
    if kind == "llama3" and rope["low_freq_factor"] > rope["high_freq_factor"]:
        raise UserError(
            f"{what}: low_freq_factor {rope['low_freq_factor']} is above high_freq_factor "
            f"{rope['high_freq_factor']}, expected the lower of the two."
        )
    return float(theta), (kind, *(rope[key] for key in wanted)) if wanted else scaling


def written(config: TransformerConfig) -> dict[str, Any]:
    """The fields, as transformers 4 spells them; 5 reads them, too."""
    scaling = None
    if config.rope_scaling is not None:
        kind, *numbers = config.rope_scaling
        scaling = {"rope_type": kind, **dict(zip(_KINDS[kind], numbers, strict=True))}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}
