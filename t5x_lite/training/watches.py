"""Looking inside the update: norms and histograms of gradients, parameters and updates.

Every k-th step runs a second compiled program, which computes them too. The other steps run the
program that they run without watches: what isn't looked at costs nothing.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.ranges import Positive
from t5x_lite.training.trackers import WATCHED, Histogram

_TREES = ("gradients", "parameters", "updates")


@dataclasses.dataclass(frozen=True)
class Watches:
    """What is watched, and how often.

    The second program may round otherwise than the first, so a run's last bits depend on its
    watches; they are the same whenever it is repeated or continued with them.

    Attributes:
      names: a regular expression; parameters are watched whose name has a match for it.
      period: steps from one look to the next, counted from step 0.
      of: some of "gradients", "parameters" (after the step) and "updates" (what the optimizer
        subtracted, learning rate included).
      layers: the norm of each layer by itself, where layers are stacked along the first axis.
      histograms: whether to count the values, too, in ``bins`` equal steps.
    """

    names: str = ".*"
    period: Positive = 100
    of: tuple[str, ...] = _TREES
    layers: bool = True
    histograms: bool = False
    bins: Positive = 64

    def __post_init__(self):
        if unknown := [name for name in self.of if name not in _TREES]:
            raise UserError(f"Watches.of has {unknown[0]!r}: expected some of {', '.join(_TREES)}.")
        if self.period < 1 or self.bins < 1:
            raise UserError(
                f"Watches(period={self.period}, bins={self.bins}): both must be at least 1."
            )
        try:
            re.compile(self.names)
        except re.error as error:
            raise UserError(
                f"Watches.names = {self.names!r} is no regular expression: {error}."
            ) from error

    def due(self, step: int) -> bool:
        """Whether the step that ends with this number is watched."""
        return step % self.period == 0

    def check(self, params: Any) -> None:
        """Raises UserError if no parameter has a match."""
        names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        if not any(re.search(self.names, name) for name in names):
            raise UserError(
                f"Watches.names = {self.names!r} matches no parameter: they are named like "
                f"{names[0]!r}."
            )

    def values(self, trees: Mapping[str, Any], layer_axes: Any) -> dict[str, Any]:
        """What to add to a step's metrics; for use inside of jit.

        Args:
          trees: "gradients", "parameters" and "updates", trees of float arrays; of parameters that
            aren't trained, the first and the last have nothing.
          layer_axes: a tree like the parameters, of each one's logical axes.

        Returns:
          watch/{gradients,...}_norm/NAME: float32 scalars, or [layers] where they are stacked;
          watch/{gradients,...}/NAME: a `Histogram` each, if wanted.
        """
        found: dict[str, Any] = {}
        is_names = lambda x: isinstance(x, tuple)  # noqa: E731
        named = jax.tree_util.tree_leaves_with_path(layer_axes, is_leaf=is_names)
        axes = {_name(path): names for path, names in named}
        for kind in self.of:
            for path, leaf in jax.tree_util.tree_leaves_with_path(trees[kind]):
                name = _name(path)
                if not re.search(self.names, name):
                    continue
                stacked = self.layers and axes[name][:1] == ("layers",)
                rest = tuple(range(1, leaf.ndim)) if stacked else None
                squares = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=rest)
                found[f"{WATCHED}{kind}_norm/{name}"] = jnp.sqrt(squares)
                if self.histograms:
                    found[f"{WATCHED}{kind}/{name}"] = histogram(leaf, self.bins)
        return found


def histogram(x: jax.Array, bins: int) -> Histogram:
    """Counts int32 [bins] of the finite values of x, from the least of them to the largest."""
    x = x.astype(jnp.float32)
    finite = jnp.isfinite(x)
    low = jnp.min(jnp.where(finite, x, jnp.inf))
    high = jnp.max(jnp.where(finite, x, -jnp.inf))
    some = finite.any()
    low, high = jnp.where(some, low, 0.0), jnp.where(some, high, 0.0)
    width = jnp.where(high > low, high - low, 1.0)
    index = jnp.clip(((x - low) / width * bins).astype(jnp.int32), 0, bins - 1)
    counts = jnp.zeros(bins, jnp.int32).at[index].add(finite.astype(jnp.int32))
    return Histogram(low, high, counts)


def spread(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they are logged: NAME of shape [layers] becomes NAME/0, NAME/1, ..."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if getattr(value, "ndim", 0) == 1:
            found |= {f"{name}/{i}": v for i, v in enumerate(value)}
        else:
            found[name] = value
    return found


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
