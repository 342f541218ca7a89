"""Scaled or unscaled dot-product attention, and the masks that it takes."""

import jax
import jax.numpy as jnp

MASKED = -1e10  # T5X's value: a row with every key masked becomes uniform, never NaN


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Bounds ``x`` smoothly to (-cap, cap) (Gemma 2, https://arxiv.org/abs/2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float = 1.0,
    logits_soft_cap: float | None = None,
    keep_weights: jax.Array | None = None,
) -> jax.Array:
    """Attention with grouped key/value heads (https://arxiv.org/abs/2305.13245).

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H]; K divides N, and query head n reads key/value head n // (N / K).
      mask: bool, broadcastable to [B, N, T, S]; True where a query may look.
      bias: float, broadcastable to [B, N, T, S]; added to the logits.
      scale: factor on the logits; T5 uses 1 (its initialiser makes up for it).
      logits_soft_cap: see `soft_cap`; applied before bias and mask.
      keep_weights: dropout's factors, broadcastable to [B, N, T, S]: 0 or 1 / (1 - rate).

    Returns:
      [B, T, N, H] in q's dtype. Logits and softmax are float32.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H)
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32)
    logits = soft_cap(logits * scale if scale != 1.0 else logits, logits_soft_cap)
    logits = logits.reshape(B, N, T, -1)
    if bias is not None:
        logits += bias.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1)
    if keep_weights is not None:
        weights *= keep_weights
    weights = weights.astype(v.dtype).reshape(B, K, N // K, T, -1)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(B, T, N, H)


def segment_mask(q_segments: jax.Array, k_segments: jax.Array) -> jax.Array:
    """Segment ids [B, T], [B, S] (0 = padding) -> bool [B, 1, T, S]: same segment, no padding."""
    q, k = q_segments[:, None, :, None], k_segments[:, None, None, :]
    return (q == k) & (q > 0) & (k > 0)


def causal_mask(length: int) -> jax.Array:
    """Bool [1, 1, length, length]: position t sees s <= t."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))


def decoder_mask(segments: jax.Array, prefix: jax.Array | None = None) -> jax.Array:
    """The decoder's self-attention mask, bool [B, 1, T, T].

    Args:
      segments: [B, T] segment ids, 0 = padding.
      prefix: [B, T], nonzero where tokens see each other in both directions (prefix LM).
    """
    mask = causal_mask(segments.shape[1])
    if prefix is not None:
        mask |= (prefix[:, None, :, None] > 0) & (prefix[:, None, None, :] > 0)
    return mask & segment_mask(segments, segments)
