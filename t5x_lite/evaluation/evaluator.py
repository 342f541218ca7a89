"""Loss, perplexity, accuracy and bits per byte on held-out data, and the baseline to beat."""

import math
from collections.abc import Callable, Iterable, Sequence
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
    return summarize(total_sums(eval_step, params, batches))


def total_sums(
    eval_step: Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]],
    params: Any,
    batches: Iterable[dict[str, jax.Array]],
) -> dict[str, float]:
    """The sums that ``eval_step`` gives of global batches, added up."""
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
    return totals


def mix(parts: Sequence[tuple[float, int, dict[str, Any]]]) -> dict[str, Any]:
    """The sums of a mixture from (share, examples, sums) of each of its tasks.

    Every example of a task weighs share / examples, so that a task counts by its rate and not by
    how much of it is evaluated: what training would see. The weights are scaled so that those of
    all examples add up to their number.
    """
    count, shares = sum(n for _, n, _ in parts), sum(share for share, _, _ in parts)
    totals: dict[str, Any] = {}
    for share, examples, sums in parts:
        weight = share / shares * count / examples
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + weight * value
    return totals


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


def target_counts(batches: Iterable[Features], size: int) -> np.ndarray | None:
    """How often each of ``size`` ids is a target, int64 [size]; None if no tokens are predicted."""
    counts = np.zeros(size, np.int64)
    for batch in batches:
        side = target_side(batch)
        if f"{side}_target_tokens" not in batch:
            return None
        targets = batch[f"{side}_target_tokens"][batch[f"{side}_loss_weights"] > 0]
        counts += np.bincount(targets, minlength=len(counts))
    return counts


def unigram_baseline(counts: np.ndarray, byte_lengths: np.ndarray) -> dict[str, float]:
    """The loss of the best model that ignores all context, on targets with these ``counts``.

    It knows the held-out frequencies themselves (the entropy of their distribution), so no
    unigram model can do better. ``counts`` [vocabulary size] may be weighted, as `mix` weighs.
    """
    tokens, seen = counts.sum(), counts[counts > 0]
    loss = float(-(seen * np.log(seen / tokens)).sum())
    return {
        "loss": loss / float(tokens),
        "bits_per_byte": loss / math.log(2) / max(float(counts @ byte_lengths), 1.0),
    }
