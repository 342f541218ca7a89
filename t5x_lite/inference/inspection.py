"""What a model makes of one example: how likely each token is to it, what else it expected.

Dimensions: B batch, T target length, V vocabulary.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Looks(NamedTuple):
    """Of every target token: log-probability and entropy (nats) [B, T] float32, rank [B, T] int32
    (0: nothing was likelier); and the likeliest tokens, ids and log-probabilities [B, T, top]."""

    log_probs: jax.Array
    entropies: jax.Array
    ranks: jax.Array
    top_ids: jax.Array
    top_log_probs: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 3))
def look(model: Any, params: Any, batch: Mapping[str, jax.Array], top: int) -> Looks:
    """batch: model features, not packed. What stands where there is no target means nothing."""
    logits, _ = model.apply(params, batch)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probs, targets_of(batch)[:, :, None], axis=-1)
    top_log_probs, top_ids = jax.lax.top_k(log_probs, top)
    return Looks(
        chosen[:, :, 0],
        -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1),
        jnp.sum(log_probs > chosen, axis=-1, dtype=jnp.int32),
        top_ids,
        top_log_probs,
    )


attention = jax.jit(lambda model, params, batch: model.attention(params, batch), static_argnums=0)


def targets_of(batch: Mapping[str, Any]) -> Any:
    """[B, T]: what is predicted at each place, 0 for nothing."""
    name = "decoder" if "decoder_target_tokens" in batch else "encoder"
    return batch[f"{name}_target_tokens"]


def counted(batch: Mapping[str, Any]) -> np.ndarray:
    """bool [B, T]: the places whose prediction is part of the loss."""
    name = "decoder" if "decoder_target_tokens" in batch else "encoder"
    return np.asarray(batch[f"{name}_loss_weights"]) > 0
