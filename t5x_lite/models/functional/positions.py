"""Positions: T5's relative position buckets and rotary embeddings."""

import dataclasses

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
    # T5X's epsilon: without it, exact powers of two round down a bucket.
    epsilon = np.finfo(np.float32).eps
    log_ratio = jnp.log(distance.astype(jnp.float32) / exact + epsilon)
    log_bucket = log_ratio / np.log(max_distance / exact) * (num_buckets - exact)
    far = jnp.minimum(exact + log_bucket.astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RelativePositions:
    """T5's attention bias, described by its table and the first positions of queries and keys.

    Queries are at q_start, q_start + 1, ..., keys at k_start, ... (int32 scalars or ints).
    """

    table: jax.Array | None  # [N, buckets]
    q_start: jax.Array | int
    k_start: jax.Array | int
    bidirectional: bool = dataclasses.field(metadata={"static": True})
    max_distance: int = dataclasses.field(metadata={"static": True})

    def at(self, q: jax.Array | int, k: jax.Array | int) -> "RelativePositions":
        """The same bias from the q-th query and the k-th key on."""
        return self.replace(q_start=self.q_start + q, k_start=self.k_start + k)

    def replace(self, **changes) -> "RelativePositions":
        return dataclasses.replace(self, **changes)

    def bias(self, queries: int, keys: int) -> jax.Array:
        """Materializes the bias [N, queries, keys] of the first queries and keys."""
        # It depends on the distance alone: one value for each of T + S - 1 distances, copied into
        # rows that are shifted by one. So its gradient is a sum of shifted rows, not a scatter of
        # T * S values into 32 buckets.
        first = self.k_start - self.q_start - (queries - 1)
        by_distance = self.table[:, self._buckets(first + jnp.arange(queries + keys - 1))]
        return shifted_rows(by_distance, queries)

    def _buckets(self, distances: jax.Array) -> jax.Array:
        return relative_position_bucket(
            distances,
            bidirectional=self.bidirectional,
            num_buckets=self.table.shape[1],
            max_distance=self.max_distance,
        )


def shifted_rows(x: jax.Array, rows: int) -> jax.Array:
    """x [..., rows + n - 1] -> y [..., rows, n] with y[..., i, j] = x[..., rows - 1 - i + j]."""
    length = x.shape[-1] + 1
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    # Each row is one shorter than the period, so that it starts one further right in x's copies.
    tiled = jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], rows, length))
    flat = tiled.reshape(*x.shape[:-1], rows * length)[..., : rows * (length - 1)]
    skewed = flat.reshape(*x.shape[:-1], rows, length - 1)  # row i begins at x[..., -i]
    return skewed[..., rows - 1 :]


def relative_bias(
    table: jax.Array,
    q_positions: jax.Array,
    k_positions: jax.Array,
    *,
    bidirectional: bool,
    max_distance: int,
) -> jax.Array:
    """T5's attention bias [1, N, T, S] from its table [N, buckets] and any positions [T], [S].

    The short reference to `RelativePositions.bias`.
    """
    buckets = relative_position_bucket(
        k_positions[None, :] - q_positions[:, None],
        bidirectional=bidirectional,
        num_buckets=table.shape[1],
        max_distance=max_distance,
    )
    return table[:, buckets][None]


def rotary_frequencies(half: int, theta: float, scaling: tuple | None = None) -> jax.Array:
    """The rotation angle per position of each of ``half`` pairs, float32 [H/2].

    Args:
      scaling: for texts longer than in pretraining, one of
        None;
        ("linear", factor): positions are divided by it (https://arxiv.org/abs/2306.15595);
        ("llama3", factor, low, high, length): so are those of pairs that turn less than ``low``
          times in ``length`` positions; those that turn more than ``high`` times stay as they are,
          and between them it changes gradually (Llama 3.1, https://arxiv.org/abs/2407.21783).
    """
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return frequencies
    kind, factor, *rest = scaling
    if kind == "linear":
        return frequencies / factor
    low, high, length = rest
    turns = length * frequencies / (2 * np.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / factor)


def rotary(
    x: jax.Array, positions: jax.Array, theta: float = 10_000.0, scaling: tuple | None = None
) -> jax.Array:
    """`rotate` by `rotary_frequencies`."""
    return rotate(x, positions, rotary_frequencies(x.shape[-1] // 2, theta, scaling))


def rotate(x: jax.Array, positions: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Rotary position embedding (https://arxiv.org/abs/2104.09864), halves rotated as in Llama.

    Args:
      x: [B, T, N, H], H even.
      positions: int32 [B, T] or [1, T].
      frequencies: float32 [H/2]; see `rotary_frequencies`.

    Returns:
      [B, T, N, H] in x's dtype; the rotation is computed in float32.
    """
    angles = positions[..., None, None].astype(jnp.float32) * frequencies  # [B, T, 1, H/2]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
