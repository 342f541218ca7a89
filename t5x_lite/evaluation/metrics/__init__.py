"""Metrics: functions of (targets, predictions) that return {name: value}, for a Task's `metrics`.

  base.py            what a metric is; confidence intervals by the bootstrap
  classification.py  accuracy, precision, recall, F1, Matthews, calibration, area under the curve
  correlation.py     Pearson, Spearman; STS of embeddings
  answers.py         exact match, SQuAD 1.1 and 2, groups of answers
  generation.py      BLEU, chrF, ROUGE
  tagging.py         precision, recall and F1 of entities, by seqeval's rules
  likelihood.py      perplexity and bits, per word, byte and character

Values are percentages, as in papers' tables, except perplexities and bits.
"""

from t5x_lite.evaluation.metrics.answers import exact_match, group_exact_match, squad
from t5x_lite.evaluation.metrics.base import Metric, bootstrap, metric
from t5x_lite.evaluation.metrics.classification import (
    accuracy,
    auc,
    calibration_error,
    f1,
    matthews,
    precision,
    recall,
)
from t5x_lite.evaluation.metrics.correlation import (
    cosine_similarities,
    pearson,
    spearman,
    sts_correlation,
)
from t5x_lite.evaluation.metrics.generation import bleu, chrf, rouge
from t5x_lite.evaluation.metrics.likelihood import perplexity
from t5x_lite.evaluation.metrics.tagging import entities, entity_f1

__all__ = [
    "Metric",
    "accuracy",
    "auc",
    "bleu",
    "bootstrap",
    "calibration_error",
    "chrf",
    "cosine_similarities",
    "entities",
    "entity_f1",
    "exact_match",
    "f1",
    "group_exact_match",
    "matthews",
    "metric",
    "pearson",
    "perplexity",
    "precision",
    "recall",
    "rouge",
    "spearman",
    "squad",
    "sts_correlation",
]
