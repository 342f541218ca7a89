"""Answers to questions: exact match, SQuAD's two metrics, groups of answers."""

import collections
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.evaluation.metrics.base import Target, Values, metric, references

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@metric()
def exact_match(targets: Sequence[Target], predictions: Sequence[str]) -> Values:
    """The share of predictions that are one of their references, but for white space around."""
    right = [
        p.strip() in [r.strip() for r in references(t)]
        for t, p in zip(targets, predictions, strict=True)
    ]
    return {"exact_match": 100 * float(np.mean(right))}


@metric("groups")
def group_exact_match(
    targets: Sequence[str], predictions: Sequence[str], *, groups: Sequence[Any]
) -> Values:
    """The share of groups whose predictions are all right, as of MultiRC's questions."""
    right: dict[Any, bool] = {}
    for i, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
        group = ("alone", i) if groups[i] is None else groups[i]
        right[group] = right.get(group, True) and target == prediction
    return {"group_exact_match": 100 * float(np.mean(list(right.values())))}


@metric("groups")
def squad(
    targets: Sequence[Target],
    predictions: Sequence[str],
    *,
    groups: Sequence[Any] | None = None,
    version: int = 1,
) -> Values:
    """SQuAD's exact match ("em") and F1 of words ("f1"), the best over the references.

    Texts are compared in lower case, without punctuation, articles and superfluous white space,
    as the official scripts do. Of examples in one group only the first counts (ReCoRD).

    version: of the rules. In 2, no answer (no reference, or an empty one) is right if the
      prediction is empty, and the values of both kinds of questions are given, too.
    """
    if version not in (1, 2):
        raise UserError(f"squad.version is {version}, expected 1 or 2.")
    seen: set[Any] = set()
    values: dict[str, list[float]] = collections.defaultdict(list)
    for i, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
        if groups is not None and groups[i] is not None:
            if groups[i] in seen:
                continue
            seen.add(groups[i])
        answers = [normalize(r) for r in references(target)]
        if version == 2:
            answers = [a for a in answers if a] or [""]
        found = normalize(prediction)
        em = 100 * float(max((found == a for a in answers), default=False))
        words = 100 * max((_f1(a, found, version) for a in answers), default=0.0)
        kinds = [""]
        if version == 2:
            kinds.append("no_answer_" if answers == [""] else "has_answer_")
        for kind in kinds:
            values[f"{kind}em"].append(em)
            values[f"{kind}f1"].append(words)
    return {name: float(np.mean(found)) for name, found in values.items()}


def normalize(text: str) -> str:
    """An answer as SQuAD's scripts compare it."""
    text = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION))
    return " ".join(text.split())


def _f1(answer: str, prediction: str, version: int) -> float:
    expected, found = answer.split(), prediction.split()
    if version == 2 and not (expected and found):
        return float(expected == found)
    same = sum((collections.Counter(expected) & collections.Counter(found)).values())
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(expected)
    return 2 * precision * recall / (precision + recall)
