"""The loss of an encoder's head for a task: classes or a number, tags, a span.

Dimensions: B batch, S length, U labels of a row: 1, S (tags) or 2 (a span), L classes.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.models.heads import LOGITS
from t5x_lite.ranges import Fraction
from t5x_lite.training.losses import check_coefficients, token_losses

Batch = dict[str, jax.Array]
# What an objective makes (data/objectives/heads.py), and the head that learns it.
FEATURES = {"encoder_label": "classes", "encoder_tags": "tags", "encoder_span": "span"}


def head_of(features: Iterable[str]) -> str | None:
    """The head that learns from batches with these features; None if none does."""
    return next((head for name, head in FEATURES.items() if name in features), None)


@dataclasses.dataclass(frozen=True)
class HeadLoss:
    """The mean over labels of the cross entropy; of a number's, of the squared error.

    Of a span, over its first and last token, which are classes among the row's tokens. What
    `train` takes by itself for an objective of heads.
    """

    label_smoothing: Fraction = 0.0

    def __post_init__(self):
        check_coefficients(self.label_smoothing, 0.0)

    def check(self, model: Any, features: Iterable[str], num_microbatches: int) -> None:
        """UserError for a model or batches of model features (names) that it can't do with."""
        head, heads = head_of(features), model.config.encoder_heads
        if head is None:
            raise UserError(
                "HeadLoss needs an objective that makes labels: use Classes, Tags or Span, or "
                "another loss."
            )
        if head not in heads:
            raise UserError(f"the objective is for the head {head!r}; encoder_heads = {heads!r}.")
        if head != "tags" and "encoder_segment_ids" in features:
            raise UserError(f"the head {head!r} wants one example to a row: set PACK = False.")
        types, transformer_xl = model.config.token_types, model.config.positions == "transformer_xl"
        if "encoder_types" in features and types < 2 and not transformer_xl:
            raise UserError(
                f"token_types = {types}, and the objective makes two: set token_types = 2."
            )

    def prepare(self, batch: Batch) -> tuple[jax.Array, Batch]:
        """(labels in the batch, it with "loss_weights" and "real_weights" float32 [B, U])."""
        weights = (_labels(batch) != 0).astype(jnp.float32)
        more = {"loss_weights": weights, "real_weights": weights}
        return jnp.maximum(jnp.sum(weights), 1.0), batch | more

    def sums(self, model: Any, params: Any, batch: Batch, real: jax.Array, **options) -> tuple:
        """As of `step.Loss`. Nothing is a hit where numbers are predicted."""
        found, aux = model.encoded(params, batch, **options)
        weights = batch["loss_weights"]
        losses, hits = self.losses(found, batch, model.config.num_labels)
        weight = jnp.sum(weights)
        sums = jnp.sum(losses * weights), jnp.float32(0.0), weight, jnp.sum(hits * real)
        return *sums, {name: value * weight for name, value in aux.items()}

    def losses(
        self, found: dict[str, Any], batch: Batch, num_labels: int
    ) -> tuple[jax.Array, jax.Array]:
        """Loss and hit of each label, float32 and bool [B, U]; of no meaning where there is none.

        found: what the model ends with; see `models.heads.Heads`.
        """
        head, labels = head_of(batch), _labels(batch)
        assert head is not None
        logits = found[LOGITS[head]]
        if head == "classes" and num_labels == 1:
            values = jax.lax.bitcast_convert_type(labels, jnp.float32)
            return jnp.square(logits - values), jnp.zeros(labels.shape, bool)
        if head == "classes":
            logits = logits[:, None]  # [B, 1, L]
        elif head == "span":
            there = batch["encoder_input_tokens"][..., None] > 0
            logits = jnp.where(there, logits, -1e9).swapaxes(1, 2)  # [B, 2, S]
        losses, _, _ = token_losses(
            logits, labels - 1, label_smoothing=self.label_smoothing, z_loss=0.0
        )
        return losses, jnp.argmax(logits, axis=-1) == labels - 1

    def evaluate(self, model: Any, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """loss, target_tokens (labels) and hits of a batch, without dropout, as sums."""
        _, batch = self.prepare(batch)
        plain = HeadLoss(label_smoothing=0.0)
        total, _, count, hits, _ = plain.sums(model, params, batch, batch["real_weights"])
        sums = {"loss": total, "target_tokens": count, "hits": hits}
        if model.config.num_labels == 1:
            sums["squared_error"] = total
        return sums


def _labels(batch: Batch) -> jax.Array:
    """int32 [B, U]: 0 where there is no label."""
    return next(batch[name] for name in FEATURES if name in batch)


def loss_for(features: Iterable[str]) -> HeadLoss | None:
    """What an objective of heads is learnt by; None for others."""
    return HeadLoss() if head_of(features) else None
