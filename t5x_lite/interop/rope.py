"""The base and the scaling of rotary embeddings, as config.json spells them."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.interop.fields import Fields
from t5x_lite.models import TransformerConfig

_LLAMA3 = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
_KINDS = {"default": (), "linear": ("factor",), "llama3": _LLAMA3}
Rope = tuple[float, tuple | None]  # rope_theta and rope_scaling of TransformerConfig


def read(fields: Fields, theta: float = 10_000.0) -> Rope:
    """Fields in files of transformers 4, one object in 5's. ``theta``: where none is named."""
    found: Rope = fields.number("rope_theta", theta, float), None
    for name in ("rope_scaling", "rope_parameters"):
        found = parsed(fields.get(name, {}), found, f"{fields.where}: {name}")
    return found


def parsed(rope: Any, found: Rope, what: str) -> Rope:
    """``found``, changed by what an object says; ``what`` it is, for messages."""
    if not isinstance(rope, Mapping):
        raise UserError(f"{what} is {rope!r}, expected an object.")
    theta, scaling = found
    rope = dict(rope)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    theta = float(rope.pop("rope_theta", theta))
    wanted = _KINDS.get(kind if isinstance(kind, str) else "")
    if wanted is None or set(rope) != set(wanted):
        held = ", ".join(sorted(rope)) or "nothing"
        raise UserError(
            f"{what} of type {kind!r} with {held} isn't supported; expected linear with factor, "
            f"or llama3 with {', '.join(_LLAMA3)}."
        )
    return theta, (kind, *(rope[key] for key in wanted)) if wanted else scaling


def written(config: TransformerConfig) -> dict[str, Any]:
    """The fields, as transformers 4 spells them; 5 reads them, too."""
    scaling = None
    if config.rope_scaling is not None:
        kind, *numbers = config.rope_scaling
        scaling = {"rope_type": kind, **dict(zip(_KINDS[kind], numbers, strict=True))}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}
