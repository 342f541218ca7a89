"""What the heads of an encoder make of examples, as texts: labels, tags, answers.

So the metrics, pages and files of text to text are theirs, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.data.objectives.base import Example
from t5x_lite.data.objectives.heads import Classes, Span, Tags, located
from t5x_lite.data.source import Record

Row = dict[str, Any]
OBJECTIVES = (Classes, Tags, Span)


def examples_of(
    objective: Any, tokens: Example, vocabulary: Any, lengths: Mapping
) -> list[Example]:
    """What the model is to read of an example: one row, or the windows of a long context."""
    if isinstance(objective, Span):
        windows = objective.windows(tokens, lengths)
        return [objective.window(tokens, window, vocabulary) for window in windows]
    return [objective(tokens, np.random.default_rng(0), vocabulary, lengths)]


def answer(
    objective: Any,
    made: Record,
    tokens: Example,
    examples: Sequence[Example],
    logits: Sequence[np.ndarray],
    vocabulary: Any,
    lengths: Mapping[str, int],
) -> Row:
    """A row's "prediction", its "score" (log-probability) and what else predictions.py says.

    made: the record. tokens: the objective's of it. logits: float [..., length or labels, ...] of
    each of its `examples`, perhaps with padding behind. Where the record has a label: "target",
    "target_score", "tokens" (labels) and "loss", too.
    """
    if isinstance(objective, Span):
        return _span(objective, made, tokens, examples, logits, vocabulary, lengths)
    if isinstance(objective, Tags):
        return _tags(made, tokens, examples[0], logits[0])
    cut = len(tokens["ids"]) + 2 + int(tokens["parts"].max(initial=0)) > len(examples[0]["inputs"])
    return _classes(made, logits[0]) | ({"truncated": True} if cut else {})


def _classes(made: Record, logits: np.ndarray) -> Row:
    if len(logits) == 1:
        row: Row = {"prediction": f"{float(logits[0]):.4f}"}
        if made.get("value") is not None:
            error = float(np.square(logits[0] - made["value"]))
            row |= {"target": str(made["value"])} | _judged(-error, 1)
        return row
    labels, scores = list(made["labels"]), log_softmax(logits)
    best = int(np.argmax(scores))
    row = {"prediction": labels[best], "score": float(scores[best])}
    row |= {"choices": labels, "choice_scores": scores.tolist()}
    if made.get("targets") in labels:
        row |= _judged(float(scores[labels.index(made["targets"])]), 1)
    return row


def _tags(made: Record, tokens: Example, example: Example, logits: np.ndarray) -> Row:
    labels = list(made["labels"])
    words = tokens["words"][: len(example["inputs"]) - 2]
    places = np.flatnonzero(words)
    scores = log_softmax(logits[places + 1])
    best = np.argmax(scores, axis=-1)
    tags = ["O" if "O" in labels else labels[0]] * len(made["words"])  # of words that were cut
    for place, tag in zip(places, best, strict=True):
        tags[words[place] - 1] = labels[tag]
    row: Row = {"prediction": " ".join(tags), "score": float(scores.max(axis=-1).sum())}
    if "tags" in made:
        targets = example["tags"][places + 1]
        known = np.flatnonzero(targets)
        row |= _judged(float(scores[known, targets[known] - 1].sum()), len(known))
    return row | ({"truncated": True} if len(words) < len(tokens["words"]) else {})


def _span(objective: Span, made, tokens, examples, logits, vocabulary, lengths) -> Row:
    """The best span of all windows; no answer, if it may, where even the window that is surest of
    one prefers none (as BERT does for SQuAD 2)."""
    places = located(made["context"], vocabulary)[1]
    offset, windows = objective.offset(tokens), objective.windows(tokens, lengths)
    found: list[tuple[float, float, str]] = []  # sum of logits, log-probability, text
    nothing: list[tuple[float, float, str]] = []
    row: Row = {}
    for (begin, end), example, raw in zip(windows, examples, logits, strict=True):
        raw = raw[: len(example["inputs"])]
        chances = log_softmax(raw, axis=0)
        nothing.append((float(raw[0].sum()), float(chances[0].sum()), ""))
        if end > begin:
            context = slice(offset, offset + end - begin)
            first, last, score = best_span(raw[context], objective.max_answer)
            text = made["context"][places[begin + first, 0] : places[begin + last, 1]]
            chance = chances[context][first, 0] + chances[context][last, 1]
            found.append((score, float(chance), text))
        first, last = example["span"] - 1
        if first > 0 or (first == 0 and not row):
            row = _judged(float(chances[first, 0] + chances[last, 1]), 2)
    best = max(found, default=nothing[0])
    if objective.no_answers and min(nothing)[0] > best[0]:
        best = min(nothing)
    row |= {"prediction": best[2], "score": best[1]}
    if "answers" in made:
        answers = list(made["answers"]) or [""]
        row |= {"target": answers[0], "references": answers}
    return row


def best_span(logits: np.ndarray, longest: int) -> tuple[int, int, float]:
    """First and last token, and the sum of their logits [tokens, 2], of at most `longest`."""
    size = len(logits)
    place = np.arange(size)
    length = place[None] - place[:, None]
    both = np.where(
        (length >= 0) & (length < longest), logits[:, 0][:, None] + logits[:, 1][None], -np.inf
    )
    first, last = divmod(int(np.argmax(both)), size)
    return first, last, float(both[first, last])


def _judged(target_score: float, tokens: int) -> Row:
    return {"target_score": target_score, "tokens": tokens, "loss": -target_score / max(tokens, 1)}


def log_softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """float64, as logits."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=axis, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
