"""Metrics of labels, by scikit-learn. Labels are texts; an output that is no label is wrong."""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.evaluation.metrics.base import Values, library, metric
from t5x_lite.ranges import Positive

_AVERAGES = ("macro", "micro", "weighted")


@metric()
def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Values:
    """The share of predictions that are their target, letter by letter."""
    right = [p == t for t, p in zip(targets, predictions, strict=True)]
    return {"accuracy": 100 * float(np.mean(right))}


@metric(needs="scikit-learn")
def matthews(targets: Sequence[str], predictions: Sequence[str]) -> Values:
    """Matthews' correlation coefficient, -100 to 100; an output that is no label is one more class.

    The GLUE benchmark's metric for CoLA. 0 where either side has one class only.
    """
    score = _sklearn().matthews_corrcoef(list(targets), list(predictions))
    return {"matthews": 100 * float(score)}


@metric(needs="scikit-learn")
def f1(
    targets: Sequence[str],
    predictions: Sequence[str],
    positive: str | None = None,
    average: str = "macro",
    labels: Sequence[str] | None = None,
) -> Values:
    """The harmonic mean of precision and recall.

    positive: the label that counts, of two: "f1". Without it, over all labels by `average`:
      "f1_macro" (the mean of each label's), "f1_micro" or "f1_weighted".
    labels: all there are; by default those of the targets, and `positive`. Of two labels, an output
      that is neither counts as the wrong one, as in T5.
    """
    return _of_labels("f1", targets, predictions, positive, average, labels)


@metric(needs="scikit-learn")
def precision(
    targets: Sequence[str],
    predictions: Sequence[str],
    positive: str | None = None,
    average: str = "macro",
    labels: Sequence[str] | None = None,
) -> Values:
    """How many of the predictions of a label are right; arguments as of `f1`."""
    return _of_labels("precision", targets, predictions, positive, average, labels)


@metric(needs="scikit-learn")
def recall(
    targets: Sequence[str],
    predictions: Sequence[str],
    positive: str | None = None,
    average: str = "macro",
    labels: Sequence[str] | None = None,
) -> Values:
    """How many of the targets of a label are found; arguments as of `f1`."""
    return _of_labels("recall", targets, predictions, positive, average, labels)


def _of_labels(name, targets, predictions, positive, average, labels) -> Values:
    function = getattr(_sklearn(), f"{name}_score")
    targets, predictions = list(targets), list(predictions)
    known = sorted({*targets, *([] if positive is None else [positive])})
    labels = known if labels is None else list(labels)
    if positive is None:
        if average not in _AVERAGES:
            raise UserError(
                f"{name}.average is {average!r}, expected one of {', '.join(_AVERAGES)}."
                + did_you_mean(average, _AVERAGES)
            )
        value = function(targets, predictions, labels=labels, average=average, zero_division=0)
        return {f"{name}_{average}": 100 * float(value)}
    if positive not in labels:
        raise UserError(
            f"{name}.positive is {positive!r}, which is none of the labels {', '.join(labels)}."
            + did_you_mean(positive, labels)
        )
    is_target = [t == positive for t in targets]
    # An output that is no label: the opposite of what is right.
    found = [
        p == positive if p in labels else not t for t, p in zip(is_target, predictions, strict=True)
    ]
    return {name: 100 * float(function(is_target, found, zero_division=0))}


@metric("scores", needs="scikit-learn")
def auc(
    targets: Sequence[str],
    predictions: Sequence[str],
    *,
    scores: Sequence[float],
    positive: str,
) -> Values:
    """Area under the ROC curve, of two labels: how well the scores rank `positive` above the other.

    scores: log-probability of each prediction among the two. nan if there is one label only.
    """
    is_target = [t == positive for t in targets]
    chance = [
        math.exp(s) if p == positive else 1 - math.exp(s)
        for p, s in zip(predictions, scores, strict=True)
    ]
    if len(set(is_target)) < 2:
        return {"auc": math.nan}
    return {"auc": 100 * float(_sklearn().roc_auc_score(is_target, chance))}


@metric("scores")
def calibration_error(
    targets: Sequence[str],
    predictions: Sequence[str],
    *,
    scores: Sequence[float],
    bins: Positive = 15,
) -> Values:
    """Expected calibration error: how far confidence is from accuracy (arXiv:1706.04599).

    scores: log-probability of each prediction. Predictions go by their probability into `bins`
    bins (low, high] of equal width; the mean over bins, weighted by their sizes, of the distance
    between accuracy and mean probability.
    """
    right = np.array([p == t for t, p in zip(targets, predictions, strict=True)], np.float64)
    confidence = np.exp(np.minimum(np.array(scores, np.float64), 0.0))
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    sums = np.bincount(place, right - confidence, minlength=bins)
    return {"calibration_error": 100 * float(np.abs(sums).sum() / len(right))}


def _sklearn():
    found = library("scikit-learn", "metrics")
    # It warns of what is defined here: labels that never occur, one class only.
    warnings.filterwarnings("ignore", module=r"sklearn\.metrics")
    return found
