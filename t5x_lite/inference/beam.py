"""Beam search with T5X's rules.

Dimensions: B batch, K beams, R = B * K rows, N new tokens, V vocabulary.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.inference.prefill import PAD_ID, Start
from t5x_lite.ranges import Positive

UNFINISHED = -1e7  # the score of a beam that holds no sequence; T5X's "negative infinity"


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """The K best sequences that a search of width K finds.

    A finished sequence (one that has EOS) scores log-probability / ((5 + length) / 6)^alpha, with
    a length that counts its prompt and EOS (https://arxiv.org/abs/1609.08144, eq. 14). A batch
    entry stops when no live beam can beat its worst finished one. If no sequence of an entry
    finished, its live ones are returned with their plain log-probabilities; if only some did, the
    other places hold padding and score -1e7.
    """

    beams: Positive = 4
    alpha: float = 0.6

    def __post_init__(self):
        if self.beams < 1:
            raise UserError(f"BeamSearch.beams is {self.beams}, expected 1 or more.")
        if not self.alpha >= 0:
            # The bound that ends the search holds only if the penalty grows with the length.
            raise UserError(f"BeamSearch.alpha is {self.alpha}, expected 0 (no penalty) or more.")

    @property
    def tokens_a_step(self) -> int:
        """How many tokens a step reads for each batch entry."""
        return self.beams

    def search(self, start: Start, rng=None) -> tuple[jax.Array, jax.Array]:
        """Returns tokens [B, K, N] int32 and scores [B, K] float32, best first."""
        del rng
        beams = self.beams

        def body(state: _State) -> _State:
            last = jax.lax.dynamic_index_in_dim(state.live, state.step - 1, 2, keepdims=False)
            cache = start.map_cache(lambda x, axis: _reorder(x, state.parents, axis), state.cache)
            logits, cache = start.step(cache, last.reshape(-1))
            logits = logits.reshape(-1, beams, logits.shape[-1])
            return self._extend(start, state._replace(cache=cache), logits)

        state = self._extend(start, self._begin(start), start.logits[:, None])
        state = jax.lax.while_loop(lambda s: ~jnp.all(s.done), body, state)
        any_finished = state.finished_scores[:, :1] > UNFINISHED
        tokens = jnp.where(any_finished[:, :, None], state.finished, state.live)
        scores = jnp.where(any_finished, state.finished_scores, state.live_log_probs)
        alive = _alive(scores)
        return jnp.where(alive[:, :, None], tokens, PAD_ID), jnp.where(alive, scores, UNFINISHED)

    def _begin(self, start: Start) -> "_State":
        entries, beams = start.limits.shape[0], self.beams
        nothing = jnp.full((entries, beams, start.size), PAD_ID, jnp.int32)
        unfinished = jnp.full((entries, beams), UNFINISHED, jnp.float32)
        return _State(
            step=jnp.int32(0),
            live=nothing,
            # All beams are equal at first: one alone may propose tokens.
            live_log_probs=unfinished.at[:, 0].set(0.0),
            finished=nothing,
            finished_scores=unfinished,
            parents=jnp.zeros((entries, beams), jnp.int32),
            done=start.limits <= 0,
            cache=start.map_cache(lambda x, axis: jnp.repeat(x, beams, axis=axis), start.cache),
        )

    def _penalty(self, length: jax.Array) -> jax.Array:
        return ((5.0 + length) / 6.0) ** self.alpha

    def _extend(self, start: Start, state: "_State", logits: jax.Array) -> "_State":
        """Every live beam proposes all tokens (logits [B, K or 1, V]); the best live on or end."""
        beams, vocabulary = self.beams, logits.shape[-1]
        log_probs = jax.nn.log_softmax(logits) + state.live_log_probs[:, :, None]
        flat = log_probs.reshape(log_probs.shape[0], beams * vocabulary)
        # A beam has E EOS ids, so of (1 + E) K candidates K live on even if the best all end.
        count = min((1 + len(start.eos_ids)) * beams, flat.shape[1])
        proposed, index = jax.lax.top_k(flat, count)
        parents, tokens = index // vocabulary, index % vocabulary
        sequences = jax.lax.dynamic_update_slice(
            _pick(state.live, parents), tokens[:, :, None], (0, 0, state.step)
        )
        # A dead beam must not finish: divided by the penalty it would outrank UNFINISHED.
        ends = start.ends(tokens) & _alive(proposed)

        live_log_probs, keep = jax.lax.top_k(proposed + UNFINISHED * ends, beams)
        length = (start.prompt_lengths + state.step + 1)[:, None]
        scores = jnp.where(ends, proposed / self._penalty(length), UNFINISHED)
        pool = jnp.concatenate([state.finished_scores, scores], axis=1)
        finished_scores, best = jax.lax.top_k(pool, beams)

        longest = start.prompt_lengths + start.limits
        hope = live_log_probs[:, 0] / self._penalty(longest)
        new = state._replace(
            live=_pick(sequences, keep),
            live_log_probs=live_log_probs,
            finished=_pick(jnp.concatenate([state.finished, sequences], axis=1), best),
            finished_scores=finished_scores,
            parents=_pick(parents, keep),
            done=(state.step + 1 >= start.limits) | (finished_scores[:, -1] > hope),
        )
        # An entry that is done stays as it is, however long the others go on.
        frozen = {
            name: jnp.where(
                state.done.reshape((-1,) + (1,) * (x.ndim - 1)), getattr(state, name), x
            )
            for name, x in new._asdict().items()
            if name not in ("step", "cache")
        }
        return new._replace(step=state.step + 1, **frozen)


class _State(NamedTuple):
    step: jax.Array  # int32: new tokens so far
    live: jax.Array  # [B, K, N], best first
    live_log_probs: jax.Array  # [B, K]
    finished: jax.Array  # [B, K, N], best first
    finished_scores: jax.Array  # [B, K]
    parents: jax.Array  # [B, K]: the beam whose cache each live one goes on from
    done: jax.Array  # [B] bool
    cache: Any  # R rows, in the order before `parents`


def _alive(scores: jax.Array) -> jax.Array:
    return scores > UNFINISHED / 2


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [B, K, ...], index [B, M] -> [B, M, ...]."""
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)


def _reorder(x: jax.Array, parents: jax.Array, axis: int) -> jax.Array:
    """Reorders the rows of a cache array [..., R, ...] within each batch entry."""
    entries, beams = parents.shape
    rows = (parents + beams * jnp.arange(entries)[:, None]).reshape(-1)
    return jnp.take(x, rows, axis=axis, mode="clip")
