"""Which parameters are trained, and at which share of the learning rate.

The others get no gradient and no optimizer state: a step differentiates by the trained part alone.
"""

import dataclasses
import re
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
import optax

from t5x_lite.errors import UserError
from t5x_lite.models.adapters import LORA, is_adapter
from t5x_lite.models.model import Model
from t5x_lite.training.optimizers import parameter_names


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The arguments of `train` of these names.

    Attributes:
      trainable: regular expression, searched for in the names of parameters: only those with a
        match are trained. Of a model with adapters, these and the adapters; None: its adapters, or
        of one without all.
      frozen: of those, the ones with a match for it aren't.
      layer_decay: a parameter's rate is multiplied by it for each layer above it.
    """

    trainable: str | None = None
    frozen: str | None = None
    layer_decay: float = 1.0

    def __post_init__(self):
        if not 0.0 < self.layer_decay <= 1.0:
            raise UserError(
                f"train.layer_decay = {self.layer_decay}: expected above 0 and at most 1, such as "
                f"0.9; 1 is off."
            )

    def names(self, abstract_params: Any) -> frozenset[str]:
        """Those of what is trained; UserError if a pattern is wrong or nothing is left."""
        every = parameter_names(abstract_params)
        adapted = any(is_adapter(name) for name in every)
        wanted = set(every) if self.trainable is None and not adapted else set()
        if self.trainable is not None:
            wanted = _matching("trainable", self.trainable, every)
        wanted |= {name for name in every if is_adapter(name)}
        if self.frozen is not None:
            wanted -= _matching("frozen", self.frozen, every)
        if not wanted:
            raise UserError(
                f"train.trainable = {self.trainable!r} and train.frozen = {self.frozen!r} leave "
                f"nothing to train."
            )
        return frozenset(wanted)

    def transform(
        self, optimizer: Any, model: Model
    ) -> tuple[optax.GradientTransformation, frozenset[str]]:
        """The optimizer for the trained part; and its parameters' names."""
        params, axes = model.abstract_params(), model.logical_axes()
        names = self.names(params)
        built = optimizer.build(part(params, names), part(axes, names))
        if self.layer_decay == 1.0:
            return built, names
        factors = part(layer_factors(model, self.layer_decay), names)
        scale = optax.stateless(
            lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors)
        )
        return optax.chain(built, scale), names


def _matching(field: str, pattern: str, names: list[str]) -> set[str]:
    try:
        found = {name for name in names if re.search(pattern, name)}
    except re.error as error:
        raise UserError(f"train.{field} = {pattern!r} is no regular expression: {error}.") from None
    if not found:
        some = ", ".join(names[:: max(1, len(names) // 3)][:3])
        raise UserError(f"train.{field} = {pattern!r} matches no parameter; there are {some}, ...")
    return found


# ------------------------------------------------------------------------------- parts of a tree


def part(tree: Any, names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """The branches of a nested dict that have leaves of these names."""
    found = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if not isinstance(value, dict):
            if name in names:
                found[key] = value
        elif inner := part(value, names, f"{name}/"):
            found[key] = inner
    return found


def joined(whole: Any, changed: Any) -> Any:
    """The whole nested dict, with what ``changed``, a part of it, has in the place of its own."""
    if not isinstance(whole, dict):
        return changed
    return {
        key: joined(value, changed[key]) if key in changed else value
        for key, value in whole.items()
    }


# --------------------------------------------------------------------------- layers and their rate


def layer_factors(model: Model, decay: float) -> Any:
    """decay ** (number of layers above) for each parameter, float32 that multiply with it.

    Embeddings are below all layers, heads and final norms above them; an encoder is below its
    decoder. What a stack's layers share, such as relative positions, counts with its lowest layer;
    a soft prompt, being new, like a head. Of stacked layers it is a vector along their axis.
    """
    c = model.config
    tops = {"encoder": c.num_decoder_layers, "decoder": 0}
    counts = {"encoder": c.num_encoder_layers, "decoder": c.num_decoder_layers}

    def factor(path: tuple, leaf: Any) -> Any:
        parts = [step.key for step in path]
        stack, *inner = parts[1:] if parts[0] == LORA else parts
        if "embedder" in f"{stack}/{inner[0] if inner else ''}":
            return np.float32(decay ** (sum(counts.values()) + 1))
        if stack not in tops:
            return np.float32(1.0)
        above = tops[stack]
        if inner[0] == "layers":  # the top one is numbered last
            layers = np.arange(leaf.shape[0] - 1, -1, -1)
            powers = np.float32(decay ** (layers + above + 1))
            return powers.reshape(-1, *(1,) * (len(leaf.shape) - 1))
        if number := re.fullmatch(r"layers_(\d+)", inner[0]):
            above += counts[stack] - int(number[1])
        elif inner[0] in ("relpos_bias", "embedding_norm"):
            above += counts[stack]
        return np.float32(decay**above)

    return jax.tree_util.tree_map_with_path(factor, model.abstract_params())
