"""The training loss: cross entropy with z-loss and label smoothing, and what it is divided by.

Dimensions: B batch, T target length, V vocabulary. Everything is computed in float32.
"""

import functools
import math
import numbers
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError, did_you_mean

NORMALIZERS = ("num_real_target_tokens", "num_total_target_tokens", "average_per_sequence")


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted sum of the cross entropy over all tokens.

    Args:
      logits: [B, T, V], any float type.
      targets: [B, T] int, the id each position should predict.
      weights: [B, T] of any number type; None weighs every token by 1.
      label_smoothing: probability mass taken from the target and spread over the V - 1 others. The
        smoothed target's own entropy is subtracted, so that a perfect prediction costs 0.
      z_loss: coefficient of log(Z)^2, Z the softmax's denominator: it holds the logits near a
        normalized log-probability (Chowdhery et al. 2022, section 5; T5 1.1 uses 1e-4).

    Returns:
      (loss_sum, z_loss_sum, weight_sum), float32 scalars. loss_sum includes z_loss_sum.

    The vocabulary-sized intermediates are computed again in the backward pass, not kept: the
    logits alone stay in memory.
    """
    check_coefficients(label_smoothing, z_loss)
    per_token = functools.partial(token_losses, label_smoothing=label_smoothing, z_loss=z_loss)
    nll, z, _ = jax.checkpoint(per_token)(logits, targets)
    weights = jnp.ones(targets.shape) if weights is None else weights
    weights = weights.astype(jnp.float32)
    return jnp.sum((nll + z) * weights), jnp.sum(z * weights), jnp.sum(weights)


def check_coefficients(label_smoothing: float, z_loss: float) -> None:
    """Raises UserError for values that make no loss."""
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"label_smoothing={label_smoothing!r}, expected 0 <= label_smoothing < 1")
    if not 0.0 <= z_loss < math.inf:
        raise UserError(f"z_loss={z_loss!r}, expected a coefficient >= 0, e.g. 1e-4")


def token_losses(
    logits: jax.Array, targets: jax.Array, *, label_smoothing: float, z_loss: float, axis: int = 2
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross entropy, z-loss and log(Z) of each token of logits [B, T, V]; float32 [B, T] each.

    ``axis``: where the vocabulary is; 0 for logits [V, B, T].
    """
    logits = logits.astype(jnp.float32)
    vocab_size = logits.shape[axis]
    top = jax.lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True))
    shifted = logits - top
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=axis))  # log(Z) - top
    # Compare and sum, not gather: it fuses, and a vocabulary split over devices stays split.
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, axis)
    is_target = ids == jnp.expand_dims(targets, axis)
    at_target = jnp.sum(jnp.where(is_target, shifted, 0.0), axis=axis)
    log_z = log_sum + jnp.squeeze(top, axis)
    z = z_loss * jnp.square(log_z)
    if not label_smoothing:
        return log_sum - at_target, z, log_z

    high, low = 1.0 - label_smoothing, label_smoothing / (vocab_size - 1)
    entropy = -(high * math.log(high) + label_smoothing * math.log(low))
    smoothed = (high - low) * at_target + low * jnp.sum(shifted, axis=axis)
    return log_sum - smoothed - entropy, z, log_z


def loss_normalizer(
    kind: str | float | None, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """What the summed loss is divided by, and the weights of its tokens.

    `kind` is one of
      None: 1, the loss is the sum over tokens (what T5X pre-trains with under Adafactor, which
        doesn't see the scale; AdamW's epsilon and clipping do);
      a number: that constant, e.g. 233472 = 2048 * 114 to fine-tune T5 as Mesh TensorFlow did;
      "num_real_target_tokens": the sum of the loss weights;
      "num_total_target_tokens": B * T, padding included;
      "average_per_sequence": each sequence (each segment of a packed row) counts the same however
        long it is: its weights are divided by their sum.

    Call it once on the whole global batch and share the result among the micro-batches: then
    gradients do not depend on how the batch is cut. (T5X does it in each micro-batch, which
    multiplies the gradient by their number.)

    Args:
      batch: `decoder_target_tokens` [B, T]; `decoder_loss_weights` [B, T], by default 1 on targets
        that aren't padding (id 0); `decoder_segment_ids` [B, T] if packed: 0 is padding, 1...T. Of
        an encoder-only model, `encoder_*`.

    Returns:
      (normalizer, weights): a float32 scalar, 1 where the batch has nothing to learn from rather
      than 0, and float32 [B, T].
    """
    side = target_side(batch)
    targets = batch[f"{side}_target_tokens"]
    weights = batch.get(f"{side}_loss_weights")
    weights = (targets > 0 if weights is None else weights).astype(jnp.float32)
    if kind is None:
        return jnp.float32(1.0), weights
    if isinstance(kind, numbers.Real) and not isinstance(kind, bool):
        if not 0.0 < kind < math.inf:
            raise UserError(f"loss normalizer {kind!r}, expected a number > 0")
        return jnp.float32(kind), weights

    name = str(kind).lower()
    if name == "num_total_target_tokens":
        return jnp.float32(targets.size), weights
    if name == "average_per_sequence":
        sums = _sequence_sums(weights, batch.get(f"{side}_segment_ids"))
        weights = jnp.where(sums > 0.0, weights / jnp.where(sums > 0.0, sums, 1.0), 0.0)
    elif name != "num_real_target_tokens":
        raise UserError(
            f"loss normalizer {kind!r}, expected None, a number or one of "
            f"{', '.join(NORMALIZERS)}.{did_you_mean(name, NORMALIZERS)}"
        )
    total = jnp.sum(weights)
    return jnp.where(total > 0.0, total, 1.0), weights


def target_side(batch: Mapping[str, jax.Array]) -> str:
    """Where the targets are: at the "decoder", or at an encoder-only model's "encoder"."""
    return "encoder" if "encoder_target_tokens" in batch else "decoder"


def _sequence_sums(weights: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """For each token the sum of the weights of its row, or of its segment; float32 [B, T or 1]."""
    if segment_ids is None:
        return jnp.sum(weights, axis=-1, keepdims=True)
    most = weights.shape[-1] + 1  # no row holds more segments than tokens, and there is padding

    def row(weights: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(weights, ids, num_segments=most)[ids]

    return jax.vmap(row)(weights, segment_ids)
