"""Where a token is: T5's relative position buckets and rotary embeddings."""

import jax
import jax.numpy as jnp
import numpy as np


def relative_position_bucket(
    relative_position: jax.Array, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> jax.Array:
    """Maps ``key position - query position`` to a bucket (T5, https://arxiv.org/abs/1910.10683).

    Half of the buckets are exact distances, the other half grow logarithmically up to
    ``max_distance``, and beyond it all share the last one. With ``bidirectional`` the sign takes
    half of the buckets; without, keys to the right share bucket 0 (a causal mask hides them).

    Args:
      relative_position: int32, any shape.

    Returns:
      int32 of the same shape, in [0, num_buckets).
    """
    offset = jnp.zeros_like(relative_position)
    distance = -relative_position
    if bidirectional:
        num_buckets //= 2
        offset = (distance < 0).astype(jnp.int32) * num_buckets
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(distance, 0)
    exact = num_buckets // 2
    # The epsilon is the golden one: without it, exact powers fall into the bucket below.
    epsilon = np.finfo(np.float32).eps
    log_ratio = jnp.log(distance.astype(jnp.float32) / exact + epsilon)
    log_bucket = log_ratio / np.log(max_distance / exact) * (num_buckets - exact)
    far = jnp.minimum(exact + log_bucket.astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)


def relative_bias(
    table: jax.Array,
    q_positions: jax.Array,
    k_positions: jax.Array,
    *,
    bidirectional: bool,
    max_distance: int,
) -> jax.Array:
    """T5's attention bias [1, N, T, S] from its table [N, buckets] and int32 positions [T], [S]."""
    buckets = relative_position_bucket(
        k_positions[None, :] - q_positions[:, None],
        bidirectional=bidirectional,
        num_buckets=table.shape[1],
        max_distance=max_distance,
    )
    return table[:, buckets][None]


def rotary(x: jax.Array, positions: jax.Array, theta: float = 10_000.0) -> jax.Array:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864), halves rotated as in Llama.

    Args:
      x: [B, T, N, H], H even.
      positions: int32 [B, T] or [1, T].

    Returns:
      [B, T, N, H] in x's dtype; the rotation is computed in float32.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, H/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
