"""Joins projections into one matrix, and splits the result.

Dimensions: K kv heads, which a mesh may split; G = N / K; H head_dim.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp


def join_heads(parts: Sequence[Any], kv_heads: int, xp: ModuleType = jnp) -> Any:
    """[..., K * G * H], [..., K * H], ... -> [..., K * (G + 1 + ...) * H], kv head by kv head.

    Interleaved by kv head rather than part after part: a device that holds some of the kv heads
    holds all of their parts, and splitting needs no communication.
    """
    each = [part.reshape(*part.shape[:-1], kv_heads, -1) for part in parts]
    joined = xp.concatenate(each, axis=-1)
    return joined.reshape(*joined.shape[:-2], -1)


def split_heads(joined: Any, kv_heads: int, widths: Sequence[int]) -> list[Any]:
    """The inverse of `join_heads`; ``widths`` are the parts' last dimensions."""
    each = joined.reshape(*joined.shape[:-1], kv_heads, -1)
    parts, start = [], 0
    for width in widths:
        part = each[..., start : start + width // kv_heads]
        parts.append(part.reshape(*joined.shape[:-1], width))
        start += width // kv_heads
    return parts


def joined_init(inits: Sequence[Any], kv_heads: int, widths: Sequence[int]) -> Any:
    """An initialiser of [in, sum(widths)] that uses a separate initialiser for each part."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        keys = jax.random.split(key, len(widths))
        drawn = [
            one(k, (*shape[:-1], width), dtype)
            for one, k, width in zip(inits, keys, widths, strict=True)
        ]
        return join_heads(drawn, kv_heads)

    return init


def stacked_init(init: Any) -> Any:
    """An initialiser of [in, parts, out] that initialises each part as a matrix [in, out]."""

    def stacked(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        keys = jax.random.split(key, shape[1])
        return jnp.stack([init(k, (shape[0], shape[2]), dtype) for k in keys], axis=1)

    return stacked
