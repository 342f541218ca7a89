"""What every search starts from: prompts run through the model once, and the first logits.

Dimensions: B batch, R rows (B times samples or beams), P prompt width, N new tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

START_ID = 0
PAD_ID = 0


class Start(NamedTuple):
    """A prefilled model, ready for its first new token.

    step: (cache, tokens [R] int32) -> (logits [R, V] float32, cache): one token a row.
    map_cache: (fn(array, batch_axis), cache) -> cache.
    logits: [B, V] float32, of the first new token.
    limits: [B] int32, new tokens each row may have; prompt_lengths: [B] int32.
    size: N, the width of the returned tokens (static); eos_id: the id that ends a row.
    """

    step: Callable[[Any, jax.Array], tuple[jax.Array, Any]]
    map_cache: Callable[[Callable, Any], Any]
    cache: Any
    logits: jax.Array
    limits: jax.Array
    prompt_lengths: jax.Array
    size: int
    eos_id: int


def left_pad(prompts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, P] with 0 = absent -> [B, 1 + P] start token and prompt at the right end, and its mask.

    All rows then end in the same column, so that one pass fills the cache and every row's first
    new token comes from the last column.
    """
    present = prompts != PAD_ID
    # A stable sort moves what is absent to the left and keeps the order of the rest.
    order = jnp.argsort(present, axis=1, stable=True)
    tokens = jnp.take_along_axis(prompts, order, axis=1)
    columns = jnp.arange(prompts.shape[1] + 1)
    lengths = present.sum(axis=1, keepdims=True)
    # START_ID is PAD_ID: the column before the first prompt token only has to become valid.
    tokens = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=START_ID)
    return tokens, columns >= prompts.shape[1] - lengths


def prefill(
    model,
    params,
    batch: dict,
    prompts: jax.Array | None,
    *,
    max_new_tokens: int | None,
    max_length: int | None,
    bidirectional: bool,
    eos_id: int,
) -> Start:
    """Runs the start token and the prompts through the model in one pass."""
    size = max_new_tokens if max_length is None else max_length
    if prompts is None:
        rows = next(iter(batch.values())).shape[0]
        tokens, valid = jnp.full((rows, 1), START_ID, jnp.int32), None
        lengths = jnp.zeros((rows,), jnp.int32)
    else:
        tokens, valid = left_pad(prompts)
        lengths = (prompts != PAD_ID).sum(axis=1, dtype=jnp.int32)
    limits = jnp.full_like(lengths, size) if max_length is None else max_length - lengths
    # A model without an encoder takes the batch size from its decoder's tokens. The last new
    # token is never fed back, hence the -1.
    batch = {**batch, "decoder_input_tokens": tokens}
    cache = model.start_decoding(params, batch, tokens.shape[1] + size - 1)
    mask = valid if bidirectional else None
    logits, cache = model.decode(
        params, cache, tokens, valid=valid, bidirectional=mask, last_only=True
    )

    def step(cache, last):
        logits, cache = model.decode(params, cache, last[:, None])
        return logits[:, 0], cache

    return Start(
        step, model.map_cache, cache, logits[:, -1], limits, lengths, size=size, eos_id=eos_id
    )
