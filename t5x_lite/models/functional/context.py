"""Context parallelism: attention with every row sharded over the mesh axis ``context``.

Queries stay on their device; keys and values of the whole row are all-gathered, and their
gradients reduce-scattered. A device holds only its own queries' scores.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_lite.models.functional.masks import Mask
from t5x_lite.models.functional.positions import RelativePositions
from t5x_lite.parallel.rules import active, divides, partition_spec, splits

QUERIES = ("activation_batch", "activation_length", "activation_heads", "activation_kv")


def context_shards() -> int:
    """The number of shards of each row; 1 outside `use_mesh`."""
    found = active()
    if found is None:
        return 1
    mesh, rules = found
    axes = splits(partition_spec(QUERIES, rules, mesh))[1]
    return math.prod(mesh.shape[axis] for axis in axes)


def over_context(
    attend: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask | None,
    bias: RelativePositions | None,
    keep_weights: jax.Array | None,
) -> jax.Array:
    """Calls ``attend(q, k, v, mask=, bias=, keep_weights=)`` with a device's queries and all keys.

    Arguments as in `dot_product_attention`; mask and bias are described. Rows that aren't sharded,
    or can't be (a few tokens in decoding), are left to ``attend`` and XLA.
    """
    if context_shards() == 1:
        return attend(q, k, v, mask=mask, bias=bias, keep_weights=keep_weights)
    mesh, rules = active()
    queries = partition_spec(QUERIES, rules, mesh)
    batch, length, heads, _ = queries
    if not (divides(mesh, q.shape, queries) and divides(mesh, k.shape, queries)):
        return attend(q, k, v, mask=mask, bias=bias, keep_weights=keep_weights)
    mask = Mask() if mask is None else mask
    rows = {"q": PartitionSpec(batch, length), "k": PartitionSpec(batch, None)}

    def mask_specs(mask: Mask) -> Mask:
        def spec(name: str, value):
            if value is None or jnp.ndim(value) == 0:
                return None if value is None else PartitionSpec()
            return rows[name[0]]

        names = ("q_segments", "k_segments", "q_prefix", "k_prefix", "q_start", "window")
        return dataclasses.replace(mask, **{n: spec(n, getattr(mask, n)) for n in names})

    bias_specs = None
    if bias is not None:
        empty = PartitionSpec()
        table = PartitionSpec(heads, None)
        bias_specs = dataclasses.replace(bias, table=table, q_start=empty, k_start=empty)
    keep_specs = None if keep_weights is None else PartitionSpec(batch, heads)

    def local(q, k, v, mask, bias, keep_weights):
        place = jnp.int32(0)
        for axis in splits(queries)[1]:
            place = place * mesh.shape[axis] + jax.lax.axis_index(axis)
        start = place * q.shape[1]
        k, v = (jax.lax.all_gather(a, length, axis=1, tiled=True) for a in (k, v))
        mask = dataclasses.replace(mask, q_start=mask.q_start + start)
        bias = None if bias is None else bias.at(start, 0)
        return attend(q, k, v, mask=mask, bias=bias, keep_weights=keep_weights)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(queries, queries, queries, mask_specs(mask), bias_specs, keep_specs),
        out_specs=queries,
        check_vma=False,
    )(q, k, v, mask, bias, keep_weights)
