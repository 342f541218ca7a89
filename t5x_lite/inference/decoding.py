"""Text generation: prompts in, tokens and scores out, in one compiled call.

Searches are in sampling.py, beam.py and lookup.py; what they start from is in prefill.py.
Dimensions: B batch, n decodes of a batch entry, P prompt width, N new tokens, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.inference.prefill import PAD_ID, Start, eos_ids_of, prefill
from t5x_lite.inference.sampling import Greedy


class Decoded(NamedTuple):
    """tokens [B, n, length] int32, padding after EOS; scores [B, n] float32. Best first."""

    tokens: jax.Array
    scores: jax.Array


class Method(Protocol):
    """A search. Hashable, because `generate` compiles once for each.

    It may have ``ahead`` and ``tokens_a_step`` (see `prefill`), which are 0 and 1 otherwise.
    """

    def search(self, start: Start, rng) -> tuple[jax.Array, jax.Array]:
        """Returns tokens [B, n, start.size] int32 and scores [B, n] float32, best first."""


def generate(
    model,
    params,
    batch: dict,
    *,
    method: Method | None = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    prompts: jax.Array | None = None,
    bidirectional_prompts: bool = False,
    include_prompts: bool = False,
    rng: jax.Array | None = None,
    eos_id: int | Sequence[int] = 1,
) -> Decoded:
    """Decodes until every row has EOS or is full. Compiled once per model, method and shapes.

    Args:
      model: has start_decoding, decode, for_steps, rewind and map_cache (see
        `t5x_lite.models.model.Model`), and is hashable.
      params: of the model, perhaps `weights.compressed`.
      batch: `encoder_input_tokens` [B, length] int32 for an encoder-decoder; for a decoder-only
        model any array of B rows, or {} beside prompts.
      method: Greedy() if None, or Sample(...), BeamSearch(...) or Lookup(...).
      max_new_tokens: N, the same limit for every row; or
      max_length: the limit of prompt plus new tokens, as in T5X. A row whose prompt is that long
        already gets no new token and score 0.
      prompts: [B, P] int32, tokens that the decoder is forced to begin with, without the start
        token; 0 = absent, and rows may differ in length (even be empty). They cost one pass.
      bidirectional_prompts: prompt tokens see each other in both directions (prefix LM).
      include_prompts: put each row's prompt before its new tokens.
      rng: a jax random key; only Sample needs it.
      eos_id: the id that ends a row, or several of which each does: `Vocabulary.eos_ids`.

    Returns:
      Decoded. `length` is N (or max_length), with include_prompts P + N (or max_length). Scores
      are sums of the new tokens' log-probabilities (EOS included, prompts not), for BeamSearch
      divided by its length penalty. T5X's order is the reverse: its best is last.

    Raises:
      UserError: not exactly one positive limit; prompts that are not [B, P]; Sample without rng; no
        EOS id.
    """
    limits = [limit for limit in (max_new_tokens, max_length) if limit is not None]
    if len(limits) != 1 or limits[0] < 1:
        raise UserError(
            f"max_new_tokens is {max_new_tokens} and max_length is {max_length}, expected exactly "
            "one of them, 1 or more."
        )
    if prompts is None and not batch:
        raise UserError("Neither prompts nor a batch: pass prompts [B, P], 0 where absent.")
    if prompts is not None:
        prompts = jnp.asarray(prompts, jnp.int32)
        rows = {x.shape[0] for x in batch.values()}
        if prompts.ndim != 2 or not rows <= {prompts.shape[0]}:
            raise UserError(
                f"prompts have shape {prompts.shape}, expected [B, P] with the batch's number of "
                f"rows ({', '.join(map(str, rows)) or 'any'})."
            )
    tokens, scores = _generate(
        model,
        params,
        batch,
        prompts,
        rng,
        method=Greedy() if method is None else method,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        bidirectional=bidirectional_prompts,
        include_prompts=include_prompts,
        eos_ids=eos_ids_of(eos_id),
    )
    return Decoded(tokens, scores)


@functools.partial(
    jax.jit,
    static_argnums=0,
    static_argnames=(
        "method",
        "max_new_tokens",
        "max_length",
        "bidirectional",
        "include_prompts",
        "eos_ids",
    ),
)
def _generate(model, params, batch, prompts, rng, *, method, include_prompts, **options):
    options["ahead"] = getattr(method, "ahead", 0)
    options["tokens_a_step"] = getattr(method, "tokens_a_step", 1)
    start = prefill(model, params, batch, prompts, **options)
    tokens, scores = method.search(start, rng)
    if include_prompts and prompts is not None:
        width = options["max_length"] or prompts.shape[1] + start.size
        tokens = _join(prompts, tokens, width)
    return tokens, scores


def _join(prompts: jax.Array, tokens: jax.Array, width: int) -> jax.Array:
    """prompts [B, P] without their padding, then tokens [B, n, N]: [B, n, width], padded."""
    both = jnp.concatenate(
        [jnp.broadcast_to(prompts[:, None], (*tokens.shape[:2], prompts.shape[1])), tokens], axis=2
    )
    # A new token may be 0 too: only what is absent from the prompts goes to the end.
    absent = jnp.pad(prompts == PAD_ID, ((0, 0), (0, tokens.shape[2])))
    order = jnp.argsort(absent, axis=1, stable=True)
    joined = jnp.take_along_axis(both, order[:, None], axis=2)
    return joined[:, :, :width].astype(jnp.int32)


def given_prompts(batch: dict) -> jax.Array:
    """The prompts [B, length] int32 within decoder-only features [B, length] of pairs.

    They are the tokens that aren't learnt, and 0 elsewhere.
    """
    return batch["decoder_target_tokens"] * (batch["decoder_loss_weights"] == 0)
