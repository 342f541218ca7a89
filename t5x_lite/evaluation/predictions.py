"""What a model makes of each example of a task, once each, as rows of plain values.

A row: task, index (of the record in its split), input, target, tokens (of the target),
target_score (its log-probability), loss (-target_score / tokens), and, where there is one,

  prediction         text generated, or chosen
  score              its log-probability; of a choice, that among the choices
  choices            the texts it was chosen from; choice_scores: their log-probabilities
  prediction_norm    the choice, if log-probabilities are divided by the texts' lengths
  references, group  of the record, see data/templates.py
  truncated          true: the input or a target was cut to its length
  fields             short values of the record, to slice by

All processes make the same rows: each goes through all records, and a batch's rows are computed by
the processes that feed them. Dimensions: B batch, N new tokens.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5x_lite.data.features import model_features, pad_example
from t5x_lite.data.fixed_sample import fixed_sample
from t5x_lite.data.reading import task_reading
from t5x_lite.data.source import Record, Source
from t5x_lite.data.streams import TaskReader
from t5x_lite.data.tasks import Task
from t5x_lite.errors import UserError
from t5x_lite.evaluation import heads
from t5x_lite.evaluation.metrics.base import check_installed
from t5x_lite.inference.decoding import Method, generate, given_prompts
from t5x_lite.inference.sampling import Greedy
from t5x_lite.inference.scoring import log_likelihood
from t5x_lite.models.heads import LOGITS
from t5x_lite.models.model import Model
from t5x_lite.ranges import Count

Row = dict[str, Any]
_FIELD_LENGTH = 40  # characters of a text that may be sliced by


@dataclasses.dataclass(frozen=True)
class TextEvaluation:
    """How texts are predicted for the metrics of tasks.

    method: Greedy() (None), BeamSearch(...) or Sample(...), with the key `seed`.
    during_training: also at the evaluations of a training run, on as much data as those.
    """

    method: Method | None = None
    during_training: bool = True
    seed: Count = 0


@dataclasses.dataclass(frozen=True)
class _Example:
    index: int
    record: Record  # as stored
    made: Record  # by the preprocessors
    features: dict[str, np.ndarray]  # int32 [tokens] each, with EOS


class Predictor:
    """Predicts with a model, on the rows of a global batch that this process feeds.

    Args:
      place: rows of features [len(rows), length] of this process -> global arrays.
      rows: which rows of the batch those are.
    """

    def __init__(
        self,
        model: Model,
        lengths: Mapping[str, int],
        batch_size: int,
        rows: Sequence[int] | np.ndarray,
        place: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]],
        how: TextEvaluation | None = None,
    ):
        self._model, self._lengths, self._batch_size = model, dict(lengths), batch_size
        self._rows, self._place, self._how = list(rows), place, how or TextEvaluation()
        self._head: Callable | None = None  # jitted when it is needed

    def predict(
        self, params: Any, task: Task, split: str = "validation", limit: int | None = None
    ) -> list[Row]:
        """The rows of a split's examples, in order: of all, or of a fixed sample of `limit`.

        Raises:
          UserError: an objective of which there is nothing to predict; no such split; no examples.
        """
        if isinstance(task.objective, heads.OBJECTIVES):
            return self._headed(params, task, split, limit)
        names = task.objective.features
        if task.objective.segment_length(self._lengths) is not None:
            if names != ("targets",):
                raise UserError(
                    f"task {task.name!r} has metrics, and {type(task.objective).__name__} makes no "
                    "texts to judge: use TextToText, or CausalLM for the likelihood of texts."
                )
            return self._documents(params, task, split, limit)
        reader = TaskReader(task, split, 0, self._lengths)
        rows: list[Row] = []
        examples = fixed_sample(len(reader.records), limit, lambda i: _example(reader, i))
        decodes = any(needs_predictions(metric) for metric in task.metrics)
        while chunk := list(itertools.islice(examples, self._batch_size)):
            rows += self._chunk(params, task, chunk, decodes)
        if not rows:
            reader.check_has_tokens()
        return rows

    def _headed(self, params: Any, task: Task, split: str, limit: int | None) -> list[Row]:
        reader = TaskReader(task, split, 0, self._lengths)
        records, rows = reader.records, []
        chosen = fixed_sample(len(records), limit, lambda i: _made(task, records, i))
        while chunk := list(itertools.islice(chosen, self._batch_size)):
            answers = self.answers(params, task, [made for _, made in chunk])
            for (i, made), answer in zip(chunk, answers, strict=True):
                unknown = {"tokens": 0, "target_score": 0.0, "loss": 0.0}
                rows.append(_described(task, i, made) | unknown | answer | _sliced(records[i]))
        if not rows:
            reader.check_has_tokens()
        return rows

    def answers(self, params: Any, task: Task, records: Sequence[Record]) -> list[Row]:
        """What an encoder's head makes of records, as the task's preprocessors make them.

        For each "prediction", and what heads.py says. Contexts that are too long are read in
        several windows.
        """
        objective: Any = task.objective  # one for a head
        vocabulary, lengths = task.vocabulary, self._lengths
        tokens = [objective.tokens(record, vocabulary) for record in records]
        examples = [heads.examples_of(objective, t, vocabulary, lengths) for t in tokens]
        flat = [example for several in examples for example in several]
        if self._head is None:
            logits = LOGITS[objective.head]
            self._head = jax.jit(lambda p, b: self._model.encoded(p, b)[0][logits])
        found: list[np.ndarray] = []
        for start in range(0, len(flat), self._batch_size):
            some = flat[start : start + self._batch_size]
            found += list(whole(self._head(params, self._batch(some, task)))[: len(some)])
        rows = []
        for record, ids, several in zip(records, tokens, examples, strict=True):
            logits, found = found[: len(several)], found[len(several) :]
            rows.append(heads.answer(objective, record, ids, several, logits, vocabulary, lengths))
        return rows

    def _chunk(self, params: Any, task: Task, chunk: list[_Example], decodes: bool) -> list[Row]:
        batch = self._batch([e.features for e in chunk], task)
        likelihoods = whole(log_likelihood(self._model, params, batch))
        rows = [
            _row(task, e, float(s), self._lengths) for e, s in zip(chunk, likelihoods, strict=False)
        ]
        plain = [i for i, e in enumerate(chunk) if "choices" not in e.made]
        if decodes and plain:
            texts, scores = self._decode(params, batch, task)
            for i in plain:
                rows[i] |= {"prediction": texts[i], "score": float(scores[i])}
        self._choose(params, task, chunk, rows)
        return rows

    def _decode(self, params: Any, batch: dict, task: Task) -> tuple[list[str], np.ndarray]:
        vocabulary, prompts, inputs = task.vocabulary, None, batch
        if "encoder_input_tokens" in batch:
            inputs = {"encoder_input_tokens": batch["encoder_input_tokens"]}
        else:
            prompts, inputs = given_prompts(batch), {}
        decoded = generate(
            self._model,
            params,
            inputs,
            method=self._how.method or Greedy(),
            max_new_tokens=self._lengths["targets"],
            prompts=prompts,
            bidirectional_prompts="decoder_causal_attention" in batch,
            rng=jax.random.key(self._how.seed),
            eos_id=vocabulary.eos_ids,
        )
        tokens, scores = whole(decoded.tokens)[:, 0], whole(decoded.scores)[:, 0]
        return [vocabulary.decode(row) for row in tokens], scores

    def _choose(self, params: Any, task: Task, chunk: list[_Example], rows: list[Row]) -> None:
        """Ranks the choices of the examples that have some; adds what was chosen to their rows."""
        pairs = [(i, text) for i, e in enumerate(chunk) for text in e.made.get("choices", ())]
        found: dict[int, list[float]] = {}
        for start in range(0, len(pairs), self._batch_size):
            some = pairs[start : start + self._batch_size]
            features = [self._with_target(task, chunk[i], text, rows[i]) for i, text in some]
            scores = whole(log_likelihood(self._model, params, self._batch(features, task)))
            for (i, _), score in zip(some, scores, strict=False):
                found.setdefault(i, []).append(float(score))
        for i, scores in found.items():
            choices = chunk[i].made["choices"]
            best = int(np.argmax(scores))
            normal = int(
                np.argmax([s / max(len(c), 1) for s, c in zip(scores, choices, strict=True)])
            )
            total = math.log(math.fsum(math.exp(s - scores[best]) for s in scores)) + scores[best]
            rows[i] |= {
                "prediction": choices[best],
                "prediction_norm": choices[normal],
                "score": scores[best] - total,
                "choices": list(choices),
                "choice_scores": scores,
            }

    def _with_target(self, task: Task, example: _Example, text: str, row: Row) -> dict:
        targets = task.vocabulary.encode(text)
        if len(targets) >= self._lengths["targets"]:
            row["truncated"] = True
        targets = np.append(targets[: self._lengths["targets"] - 1], task.vocabulary.eos_id)
        return example.features | {"targets": targets.astype(np.int32)}

    def _batch(self, examples: Sequence[dict[str, np.ndarray]], task: Task) -> dict[str, jax.Array]:
        """The global batch of at most B examples, filled up with rows of padding."""
        names = list(examples[0])
        lengths = {name: self._lengths[name] for name in names}
        blank = {name: np.zeros(0, np.int32) for name in names}
        padded = [
            pad_example(examples[i] if i < len(examples) else blank, lengths) for i in self._rows
        ]
        stacked = {name: np.stack([row[name] for row in padded]) for name in names}
        architecture = self._model.config.architecture
        attention = task_reading(task, architecture).attention
        return self._place(model_features(stacked, architecture, False, attention))

    def _documents(self, params: Any, task: Task, split: str, limit: int | None) -> list[Row]:
        """A language model's rows: whole documents, in windows of the targets' length.

        The first token of a window is predicted from nothing, as in training. No EOS is scored.
        """
        records = task.source.split(split)
        rows: list[Row] = []
        pieces: list[tuple[int, np.ndarray]] = []
        for index, record in fixed_sample(len(records), limit, lambda i: _made(task, records, i)):
            if not len(tokens := task.vocabulary.encode(record["text"])):
                continue
            length = self._lengths["targets"]
            pieces += [(len(rows), tokens[i : i + length]) for i in range(0, len(tokens), length)]
            rows.append({"task": task.name, "index": index, "input": "", "target": record["text"],
                         "tokens": len(tokens), "target_score": 0.0})  # fmt: skip
        for start in range(0, len(pieces), self._batch_size):
            some = pieces[start : start + self._batch_size]
            batch = self._batch([{"targets": tokens} for _, tokens in some], task)
            scores = whole(log_likelihood(self._model, params, batch))
            for (place, _), score in zip(some, scores, strict=False):
                rows[place]["target_score"] += float(score)
        return [row | {"loss": -row["target_score"] / row["tokens"]} for row in rows]


def needs_predictions(metric: Any) -> bool:
    """Whether a metric looks at predictions, not just at how likely the targets are."""
    return "target_scores" not in getattr(metric, "uses", ())


def check_examples(task: Task, lengths: Mapping[str, int], encoder_only: bool = False) -> None:
    """UserError if a validation example of a task with metrics can't be predicted or judged."""
    headed = isinstance(task.objective, heads.OBJECTIVES)
    if not task.metrics or (encoder_only and not headed):
        return
    check_installed(task.metrics)
    if headed or task.objective.segment_length(dict(lengths)) is not None:
        return
    reader = TaskReader(task, "validation", 0, lengths)
    next(fixed_sample(len(reader.records), 1, lambda i: _example(reader, i)), None)


