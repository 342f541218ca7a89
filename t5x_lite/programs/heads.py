"""What `infer` does with an encoder's head: texts in; labels, tags or answers out."""

from collections.abc import Iterator, Sequence
from typing import Any

from t5x_lite.data.objectives.heads import Classes, Tags, labels_of
from t5x_lite.errors import UserError
from t5x_lite.evaluation.predictions import Predictor
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.training.setup import Setup

Record = dict[str, Any]


def answer_records(setup: Setup, params: Any, records: Sequence[Record]) -> Iterator[Record]:
    """Yields each record with "prediction", "score" and, of classes, "choices" and their scores.

    Classes: "input" is the text, and "context" a second one. Tags: "input" are words with spaces
    between them. A span: "input" is the question, "context" where its answer is.
    """
    task = setup.task.leaves[0][0]
    labels = labels_of(task)
    made = [_made(task.objective, record, labels) for record in records]
    predictor = Predictor(setup.model, setup.lengths, setup.batch_size, setup.rows, setup.place)
    names = ("prediction", "score", "choices", "choice_scores", "truncated")

    def results() -> Iterator[Record]:
        for start in range(0, len(records), setup.batch_size):
            some = slice(start, start + setup.batch_size)
            with use_mesh(setup.mesh, setup.rules):
                rows = predictor.answers(params, task, made[some])
            for record, row in zip(records[some], rows, strict=True):
                yield record | {name: row[name] for name in names if name in row}

    return results()


def _made(objective: Any, record: Record, labels: Sequence[str] | None) -> Record:
    """The record as the task's template would make it, without what is to be predicted."""
    text, context = record["input"], record.get("context")
    if isinstance(objective, Tags):
        return {"words": text.split(), "labels": labels}
    if isinstance(objective, Classes):
        texts = [text, context] if isinstance(context, str) else [text]
        return {"texts": texts} | ({"value": None} if labels is None else {"labels": labels})
    if not isinstance(context, str):
        raise UserError(
            f'no "context" beside the question {text[:40]!r}: infer needs JSON lines with both.'
        )
    return {"question": text, "context": context}
