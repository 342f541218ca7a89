"""Splash attention: jax's flash attention for TPU, a Pallas kernel."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from t5x_lite.models.functional.masks import SAVED, Mask
from t5x_lite.parallel.platform import one_device
from t5x_lite.parallel.rules import active, partition_spec

BLOCK = 512  # of queries and keys; multiples of 128 that divide both lengths


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask | None,
    *,
    scale: float = 1.0,
    logits_soft_cap: float | None = None,
    interpret: bool = False,
) -> jax.Array:
    """See `dot_product_attention`; no bias, no prefix, no window, and q_start is 0.

    Under `use_mesh` each device computes its rows and its heads. ``interpret`` runs it on a CPU.
    """
    mask = Mask() if mask is None else mask
    S = k.shape[1]
    q_segments, k_segments = mask.q_segments, mask.k_segments
    if k_segments is not None and q_segments is None:  # keys that are not padding
        k_segments = (k_segments > 0).astype(jnp.int32)
        q_segments = jnp.ones(q.shape[:2], jnp.int32)
    # The kernel doesn't scale the logits.
    q = (q * scale).astype(q.dtype) if scale != 1.0 else q

    def local(q, k, v, *segments):
        kernel = _kernel(q.shape[2], q.shape[1], S, mask.causal, logits_soft_cap, interpret)
        ids = kernels.SegmentIds(*segments) if segments else None
        heads_first = [x.swapaxes(1, 2) for x in (q, k, v)]
        in_axes = (0, 0, 0, None if ids is None else 0)
        return jax.vmap(kernel, in_axes=in_axes)(*heads_first, ids).swapaxes(1, 2)

    segments = () if k_segments is None else (q_segments, k_segments)
    if one_device():
        return local(q, k, v, *segments)
    mesh, rules = active()
    whole_rows = ("activation_batch", None)
    rows = partition_spec(whole_rows, rules, mesh)
    heads = partition_spec((*whole_rows, "activation_heads", None), rules, mesh)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(heads, heads, heads, *(rows for _ in segments)),
        out_specs=heads,
        check_vma=False,
    )(q, k, v, *segments)


@functools.lru_cache(maxsize=32)
def _mask(heads: int, queries: int, keys: int, causal: bool) -> masks.MultiHeadMask:
    shape = (queries, keys)
    return masks.MultiHeadMask(
        [masks.CausalMask(shape) if causal else masks.FullMask(shape)] * heads
    )


def _kernel(heads: int, queries: int, keys: int, causal: bool, cap: float | None, interpret: bool):
    q, k = _block(queries), _block(keys)
    sizes = kernels.BlockSizes(
        block_q=q,
        block_kv=k,
        block_kv_compute=k,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_kv_dkv_compute=k,
        block_q_dq=q,
        block_kv_dq=k,
    )
    # The mask's block description must be made of constants, also while jit is tracing.
    with jax.ensure_compile_time_eval():
        return kernels.make_splash_mha(
            mask=_mask(heads, queries, keys, causal),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=sizes,
            attn_logits_soft_cap=cap,
            residual_checkpoint_name=SAVED,  # if kept, the backward pass doesn't repeat the kernel
            interpret=interpret,
        )


def _block(length: int) -> int:
    return max(size for size in (128, 256, 384, BLOCK) if length % size == 0)
