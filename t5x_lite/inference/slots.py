"""Decoding in slices: rows of one batch that begin, go on for a few tokens, and end by themselves.

A row has its own cache, in which its text begins at column 0, and its own key for draws: what it
gets doesn't depend on who else is in the batch, nor on when they came. `decoding.generate` is for
batches that begin and end together.

Dimensions: R rows (slots), W prompt width, k tokens of a slice, V vocabulary.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_lite.inference.prefill import is_any_of, left_pad
from t5x_lite.inference.sampling import COLDEST, MASKED, most_probable
from t5x_lite.inference.weights import expanded
from t5x_lite.models.model import Model
from t5x_lite.models.transformer import decoder_for_steps, unstack_layers
from t5x_lite.parallel.platform import platform
from t5x_lite.parallel.rules import active

TOP = 5  # alternatives that are reported, at most


class Rows(NamedTuple):
    """What differs from row to row, each [R]; the host has them, a slice reads them.

    last: int32, the last token. written: int32, new tokens so far. limit: int32, how many there may
    be; a row of written >= limit stands still. seed: uint32. temperature, top_p: float32 and top_k:
    int32, as of `Sample`. alternatives: bool, whether `Chosen.top_*` are wanted.
    """

    last: np.ndarray
    written: np.ndarray
    limit: np.ndarray
    seed: np.ndarray
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    alternatives: np.ndarray

    @classmethod
    def empty(cls, rows: int) -> "Rows":
        def full(value, dtype):
            return np.full((rows,), value, dtype)

        last, written, limit = full(0, np.int32), full(0, np.int32), full(0, np.int32)
        shaping = full(0, np.float32), full(0, np.int32), full(1, np.float32)
        return cls(last, written, limit, full(0, np.uint32), *shaping, full(False, bool))

    def at(self, row: int) -> "Rows":
        return Rows(*(x[row : row + 1].copy() for x in self))


class Chosen(NamedTuple):
    """tokens int32 and their log_probs float32 under the model itself, [..., R]; top_ids and
    top_log_probs [..., R, TOP], the most probable tokens (zeros if no row wants them)."""

    tokens: Any
    log_probs: Any
    top_ids: Any
    top_log_probs: Any


@dataclasses.dataclass(frozen=True)
class Slots:
    """The compiled functions. Hashable: what they compile is shared by all that are equal.

    model: of `for_slots`. columns: of each row's cache, prompts' width and new tokens together.
    eos_ids: of which each ends a row.
    bidirectional: whether a prompt's tokens see each other in both directions (prefix LM).
    """

    model: Model
    rows: int
    columns: int
    eos_ids: tuple[int, ...] = (1,)
    bidirectional: bool = False

    def empty(self, params: Any, batch: dict) -> Any:
        """An empty cache for R rows. ``batch``: as of `start`, only its shapes are read."""
        one = jax.eval_shape(lambda p, b: self._begin(p, b)[1], params, batch)
        cache = jax.tree.map(lambda x: jnp.zeros((self.rows, *x.shape), x.dtype), one)
        # On the mesh, as what comes back from it: else all is compiled once more for that.
        found = active()
        return cache if found is None else jax.device_put(cache, NamedSharding(found[0], P()))

    def start(
        self, params: Any, cache: Any, batch: dict, row: int | np.integer, its: Rows
    ) -> tuple[Chosen, Any]:
        """Reads a prompt into a row of the cache, and chooses its first token.

        Args:
          cache: of all rows; it is donated.
          batch: {"encoder_input_tokens": [1, length]}, or {"prompts": [1, W]}: int32, 0 = absent.
          its: of this row alone, each [1].

        Returns:
          Chosen of [1], and the cache.
        """
        # In two steps: what can fail is done before the cache of all rows is given away.
        chosen, new = jax.block_until_ready(_read(self, params, batch, its))
        return chosen, _put(cache, new, row)

    def slice(self, params: Any, cache: Any, rows: Rows, length: int) -> tuple[Chosen, Any]:
        """Goes on for ``length`` tokens in every row that hasn't ended; the cache is donated.

        Returns:
          Chosen of [length, R], of which a row's columns after its EOS or limit say nothing.
        """
        return _slice(self, params, cache, rows, length)

    def _begin(self, params: Any, batch: dict) -> tuple[jax.Array, Any]:
        prompts = batch.get("prompts")
        if prompts is None:
            prompts = jnp.zeros((1, 0), jnp.int32)
        tokens, valid = left_pad(prompts)
        read = {name: value for name, value in batch.items() if name != "prompts"}
        whole = expanded(params)
        cache = self.model.start_decoding(whole, {**read, "tokens": tokens}, self.columns)
        logits, cache = self.model.decode(
            whole,
            cache,
            tokens,
            valid=valid,
            bidirectional=valid if self.bidirectional else None,
            last_only=True,
        )
        return logits[:, 0], cache


def for_slots(model: Model, params: dict[str, Any], rows: int) -> tuple[Model, dict[str, Any]]:
    """The model and its parameters in the form in which slices are fast, once and for all.

    As `Model.for_steps`, but of the encoder, too, so that nothing is kept twice.
    """
    if platform() != "cpu":
        return model, params
    stacks = {"decoder": decoder_for_steps(params["decoder"], rows)}
    if "encoder" in params:
        stacks["encoder"] = unstack_layers(params["encoder"])
    return Model(dataclasses.replace(model.config, scan_layers=False)), params | stacks


@functools.partial(jax.jit, static_argnums=0)
def _read(slots: Slots, params, batch, its: Rows):
    logits, new = slots._begin(params, batch)
    return _choose(logits, its, its.written), new


@functools.partial(jax.jit, donate_argnums=0)
def _put(cache, new, row):
    return jax.tree.map(lambda whole, one: whole.at[row].set(one), cache, new)


@functools.partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def _slice(slots: Slots, params, cache, rows: Rows, length: int):
    def decode(cache, token):
        logits, cache = slots.model.decode(expanded(params), cache, token[None, None])
        return logits[0, 0], cache

    def more(carry):
        i, _, _, ended, _, _ = carry
        return (i < length) & ~jnp.all(ended)

    def body(carry):
        i, cache, last, ended, count, chosen = carry
        # Each row writes at its own column, which `Model.decode` can't by itself: its index is one.
        logits, cache = jax.vmap(decode)(cache, last)
        new = _choose(logits, rows, count)
        chosen = jax.tree.map(lambda all_, one: all_.at[i].set(one), chosen, new)
        count += 1
        ended |= is_any_of(new.tokens, slots.eos_ids) | (count >= rows.limit)
        return i + 1, cache, new.tokens, ended, count, chosen

    some = jax.ShapeDtypeStruct((slots.rows, slots.model.config.vocab_size), jnp.float32)
    one = jax.eval_shape(_choose, some, rows, rows.written)
    chosen = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), one)
    ended = rows.written >= rows.limit
    carry = (jnp.int32(0), cache, jnp.asarray(rows.last), ended, jnp.asarray(rows.written), chosen)
    _, cache, _, _, _, chosen = jax.lax.while_loop(more, body, carry)
    return chosen, cache


def _choose(logits: jax.Array, rows: Rows, count: jax.Array) -> Chosen:
    """Each row's next token, of logits [R, V]: a function of its logits, seed and count alone."""
    best, _ = most_probable(logits)
    warm = rows.temperature > COLDEST

    def draw():
        def key(seed, number):
            return jax.random.fold_in(jax.random.key(seed), number)

        shaped = shape_rows(logits, rows.temperature, rows.top_k, rows.top_p)
        drawn = jax.vmap(jax.random.categorical)(jax.vmap(key)(rows.seed, count), shaped)
        return jnp.where(warm, drawn.astype(jnp.int32), best)

    def top():
        found, ids = jax.lax.top_k(log_probs, min(TOP, logits.shape[-1]))
        return ids.astype(jnp.int32), found

    tokens = jax.lax.cond(jnp.any(warm), draw, lambda: best)
    log_probs = jax.nn.log_softmax(logits)
    shapes = jax.eval_shape(top)
    nothing = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # noqa: E731
    top_ids, top_log_probs = jax.lax.cond(jnp.any(rows.alternatives), top, nothing)
    chosen = jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
    return Chosen(tokens, chosen, top_ids, top_log_probs)


def shape_rows(logits, temperature, top_k, top_p) -> jax.Array:
    """`sampling.shape_logits` of [R, V], where every row has its own numbers [R]."""
    logits = logits / jnp.maximum(temperature, COLDEST)[:, None]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    last = jnp.where(top_k > 0, jnp.minimum(top_k, logits.shape[-1]), logits.shape[-1]) - 1
    least = jnp.take_along_axis(ordered, last[:, None], axis=-1)
    probs = jax.nn.softmax(jnp.where(ordered >= least, ordered, MASKED))
    kept = jnp.cumsum(probs, axis=-1) - probs < top_p[:, None]
    # As where all is kept sums may come to a little more than 1.
    kept |= (top_p >= 1)[:, None]
    kept |= jnp.arange(kept.shape[-1]) == 0  # the most probable one, of a top_p of 0, too
    least = jnp.maximum(least, jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True))
    return jnp.where(logits >= least, logits, MASKED)
