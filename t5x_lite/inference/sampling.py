"""Greedy decoding and sampling: one token a row and step, until every row has ended.

Dimensions: B batch, n samples of a batch entry, R = B * n rows, N new tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.inference.prefill import PAD_ID, Start
from t5x_lite.ranges import Count, NotNegative, Positive

MASKED = -1e7  # exp(MASKED) is 0 in float32, and unlike -inf it survives a subtraction
COLDEST = 1e-4  # temperatures up to this one are greedy: dividing by them would overflow


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most probable token at every step; scores are the model's log-probabilities."""

    def search(self, start: Start, rng=None) -> tuple[jax.Array, jax.Array]:
        """Returns tokens [B, 1, N] int32 and log-probabilities [B, 1] float32."""
        del rng
        return _autoregress(start, most_probable, 1, None)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Independent samples: logits / temperature, then top_k, then top_p, then a draw.

    The same `jax.random.PRNGKey` draws the tokens that T5X's `temperature_sample` draws (where
    there are no prompts), because the key is split at every step as there. A row's draws depend on
    its place in the batch.

    temperature: 0 (or up to 1e-4) is greedy.
    top_k: only the k most probable tokens (and those tied with the k-th); 0: all.
    top_p: of these, renormalised, the smallest set of most probable tokens with a mass of at least
      p (nucleus sampling, https://arxiv.org/abs/1904.09751); 1: all.
    num_samples: n, samples of each batch entry.
    rescale_log_probs: scores are log-probabilities under the distribution that was drawn from
      (T5X's default), instead of under the model's own.
    """

    temperature: NotNegative = 1.0
    top_k: Count = 0
    top_p: float = 1.0
    num_samples: Positive = 1
    rescale_log_probs: bool = False

    def __post_init__(self):
        if not self.temperature >= 0:
            raise UserError(f"Sample.temperature is {self.temperature}, expected 0 or more.")
        if self.top_k < 0:
            raise UserError(f"Sample.top_k is {self.top_k}, expected 1 or more, or 0 for all.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"Sample.top_p is {self.top_p}, expected 0 < top_p <= 1 (1: all).")
        if self.num_samples < 1:
            raise UserError(f"Sample.num_samples is {self.num_samples}, expected 1 or more.")

    @property
    def tokens_a_step(self) -> int:
        """How many tokens a step reads for each batch entry."""
        return self.num_samples

    def search(self, start: Start, rng=None) -> tuple[jax.Array, jax.Array]:
        """Returns tokens [B, n, N] int32 and log-probabilities [B, n] float32, best first."""
        if self.temperature <= COLDEST:
            return _autoregress(start, most_probable, self.num_samples, None)
        if rng is None:
            raise UserError("Sample needs rng, found None: pass rng=jax.random.key(seed).")

        def draw(logits, key):
            shaped = shape_logits(logits, self.temperature, self.top_k, self.top_p)
            token = jax.random.categorical(key, shaped).astype(jnp.int32)
            return token, _log_prob(shaped if self.rescale_log_probs else logits, token)

        return _autoregress(start, draw, self.num_samples, rng)


def shape_logits(logits: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """[..., V] logits divided by temperature > 0, with -1e7 where top_k or top_p leaves none."""
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, MASKED)
    if top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered)
        # A token stays while the mass before it is short of top_p: the first always does, also
        # where a tiny top_p is 0 in float32.
        kept = (jnp.cumsum(probs, axis=-1) - probs < top_p) | (jnp.arange(probs.shape[-1]) == 0)
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, MASKED)
    return logits


def most_probable(logits, key=None):
    """logits [R, V] -> (token int32 [R], its log-probability [R])."""
    del key
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return token, _log_prob(logits, token)


def _log_prob(logits, token):
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


class _State(NamedTuple):
    step: jax.Array  # int32: new tokens so far
    tokens: jax.Array  # [R, N]
    last: jax.Array  # [R]
    ended: jax.Array  # [R] bool
    scores: jax.Array  # [R] float32
    rng: Any  # key of the next step, or None
    cache: Any


def _autoregress(start: Start, choose: Callable, copies: int, rng) -> tuple[jax.Array, jax.Array]:
    """Appends `choose(logits [R, V], key) -> (token [R], log-probability [R])` until all ended."""

    def repeat(x, axis=0):
        return jnp.repeat(x, copies, axis=axis) if copies > 1 else x

    limits = repeat(start.limits)
    rows = limits.shape[0]

    def append(state: _State, logits) -> _State:
        key, rng = (None, None) if state.rng is None else jax.random.split(state.rng)
        token, log_prob = choose(logits, key)
        token = jnp.where(state.ended, PAD_ID, token)
        return state._replace(
            step=state.step + 1,
            tokens=jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step)),
            last=token,
            ended=state.ended | start.ends(token) | (state.step + 1 >= limits),
            scores=state.scores + jnp.where(state.ended, 0.0, log_prob),
            rng=rng,
        )

    def body(state: _State) -> _State:
        logits, cache = start.step(state.cache, state.last)
        return append(state._replace(cache=cache), logits)

    state = _State(
        step=jnp.int32(0),
        tokens=jnp.full((rows, start.size), PAD_ID, jnp.int32),
        last=jnp.full((rows,), PAD_ID, jnp.int32),
        ended=limits <= 0,
        scores=jnp.zeros((rows,), jnp.float32),
        rng=rng,
        cache=start.map_cache(repeat, start.cache),
    )
    state = append(state, repeat(start.logits))
    state = jax.lax.while_loop(lambda s: ~jnp.all(s.ended), body, state)
    tokens = state.tokens.reshape(-1, copies, start.size)
    scores = state.scores.reshape(-1, copies)
    order = jnp.argsort(-scores, axis=1)
    return (
        jnp.take_along_axis(tokens, order[:, :, None], axis=1),
        jnp.take_along_axis(scores, order, axis=1),
    )
