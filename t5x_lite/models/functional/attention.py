"""Attention behind one function: the reference is here, faster implementations in other files.

A mask is described (segments, causal, prefix, window), and materialized as [B, 1, T, S] only by
implementations that need the array; likewise T5's bias (`RelativePositions`).
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_lite.models.functional.masks import MASKED, SAVED, Mask
from t5x_lite.models.functional.positions import RelativePositions

IMPLEMENTATIONS = ("auto", "xla", "blockwise", "cudnn", "splash")
LONG = 2048  # from this many keys on, avoid materializing bias and scores even if that is slower


Bias: TypeAlias = jax.Array | RelativePositions | None


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Bounds ``x`` smoothly to (-cap, cap) (Gemma 2, https://arxiv.org/abs/2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask | jax.Array | None = None,
    bias: Bias = None,
    scale: float = 1.0,
    logits_soft_cap: float | None = None,
    keep_weights: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Attention with grouped key/value heads (https://arxiv.org/abs/2305.13245).

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H]; K divides N, and query head n reads key/value head n // (N / K).
      mask: described, or bool, broadcastable to [B, N, T, S], True where a query may attend.
      bias: described, or float, broadcastable to [B, N, T, S]; added to the logits.
      scale: factor on the logits; T5 uses 1 (its initialiser makes up for it).
      logits_soft_cap: see `soft_cap`; applied before bias and mask.
      keep_weights: dropout's factors [B, N, 1, S], 0 or 1 / (1 - rate): one sample for all queries.
      implementation: "xla" (the reference: scores are an array), "blockwise", "cudnn" or "splash";
        see `choose`. All but "xla" need mask and bias described.

    Returns:
      [B, T, N, H] in q's dtype. Logits and softmax are float32. The output of a query that may
      attend to no key is finite and has no meaning.
    """
    if implementation == "xla":
        y = reference(q, k, v, mask, bias, scale, logits_soft_cap, keep_weights)
        return checkpoint_name(y, SAVED)
    if keep_weights is not None:
        # The factor depends on the key, not on the query, so it can be applied to the value.
        v = jnp.repeat(v, q.shape[2] // v.shape[2], axis=2)
        k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
        v *= keep_weights[:, :, 0].swapaxes(1, 2)[..., None].astype(v.dtype)
    # Imported where they are used: Pallas is slow to import.
    if implementation == "cudnn":
        return checkpoint_name(_cudnn(q, k, v, mask, bias, scale), SAVED)
    if implementation == "splash":
        from t5x_lite.models.functional.splash import splash_attention

        return splash_attention(q, k, v, mask, scale=scale, logits_soft_cap=logits_soft_cap)
    from t5x_lite.models.functional.blockwise import blockwise_attention

    return blockwise_attention(q, k, v, mask, bias, scale=scale, logits_soft_cap=logits_soft_cap)


def reference(q, k, v, mask, bias, scale=1.0, logits_soft_cap=None, keep_weights=None) -> jax.Array:
    """The short reference of `dot_product_attention`."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    weights = softmax_weights(q, k, mask, bias, scale, logits_soft_cap)
    if keep_weights is not None:
        weights *= keep_weights
    weights = weights.astype(v.dtype).reshape(B, K, N // K, T, S)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(B, T, N, H)


def softmax_weights(q, k, mask, bias, scale=1.0, logits_soft_cap=None) -> jax.Array:
    """Attention weights, float32 [B, N, T, S]; as in `reference`."""
    B, T, N, H = q.shape
    q = q.reshape(B, T, k.shape[2], -1, H)
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32)
    return _softmax(logits, mask, bias, scale, logits_soft_cap)


def cached_attention(q, k, v, mask, bias, scale=1.0, logits_soft_cap=None) -> jax.Array:
    """`reference` for keys and values in the layout of KV caches, [B, K, S, H].

    For a few queries: each head's keys are contiguous, so that no decoding step transposes them.
    """
    B, T, N, H = q.shape
    K = k.shape[1]
    q = q.reshape(B, T, K, N // K, H)
    logits = jnp.einsum("BTKGH,BKSH->BKGTS", q, k, preferred_element_type=jnp.float32)
    weights = _softmax(logits, mask, bias, scale, logits_soft_cap)
    weights = weights.astype(v.dtype).reshape(B, K, N // K, T, -1)
    return jnp.einsum("BKGTS,BKSH->BTKGH", weights, v).reshape(B, T, N, H)


def _softmax(logits, mask, bias, scale, logits_soft_cap) -> jax.Array:
    """Products [B, K, G, T, S] -> weights [B, N, T, S]."""
    B, K, G, T, S = logits.shape
    logits = soft_cap(logits * scale if scale != 1.0 else logits, logits_soft_cap)
    logits = logits.reshape(B, K * G, T, S)
    mask, bias = materialize(mask, bias, T, S)
    if bias is not None:
        logits += bias.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    return jax.nn.softmax(logits, axis=-1)


def materialize(mask: Mask | jax.Array | None, bias: Bias, T: int, S: int):
    """Mask and bias as arrays [.., .., T, S], or None."""
    if isinstance(mask, Mask):
        mask = mask.materialize(T, S)
    if isinstance(bias, RelativePositions):
        bias = bias.bias(T, S)[None]
    return mask, bias


def choose(
    name: str,
    platform: str,
    *,
    queries: int,
    keys: int,
    head_dim: int,
    dtype: jnp.dtype,
    bias: bool,
    prefix: bool,
    window: bool,
    soft_cap: bool,
    one_device: bool = True,
    whole_rows: bool = True,
) -> str:
    """The implementation that ``name`` stands for, where these are the features asked for.

    "auto" is
      on TPU splash attention where it can (no bias, no prefix, lengths that are multiples of 128);
      on GPU cuDNN's flash attention where it can (half precision, no soft cap, no window) and has
        no bias, whose gradient it computes slowly;
      on one CPU device the blockwise form, row by row: the scores stay in the processor's cache;
      anywhere else, and for inputs over 2,048 tokens, the blockwise form; else "xla".
    Splash attention also needs whole rows on each device, not shards of them.
    A few queries, as in decoding, always use "xla": there is nothing to save.
    """
    if queries < 8 or name == "xla":
        return "xla"
    half = dtype in (jnp.bfloat16, jnp.float16)
    can = {
        "splash": whole_rows and not (bias or prefix or window or queries % 128 or keys % 128),
        "cudnn": half and not (soft_cap or window or head_dim % 8),
    }
    if name != "auto":
        return name if can.get(name, True) else "xla"
    if platform == "tpu" and can["splash"]:
        return "splash"
    if platform == "gpu" and can["cudnn"] and not bias:
        return "cudnn"
    if (platform == "cpu" and one_device) or keys > LONG:
        return "blockwise"
    return "xla"


def _cudnn(q, k, v, mask, bias, scale) -> jax.Array:
    """cuDNN's flash attention; for segments and prefixes the mask is materialized."""
    T, S = q.shape[1], k.shape[1]
    causal = False
    if isinstance(mask, Mask) and mask.causal and mask.q_prefix is None and T == S:
        causal, mask = True, mask.replace(causal=False)
    mask, bias = materialize(mask, bias, T, S)
    bias = None if bias is None else bias.astype(q.dtype)
    return jax.nn.dot_product_attention(
        q, k, v, bias, mask, scale=scale, is_causal=causal, implementation="cudnn"
    )


def segment_mask(q_segments: jax.Array, k_segments: jax.Array) -> Mask:
    """Segment ids [B, T], [B, S] (0 = padding): same segment, no padding."""
    return Mask(q_segments=q_segments, k_segments=k_segments)


def decoder_mask(segments: jax.Array, prefix: jax.Array | None = None) -> Mask:
    """The decoder's self-attention mask.

    Args:
      segments: [B, T] segment ids, 0 = padding.
      prefix: [B, T], nonzero where tokens attend to each other in both directions (prefix LM).
    """
    prefix = None if prefix is None else prefix > 0
    return Mask(segments, segments, prefix, prefix, causal=True)
