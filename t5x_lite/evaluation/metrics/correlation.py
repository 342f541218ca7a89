"""How well numbers agree, by scipy: predicted in text (STS-B), or similarities of embeddings."""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from t5x_lite.evaluation.metrics.base import Values, library, metric

Number = str | float


@metric(needs="scipy")
def pearson(
    targets: Sequence[Number], predictions: Sequence[Number], otherwise: float = -1.0
) -> Values:
    """Pearson's correlation coefficient, -100 to 100; nan if either side is constant.

    otherwise: stands for a prediction that is no number (-1, as in T5).
    """
    return {"pearson": _correlate("pearsonr", targets, predictions, otherwise)}


@metric(needs="scipy")
def spearman(
    targets: Sequence[Number], predictions: Sequence[Number], otherwise: float = -1.0
) -> Values:
    """Spearman's rank correlation, ties at their mean rank; otherwise as `pearson`."""
    return {"spearman": _correlate("spearmanr", targets, predictions, otherwise)}


def _correlate(name: str, targets, predictions, otherwise: float) -> float:
    x = [_number(t, otherwise) for t in targets]
    y = [_number(p, otherwise) for p in predictions]
    if len(x) < 2:
        return math.nan
    function = getattr(library("scipy", "stats"), name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input, where it returns nan
        return 100 * float(function(x, y)[0])


def _number(text: Number, otherwise: float) -> float:
    try:
        value = float(text)
    except ValueError:
        return otherwise
    return value if math.isfinite(value) else otherwise


def cosine_similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of the rows of two float arrays [N, D]: float64 [N]; 0 where a row is all zeros."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / np.where(norms > 0, norms, 1.0)


def sts_correlation(targets: Sequence[float], first: np.ndarray, second: np.ndarray) -> Values:
    """Of sentence pairs' embeddings [N, D]: "spearman" and "pearson" of cosine and `targets`.

    The first is what SimCSE reports (arXiv:2104.08821).
    """
    found = cosine_similarities(first, second).tolist()
    return spearman(targets, found) | pearson(targets, found)
