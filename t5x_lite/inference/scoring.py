"""How probable the targets of a batch are to a model, given all that comes before them.

Dimensions: B batch, T target length, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from t5x_lite.inference.weights import expanded


@functools.partial(jax.jit, static_argnums=0)
def token_log_probs(model, params, batch: dict) -> jax.Array:
    """Log-probability of every target token [B, T] float32, 0 where its loss weight is 0.

    batch: model features (`decoder_input_tokens`, `decoder_target_tokens`, ...; packed or not).
    Without `decoder_loss_weights` all targets but padding count.
    """
    logits, _ = model.apply(expanded(params), batch)
    targets = batch["decoder_target_tokens"]
    chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(_weights(batch) != 0, log_probs, 0.0)


@functools.partial(jax.jit, static_argnums=0)
def log_likelihood(model, params, batch: dict) -> jax.Array:
    """Weighted sum of the target tokens' log-probabilities [B] float32 (T5X's `score_batch`).

    Without z-loss and label smoothing, whatever the training loss has. A packed row gets one
    score: the sum over its examples.
    """
    return jnp.sum(token_log_probs(model, params, batch) * _weights(batch), axis=1)


def _weights(batch: dict) -> jax.Array:
    if "decoder_loss_weights" in batch:
        return batch["decoder_loss_weights"]
    return batch["decoder_target_tokens"] != 0
