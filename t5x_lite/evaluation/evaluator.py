"""Loss, perplexity, accuracy and bits per byte on held-out data, and the baseline to beat."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from t5x_lite.training.losses import target_side

AHEAD = 4  # batches that are started before the result of an earlier one is waited for
Features = dict[str, np.ndarray]


def evaluate(
    eval_step: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
    params: Any,
    batches: Iterable[dict[str, jax.Array]],
) -> dict[str, float]:
    """Runs ``eval_step`` over global batches and returns what `summarize` makes of the sums."""
    totals: dict[str, float] = {}
    # Sums stay on the device until the end. The host runs ahead of it by some batches only: who
    # looks whether to stop, between them, must not find all of them started.
    sums: list[dict[str, jax.Array]] = []
    for batch in batches:
        sums.append(eval_step(params, batch))
        if len(sums) > AHEAD:
            jax.block_until_ready(sums[-1 - AHEAD])
    for batch_sums in jax.device_get(sums):
        for name, value in batch_sums.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return summarize(totals)


def summarize(totals: dict[str, float]) -> dict[str, float]:
    """Sums over target tokens -> loss (nats per token), perplexity, accuracy, bits_per_byte.

    Where texts come in pairs, also next_sentence_loss and _accuracy, or positive_similarity.
    """
    tokens = totals["target_tokens"]
    metrics = {
        "loss": totals["loss"] / tokens,
        "perplexity": math.exp(min(totals["loss"] / tokens, 700.0)),
        "accuracy": totals["hits"] / tokens,
        "target_tokens": tokens,
    }
    if totals.get("bytes"):
        metrics["bits_per_byte"] = totals["loss"] / math.log(2) / totals["bytes"]
    if totals.get("pairs"):
        for name in ("next_sentence_loss", "next_sentence_accuracy"):
            metrics[name] = totals[name] / totals["pairs"]
    if "squared_error" in totals:
        del metrics["perplexity"], metrics["accuracy"]  # of numbers
    if "positive_similarity" in totals:
        del metrics["perplexity"]  # of rows of a batch, which isn't worth a name
        metrics["positive_similarity"] = totals["positive_similarity"] / tokens
    return metrics


def unigram_baseline(batches: Iterable[Features], byte_lengths: np.ndarray) -> dict[str, float]:
    """The loss of the best model that ignores all context, on the same target tokens.

    It knows the held-out frequencies themselves (the entropy of their distribution), so no
    unigram model can do better. {} where no tokens are predicted.
    """
    counts = np.zeros(len(byte_lengths), np.int64)
    for batch in batches:
        side = target_side(batch)
        if f"{side}_target_tokens" not in batch:
            return {}
        targets = batch[f"{side}_target_tokens"][batch[f"{side}_loss_weights"] > 0]
        counts += np.bincount(targets, minlength=len(counts))
    tokens, seen = counts.sum(), counts[counts > 0]
    loss = float(-(seen * np.log(seen / tokens)).sum())
    return {
        "loss": loss / float(tokens),
        "bits_per_byte": loss / math.log(2) / max(float(counts @ byte_lengths), 1.0),
    }
