"""What every search starts from: prompts run through the model once, and the first logits.

Dimensions: B batch, R rows (B times samples or beams), P prompt width, N new tokens, V vocabulary.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.inference.weights import expanded

START_ID = 0
PAD_ID = 0


class Start(NamedTuple):
    """A prefilled model, ready for its first new token.

    step: (cache, tokens [R] int32) -> (logits [R, V] float32, cache): one token a row.
    extend: (cache, tokens [R, T], valid bool [R, T]) -> (logits [R, T, V], cache); rewind: (cache,
      count) -> cache without its last ``count`` tokens.
    map_cache: (fn(array, batch_axis), cache) -> cache.
    context: [B, C] int32, what was read: the encoder's input, then the prompts; 0 = absent.
    logits: [B, V] float32, of the first new token.
    limits: [B] int32, new tokens each row may have; prompt_lengths: [B] int32.
    size: N, the width of the returned tokens (static); eos_ids: the ids that end a row.
    """

    step: Callable[[Any, jax.Array], tuple[jax.Array, Any]]
    extend: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
    rewind: Callable[[Any, jax.Array], Any]
    map_cache: Callable[[Callable, Any], Any]
    cache: Any
    logits: jax.Array
    limits: jax.Array
    prompt_lengths: jax.Array
    context: jax.Array
    size: int
    eos_ids: tuple[int, ...]

    def ends(self, tokens: jax.Array) -> jax.Array:
        """bool, shaped like ``tokens``: which of them end a row."""
        return is_any_of(tokens, self.eos_ids)


def is_any_of(tokens: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    """bool, shaped like ``tokens``: which of them are among a few ids."""
    return functools.reduce(operator.or_, (tokens == i for i in ids))


def eos_ids_of(eos_id: int | Sequence[int]) -> tuple[int, ...]:
    """One EOS id or several as a tuple; UserError if there is none."""
    several = [eos_id] if isinstance(eos_id, int | np.integer) else eos_id
    found = tuple(dict.fromkeys(int(i) for i in several))
    if not found:
        raise UserError("eos_id is an empty list: give at least one id; -1 is what no token is.")
    return found


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
    eos_ids: tuple[int, ...],
    ahead: int = 0,
    tokens_a_step: int = 1,
) -> Start:
    """Runs the start token and the prompts through the model in one pass.

    ``ahead``: how many tokens more than the longest text the cache is to hold. ``tokens_a_step``:
    how many a step of the search reads for each batch entry.
    """
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
    whole = expanded(params)
    cache = model.start_decoding(whole, batch, tokens.shape[1] + size - 1 + ahead)
    mask = valid if bidirectional else None
    logits, cache = model.decode(
        whole, cache, tokens, valid=valid, bidirectional=mask, last_only=True
    )
    stepper, params, cache = model.for_steps(params, cache, tokens_a_step * tokens.shape[0])

    def step(cache, last):
        logits, cache = stepper.decode(expanded(params), cache, last[:, None])
        return logits[:, 0], cache

    def extend(cache, tokens, valid):
        return stepper.decode(expanded(params), cache, tokens, valid=valid)

    context = tokens
    if "encoder_input_tokens" in batch:
        context = jnp.concatenate([batch["encoder_input_tokens"], tokens], axis=1)
    return Start(
        step=step,
        extend=extend,
        rewind=stepper.rewind,
        map_cache=stepper.map_cache,
        cache=cache,
        logits=logits[:, -1],
        limits=limits,
        prompt_lengths=lengths,
        context=context.astype(jnp.int32),
        size=size,
        eos_ids=eos_ids,
    )
