"""Which keys a query may attend to: described, and materialized only where that is needed."""

import dataclasses

import jax
import jax.numpy as jnp

MASKED = -1e10  # T5X's value: a row with every key masked becomes uniform, never NaN
SAVED = "attention_output"  # its name in remat policies; each implementation names what it keeps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which keys a query may attend to: all keys, except as restricted by these fields.

    q_segments, k_segments: int [B, T], [B, S], 0 = padding: only keys of the query's own
      segment. With k_segments alone: keys that are not 0.
    q_prefix, k_prefix: bool [B, T], [B, S]: where both are True, ``causal`` doesn't apply.
    q_start: the index of the first query, where that of the first key is 0; may be traced.
    causal: only keys at or before the query.
    window: only keys less than this many positions away; may be traced, as layers may differ.
    """

    q_segments: jax.Array | None = None
    k_segments: jax.Array | None = None
    q_prefix: jax.Array | None = None
    k_prefix: jax.Array | None = None
    q_start: jax.Array | int = 0
    window: jax.Array | int | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})

    def at(self, q: jax.Array | int, queries: int, k: jax.Array | int, keys: int) -> "Mask":
        """The mask of the queries [q, q + queries) and the keys [k, k + keys)."""
        cut = lambda x, start, size: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)  # noqa: E731
        cut_both = self._map(lambda x: cut(x, q, queries), lambda x: cut(x, k, keys))
        return cut_both.replace(q_start=self.q_start + q - k)

    def row(self, b: jax.Array | int) -> "Mask":
        """The mask of the b-th row of the batch alone."""
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, b, 1, axis=0)  # noqa: E731
        return self._map(cut, cut)

    def pad(self, queries: int, keys: int) -> "Mask":
        """The mask padded by this many queries and keys, which belong to no segment."""
        more = lambda n: lambda x: jnp.pad(x, [(0, 0), (0, n)])  # noqa: E731
        return self._map(more(queries), more(keys))

    def replace(self, **changes) -> "Mask":
        return dataclasses.replace(self, **changes)

    def _map(self, of_queries, of_keys) -> "Mask":
        def change(fn, x):
            return None if x is None else fn(x)

        return self.replace(
            q_segments=change(of_queries, self.q_segments),
            k_segments=change(of_keys, self.k_segments),
            q_prefix=change(of_queries, self.q_prefix),
            k_prefix=change(of_keys, self.k_prefix),
        )

    def materialize(self, queries: int, keys: int) -> jax.Array | None:
        """Bool [B or 1, 1, queries, keys], or None if every query sees every key."""
        seen = None
        distance = self.q_start + jnp.arange(queries)[:, None] - jnp.arange(keys)[None, :]
        if self.causal:
            seen = (distance >= 0)[None]
            if self.q_prefix is not None:
                seen |= self.q_prefix[:, :, None].astype(bool) & self.k_prefix[:, None].astype(bool)
        if self.window is not None:
            near = (jnp.abs(distance) < self.window)[None]
            seen = near if seen is None else seen & near
        if self.k_segments is not None:
            k = self.k_segments[:, None, :]
            same = k > 0
            if self.q_segments is not None:
                q = self.q_segments[:, :, None]
                same &= (q == k) & (q > 0)
            seen = same if seen is None else seen & same
        return None if seen is None else seen[:, None]
