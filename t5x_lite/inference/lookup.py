"""Greedy decoding that guesses ahead from the text itself, and keeps what the model agrees with.

Dimensions: B batch, C context width, G tokens guessed, N new tokens, V vocabulary.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.inference.prefill import PAD_ID, Start
from t5x_lite.inference.sampling import most_probable
from t5x_lite.ranges import Positive


@dataclasses.dataclass(frozen=True)
class Lookup:
    """Greedy's tokens, several a step where the text repeats itself (prompt lookup decoding).

    The last tokens are looked for in what was read and written before, the encoder's input
    included; what followed them there is the guess. One pass checks all of it (the verification of
    https://arxiv.org/abs/2211.17192 with a deterministic proposal): guesses are kept up to the
    first that isn't the most probable token. The output is Greedy's, unless two tokens are equally
    probable to within rounding, as several tokens' products are summed in another order than one's.
    The rows of a batch go on together, by the fewest tokens kept: best with one row.

    guesses: G, tokens guessed a step. ngram: as many last tokens are looked for, or else fewer,
    down to one; where even that isn't found, the guess is the last token once more.
    """

    guesses: Positive = 6
    ngram: Positive = 3

    def __post_init__(self):
        for name in ("guesses", "ngram"):
            if getattr(self, name) < 1:
                raise UserError(f"Lookup.{name} is {getattr(self, name)}, expected 1 or more.")

    @property
    def ahead(self) -> int:
        """How many tokens more than the longest text the cache has to hold."""
        return self.guesses

    @property
    def tokens_a_step(self) -> int:
        """How many tokens a step reads for each batch entry."""
        return self.guesses + 1

    def search(self, start: Start, rng=None) -> tuple[jax.Array, jax.Array]:
        """Returns tokens [B, 1, N] int32 and log-probabilities [B, 1] float32."""
        del rng
        state = self.run(start)
        return state.tokens[:, None, : start.size], state.scores[:, None]

    def run(self, start: Start) -> "State":
        """The last state; its ``passes`` tell how many steps there were."""
        rows = start.limits.shape[0]
        state = State(
            step=jnp.int32(0),
            passes=jnp.int32(0),
            tokens=jnp.full((rows, start.size + self.guesses + 1), PAD_ID, jnp.int32),
            last=jnp.full((rows,), PAD_ID, jnp.int32),
            ended=start.limits <= 0,
            scores=jnp.zeros((rows,), jnp.float32),
            cache=start.cache,
        )
        state = _append(start, state, start.logits[:, None], jnp.int32(0))
        return jax.lax.while_loop(
            lambda s: ~jnp.all(s.ended), lambda s: self._step(start, s), state
        )

    def _step(self, start: Start, state: "State") -> "State":
        text = jnp.concatenate([start.context, state.tokens], axis=1)
        guess = guesses(text, start.context.shape[1] + state.step, self.guesses, self.ngram)
        fed = jnp.concatenate([state.last[:, None], guess], axis=1)
        # What would be written after the end must not count as a position.
        numbers = state.step - 1 + jnp.arange(fed.shape[1])
        valid = jnp.broadcast_to(numbers < start.size - 1, fed.shape)
        logits, cache = start.extend(state.cache, fed, valid)
        right = jnp.argmax(logits[:, :-1], axis=-1) == guess
        kept = jnp.sum(jnp.cumprod(right, axis=1), axis=1)
        kept = jnp.min(jnp.where(state.ended, self.guesses, kept))
        cache = start.rewind(cache, self.guesses - kept)
        state = _append(start, state._replace(cache=cache), logits, kept)
        return state._replace(passes=state.passes + 1)


class State(NamedTuple):
    step: jax.Array  # int32: new tokens so far
    passes: jax.Array  # int32: steps so far
    tokens: jax.Array  # [B, N + G + 1]
    last: jax.Array  # [B]
    ended: jax.Array  # [B] bool
    scores: jax.Array  # [B] float32
    cache: Any


def guesses(text: jax.Array, length: jax.Array, count: int, ngram: int) -> jax.Array:
    """What followed the last time that a text ended as it does, int32 [B, count].

    Args:
      text: [B, width], of which the first ``length`` columns are written (int32 scalar).
      ngram: the longest ending that is looked for.
    """
    width = text.shape[1]
    places = jnp.arange(width)
    # How many of the tokens before each place are the text's last ones: 0 to ngram.
    same = jnp.zeros(text.shape, jnp.int32)
    still = jnp.ones(text.shape, bool)
    for back in range(1, ngram + 1):
        ending = jax.lax.dynamic_index_in_dim(text, length - back, 1)
        still &= (jnp.roll(text, back, axis=1) == ending) & (places >= back)
        same += still
    same = jnp.where(places < length, same, -1)
    # The longest ending first, then the latest place.
    best = jnp.argmax(same * width + places, axis=1)
    columns = jnp.minimum(best[:, None] + jnp.arange(count), width - 1)
    return jnp.take_along_axis(text, columns, axis=1)


def _append(start: Start, state: State, logits: jax.Array, kept: jax.Array) -> State:
    """Writes the most probable tokens of the first ``kept`` + 1 of the logits [B, T, V]."""
    columns, ended, last, scores = [], state.ended, state.last, state.scores
    for j in range(logits.shape[1]):
        token, log_prob = most_probable(logits[:, j])
        token = jnp.where(ended, PAD_ID, token)
        counts = j <= kept
        columns.append(jnp.where(counts, token, PAD_ID))
        last = jnp.where(counts, token, last)
        scores += jnp.where(counts & ~ended, log_prob, 0.0)
        ends = start.ends(token) | (state.step + j + 1 >= start.limits)
        ended |= counts & ends
    block = jnp.stack(columns, axis=1)
    return state._replace(
        step=state.step + kept + 1,
        tokens=jax.lax.dynamic_update_slice(state.tokens, block, (0, state.step)),
        last=last,
        ended=ended,
        scores=scores,
    )
