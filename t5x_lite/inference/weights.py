"""Weights for inference in fewer bytes: bfloat16, or int8 with a scale for each output."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError, did_you_mean

KINDS = ("float32", "bfloat16", "int8")
# name -> the axis that products sum over. Other parameters are small, and stay as they are.
_SUMMED = ((r"wi_fused/kernel$", -3), (r"/kernel$", -2), (r"token_embedder/embedding$", -1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A matrix as values * scale: int8, and float32 with a 1 for the axis that is summed over."""

    values: jax.Array
    scale: jax.Array


def compressed(params: Any, kind: str) -> Any:
    """Parameters as "float32" (as they are), "bfloat16", or "int8".

    int8: matrices and the table of embeddings, each output rounded to 255 steps of its own largest
    value / 127 (weight-only, symmetric; no activation is rounded). The rest stays float32.

    Raises UserError for another kind.
    """
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise UserError(f"weights = {kind!r}: expected one of {', '.join(KINDS)}.{hint}")
    if kind == "float32":
        return params
    if kind == "bfloat16":
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)

    def smaller(path: tuple, leaf: jax.Array) -> Any:
        name = "/".join(str(step.key) for step in path)
        for pattern, axis in _SUMMED:
            if re.search(pattern, name):
                return quantized(leaf, axis)
        return leaf

    return jax.tree_util.tree_map_with_path(smaller, params)


def compress(params: dict[str, Any], kind: str) -> dict[str, Any]:
    """`compressed`, one parameter at a time; they are taken out of ``params``, to be freed."""
    return params if kind == "float32" else _compress(params, kind, "")


def _compress(params: dict[str, Any], kind: str, prefix: str) -> dict[str, Any]:
    found = {}
    for key in list(params):
        name, value = f"{prefix}{key}", params.pop(key)
        if isinstance(value, dict):
            found[key] = _compress(value, kind, f"{name}/")
        else:
            found[key] = _small({name: value}, kind)[name]
        del value
    return found


def quantized(x: jax.Array, axis: int) -> Int8:
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / 127.0
    return Int8(jnp.round(x / scale).astype(jnp.int8), scale.astype(jnp.float32))


def expanded(params: Any) -> Any:
    """The parameters in float32 where they are `Int8`, else as they are.

    To be called where they are used, inside of a loop, too: the compiler then has the choice to
    expand a matrix as a product reads it.
    """
    return map_int8(lambda leaf: leaf.values.astype(jnp.float32) * leaf.scale, params)


def map_int8(fn: Callable[[Int8], Any], params: Any) -> Any:
    is_int8 = lambda leaf: isinstance(leaf, Int8)  # noqa: E731
    return jax.tree.map(lambda leaf: fn(leaf) if is_int8(leaf) else leaf, params, is_leaf=is_int8)


_small = jax.jit(compressed, static_argnums=1)