def _made(task: Task, records: Source, index: int) -> tuple[int, Record] | None:
    """(index, record as the preprocessors make it); None if they drop it."""
    made = task.record(records, index)
    return None if made is None else (index, made)


def _example(reader: TaskReader, index: int) -> _Example | None:
    task, records = reader.task, reader.records
    if (made := task.record(records, index)) is None:
        return None
    fields = {name: task.vocabulary.encode(made[name]) for name in ("inputs", "targets")}
    if not any(map(len, fields.values())):
        return None
    return _Example(index, records[index], made, reader.example(fields, index, 0))


def _row(task: Task, example: _Example, score: float, lengths: Mapping[str, int]) -> Row:
    made, tokens = example.made, len(example.features["targets"])
    row = _described(task, example.index, made)
    row |= {"tokens": tokens, "target_score": score, "loss": -score / tokens}
    # A feature as long as its limit was most likely cut: only its last token is EOS.
    cut = [
        name for name in ("inputs", "targets")
        if len(example.features[name]) == lengths[name]
        and len(task.vocabulary.encode(made[name])) >= lengths[name]
    ]  # fmt: skip
    if cut:
        row["truncated"] = True
    return row | _sliced(example.record)


def _described(task: Task, index: int, made: Record) -> Row:
    row = {"task": task.name, "index": index, "input": made["inputs"], "target": made["targets"]}
    return row | {key: made[key] for key in ("references", "group") if key in made}


def _sliced(record: Record) -> Row:
    found = _fields(record)
    return {"fields": found} if found else {}


def _fields(record: Record) -> Row:
    found = {}
    for key, value in record.items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool | int | float) or (
            isinstance(value, str) and len(value) <= _FIELD_LENGTH
        ):
            found[key] = value
    return found


def whole(array: jax.Array) -> np.ndarray:
    """A global array on every process."""
    if jax.process_count() == 1:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
