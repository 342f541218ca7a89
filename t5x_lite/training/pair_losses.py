"""Losses over pairs of texts: BERT's next sentence, and contrastive sentence embeddings.

Dimensions: B batch (rows), D embed, M candidates.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.parallel.rules import constrain
from t5x_lite.ranges import AboveZero

Batch = dict[str, jax.Array]
POOLINGS = ("mean", "cls", "pooler")


# ------------------------------------------------------------------------------ next sentence


def with_pair_weights(batch: Batch, total: jax.Array | None = None) -> Batch:
    """The batch with "pair_weights" float32 [B, 1], if it has `encoder_pair_label`: of a global
    batch, 1 for each row that has a label, or so that they sum to ``total``."""
    if "encoder_pair_label" not in batch:
        return batch
    weights = (batch["encoder_pair_label"] > 0).astype(jnp.float32)
    if total is not None:
        weights *= total / jnp.maximum(jnp.sum(weights), 1.0)
    return batch | {"pair_weights": weights}


def next_sentence_sums(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Weighted sums over rows of cross entropy and hits: next_sentence_loss, _accuracy.

    logits: [B, 2]: class 0 says that the second text follows the first (BERT's order).
    batch: `encoder_pair_label` [B, 1], 2 if it does, 1 if not, 0 in rows without; `pair_weights`.
    """
    labels, weights = batch["encoder_pair_label"][:, 0], batch["pair_weights"][:, 0]
    follows = labels == 2
    chances = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    losses = -jnp.where(follows, chances[:, 0], chances[:, 1])
    hits = (jnp.argmax(logits, axis=-1) == 0) == follows
    return {
        "next_sentence_loss": jnp.sum(losses * weights),
        "next_sentence_accuracy": jnp.sum(hits * weights),
    }


# -------------------------------------------------------------------------------- contrastive


@dataclasses.dataclass(frozen=True)
class ContrastiveLoss:
    """SimCSE (Gao et al., https://arxiv.org/abs/2104.08821): each anchor finds its own positive.

    Cross entropy over the similarities / ``temperature`` of an anchor with the positives of all
    rows of the global batch, on whatever device, and with all hard negatives if there are any.
    ``hard_negative_weight``: added to the logit of an anchor's own negative.
    ``pooling``: how a text becomes a vector, see `Model.embed`. Dropout tells a text from itself.
    """

    temperature: AboveZero = 0.05
    pooling: str = "mean"
    hard_negative_weight: float = 0.0

    def __post_init__(self):
        if not self.temperature > 0.0:
            raise UserError(f"temperature = {self.temperature}: it must be above 0, such as 0.05.")
        if self.pooling not in POOLINGS:
            hint = did_you_mean(str(self.pooling), POOLINGS)
            raise UserError(f"pooling = {self.pooling!r}: expected {', '.join(POOLINGS)}.{hint}")

    def check(self, model: Any, features: Any, num_microbatches: int) -> None:
        """UserError for a model, model features (names) or micro-batches that it can't do with."""
        if "encoder_anchor" not in features:
            raise UserError(
                "ContrastiveLoss needs an objective that makes pairs: use DropoutPairs or "
                "GivenPairs, or another loss."
            )
        if "encoder_anchor_segment_ids" in features:
            raise UserError("ContrastiveLoss wants one text to a row: set PACK = False.")
        if num_microbatches != 1:
            raise UserError(
                f"num_microbatches = {num_microbatches} with ContrastiveLoss: the negatives are "
                f"those of the whole batch; set it to 1."
            )
        if self.pooling == "pooler" and "pooler" not in model.config.encoder_heads:
            raise UserError(
                f"pooling = 'pooler' with encoder_heads = {model.config.encoder_heads}: add "
                f"'pooler' to them."
            )

    def prepare(self, batch: Batch) -> tuple[jax.Array, Batch]:
        """(rows with a text, the batch with "loss_weights" and "real_weights" float32 [B, 1])."""
        weights = jnp.any(batch["encoder_anchor"] > 0, axis=1, keepdims=True).astype(jnp.float32)
        more = {"loss_weights": weights, "real_weights": weights}
        return jnp.maximum(jnp.sum(weights), 1.0), batch | more

    def sums(self, model: Any, params: Any, batch: Batch, real: jax.Array, **options) -> tuple:
        """As of `step.Loss`: a hit is an anchor that is nearest to its positive."""
        names = [n for n in ("anchor", "positive", "negative") if f"encoder_{n}" in batch]
        vectors = self._vectors(model, params, [batch[f"encoder_{n}"] for n in names], options)
        weights = batch["loss_weights"][:, 0]
        losses, hits = self.losses(*vectors, real=weights > 0)
        zero = jnp.float32(0.0)
        sums = jnp.sum(losses * weights), zero, jnp.sum(weights), jnp.sum(hits * real[:, 0])
        return *sums, {"positive_similarity": jnp.sum(vectors[0] * vectors[1] * weights[:, None])}

    def _vectors(self, model, params, tokens: list[jax.Array], options) -> list[jax.Array]:
        """float32 [B, D] of each, made in one pass, in which every row draws its own dropout."""
        length = max(ids.shape[1] for ids in tokens)
        tokens = [jnp.pad(ids, [(0, 0), (0, length - ids.shape[1])]) for ids in tokens]
        # Of each row its texts, one behind the other: no row leaves its device.
        rows = jnp.stack(tokens, axis=1).reshape(-1, length)
        rows = constrain(rows, "activation_batch", "activation_length")
        batch = {"encoder_input_tokens": rows}
        vectors = model.embed(params, batch, pooling=self.pooling, **options)
        vectors = vectors.reshape(-1, len(tokens), vectors.shape[-1])
        return [vectors[:, i] for i in range(len(tokens))]

    def losses(
        self,
        anchors: jax.Array,
        positives: jax.Array,
        negatives: jax.Array | None = None,
        *,
        real: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Cross entropy, and whether the nearest candidate is the right one; float32, bool [B].

        Vectors [B, D] of length 1; ``real`` bool [B] says which rows hold texts.
        """
        B, candidates = anchors.shape[0], [positives]
        if negatives is not None:
            candidates, real = [positives, negatives], jnp.tile(real, 2)
        # Every device needs all candidates, for the similarities of its own anchors.
        candidates = constrain(jnp.concatenate(candidates), None, None)
        logits = jnp.einsum("BD,MD->BM", anchors, candidates) / self.temperature
        logits = constrain(logits, "activation_batch", None)
        own, place = jnp.arange(B)[:, None], jnp.arange(candidates.shape[0])[None]
        if self.hard_negative_weight:
            logits += self.hard_negative_weight * (place == own + B)
        logits = jnp.where(real[None], logits, -1e10)
        right = jnp.sum(jnp.where(place == own, logits, 0.0), axis=1)
        losses = jax.nn.logsumexp(logits, axis=1) - right
        return losses, jnp.argmax(logits, axis=1) == own[:, 0]

    def evaluate(self, model: Any, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """loss, target_tokens (anchors) and hits of a batch, without dropout, as sums.

        Without dropout a text is its own pair at no distance: of interest are given pairs.
        """
        _, batch = self.prepare(batch)
        total, _, count, hits, aux = self.sums(model, params, batch, batch["real_weights"])
        return {"loss": total, "target_tokens": count, "hits": hits, **aux}
