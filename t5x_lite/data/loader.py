"""Batches for training, resumable at any row, and for evaluation.

The order of examples, and why it does not depend on the number of hosts: streams.py.
"""

import dataclasses
import functools
import itertools
import logging
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from t5x_lite.data.features import (
    Row,
    feature_lengths,
    model_features,
    pad_example,
)
from t5x_lite.data.fixed_sample import apportion, fixed_sample, sample_order
from t5x_lite.data.objectives.base import split_documents
from t5x_lite.data.packing import row_stream
from t5x_lite.data.prefetch import Prefetch, prefetch
from t5x_lite.data.reading import task_reading
from t5x_lite.data.source import digest
from t5x_lite.data.streams import TaskChooser, TaskReader, Tokens
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.data.workers import Workers
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count, Positive

__all__ = ["Batch", "BatchLoader", "Prefetch", "eval_batches", "prefetch"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """features: T5X's names -> int32 [rows, length]; position: int64 [rows, K] after this batch."""

    features: dict[str, np.ndarray]
    position: np.ndarray


class BatchLoader(Iterator[Batch]):
    """Endless training batches: the rows `rows` of global batches, a function of seed and step.

    Args:
      task: a Task or Mixture.
      lengths: tokens of each of the objective's features, {"inputs": 512, "targets": 114}.
      batch_size: rows of the global batch.
      seed: of the documents' order, the noise and the mixing.
      architecture: "encoder_decoder" or "decoder_only".
      pack: several examples in a row where they fit; or how: "next_fit" as True, "first_fit",
        "best_fit" or, for language models, "concat" (packing.py).
      rows: the rows that this host feeds, by default all: range(0, batch_size).
      split: of the source.
      num_workers: processes that make the rows between them; 0: this one does. Batches are the same
        for any number. `close` ends them; they end with this process too.

    `position` int64 [rows, K] is all its state; rows of it may go to any host's `restore`.

    Raises:
      UserError: lengths that don't suit the objective or architecture, a split without documents,
        rows outside the batch; later, data that doesn't give examples.
    """

    def __init__(
        self,
        task: Task | Mixture,
        *,
        lengths: Mapping[str, int],
        batch_size: Positive,
        seed: Count,
        architecture: str,
        pack: bool | str = True,
        rows: Sequence[int] | np.ndarray | None = None,
        split: str = "train",
        num_workers: Count = 0,
    ):
        if num_workers < 0:
            raise UserError(f"BatchLoader.num_workers is {num_workers}; use 0 or more.")
        self.rows = _check_rows(rows, batch_size)
        self.feature_lengths, lengths = _lengths(task, lengths, architecture, pack)
        self._architecture, self._pack = architecture, bool(pack)
        self._attention = task_reading(task, architecture).attention
        self._identity = (seed, batch_size, sorted(lengths.items()), architecture, pack, split)
        self._task = task
        readers = [TaskReader(leaf, split, seed, lengths) for leaf, _ in task.leaves]
        for reader in readers:
            if multiprocessing.parent_process() is None:  # once, and not in each worker
                reader.check_records()
            if len(reader.records) < batch_size and reader.segment_length is not None:
                _log.warning(
                    "Task %r has %d documents for batches of %d rows: rows will hold the same "
                    "text; cut long documents (TextFiles.max_document_bytes).",
                    *(reader.task.name, len(reader.records), batch_size),
                )
        chooser = TaskChooser([share for _, share in task.leaves], seed, batch_size)
        self._streams = [
            row_stream(pack, readers, chooser, row, batch_size, architecture) for row in self.rows
        ]
        self._position = self._gather_position()
        self._workers = None
        if num_workers:
            arguments = dict(
                lengths=lengths, batch_size=batch_size, seed=seed, architecture=architecture,
                pack=pack, split=split,
            )  # fmt: skip
            self._workers = Workers(_Part(task, arguments), self.rows, num_workers)

    @property
    def position(self) -> np.ndarray:
        """int64 [rows, K]: where the next batch begins. K is 1 + 2 * tasks, 1 more with a window
        ("first_fit", "best_fit")."""
        return self._position.copy()

    def _gather_position(self) -> np.ndarray:
        return np.stack([stream.position for stream in self._streams])

    def restore(self, position: np.ndarray) -> None:
        """Goes to a position: these rows of a `Batch.position`, or of several hosts' put together.

        UserError if it doesn't have the shape of `position`, or can't be a position.
        """
        position = np.asarray(position)
        expected = self._position.shape
        if position.shape != expected:
            raise UserError(
                f"The data position to restore has shape {list(position.shape)}, expected "
                f"{list(expected)} (rows, 1 + 2 x tasks, 1 more for a packing window); restore "
                "with the same batch size, mixture and packing as it was saved with."
            )
        if not np.issubdtype(position.dtype, np.integer) or position.min() < 0:
            raise UserError(
                f"The data position to restore is {position.dtype} with a minimum of "
                f"{position.min()}, expected integers of 0 or more; take an earlier checkpoint."
            )
        for stream, row_position in zip(self._streams, position.astype(np.int64), strict=True):
            stream.restore(row_position)
        self._position = self._gather_position()
        if self._workers is not None:
            self._workers.restore(self._position)

    def close(self) -> None:
        """Ends the worker processes; the next batch starts them again, where it left off."""
        if self._workers is not None:
            self._workers.close()

    def shares(self, position: np.ndarray) -> dict[str, float]:
        """Of the documents drawn up to a position, the share of each task; {} for a single task."""
        names = [task.name for task, _ in self._task.leaves]
        pairs = np.asarray(position)[:, 1 : 1 + 2 * len(names)].reshape(-1, len(names), 2)
        drawn = (pairs[..., 0] + (pairs[..., 1] > 0)).sum(axis=0)  # begun ones count
        if len(names) == 1:
            return {}
        return dict(zip(names, (drawn / max(drawn.sum(), 1)).tolist(), strict=True))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of all that the batches depend on: equal ones may exchange positions."""
        return digest(*self._identity, self._task.fingerprint)

    def __next__(self) -> Batch:
        if self._workers is not None:
            features, self._position = self._workers.next(self._position)
            return Batch(features, self.position)
        try:
            rows = [stream.next_row() for stream in self._streams]
        except BaseException:
            self.restore(self._position)  # an interrupted loader must not skip examples
            raise
        self._position = self._gather_position()
        return Batch(self._features(rows), self.position)

    def _features(self, rows: list[Row]) -> dict[str, np.ndarray]:
        features = model_features(_stack(rows), self._architecture, self._pack, self._attention)
        assert {k: v.shape[1] for k, v in features.items()} == self.feature_lengths
        return features


@dataclasses.dataclass(frozen=True)
class _Part:
    """Makes the loader of a worker."""

    task: Task | Mixture
    arguments: dict[str, Any]

    def __call__(self, rows: Sequence[int]) -> BatchLoader:
        return BatchLoader(self.task, **self.arguments, rows=rows, num_workers=0)


def eval_batches(
    task: Task | Mixture,
    *,
    lengths: Mapping[str, int],
    batch_size: int,
    architecture: str,
    split: str = "validation",
    rows: Sequence[int] | np.ndarray | None = None,
    max_batches: int | None = None,
) -> "EvalBatches":
    """Every example of a split once, in order, one a row: int32 [rows, length] features.

    The text of all documents is used up, so the last example of a task may be shorter. The last
    batch is filled up with rows of zeros (loss weight 0). The noise of the objective is the same
    each time. A mixture gives one task after the other. Arguments as of `BatchLoader`; all hosts
    get the same number of batches. Raises UserError as that does, and if there is no example.

    max_batches: no more than these, of a fixed sample of the split (fixed_sample.py), in which each
      task of a mixture has its share. The iterator's `examples` tells how many there were so far,
      on all hosts together.
    """
    rows = _check_rows(rows, batch_size)
    _, lengths = _lengths(task, lengths, architecture, False)
    readers = [TaskReader(leaf, split, 0, lengths) for leaf, _ in task.leaves]
    limits: list[int | None] = [None] * len(readers)
    if max_batches is not None:
        limits = [*apportion(max_batches * batch_size, [share for _, share in task.leaves])]
    blank = {name: np.zeros(length, np.int32) for name, length in lengths.items()}
    attention = task_reading(task, architecture).attention

    def row(chunk, i: int) -> Row:
        if i >= len(chunk):
            return blank
        reader, number, tokens = chunk[i]
        return pad_example(reader.example(tokens, number, 0), lengths)

    def batches():
        examples = itertools.chain.from_iterable(map(eval_examples, readers, limits))
        while chunk := list(itertools.islice(examples, batch_size)):
            found.examples += len(chunk)
            stacked = _stack([row(chunk, i) for i in rows])
            yield model_features(stacked, architecture, False, attention)

    found = EvalBatches(batches())
    return found


class EvalBatches(Iterator[dict[str, np.ndarray]]):
    """Batches, and how many `examples` those so far hold, on all hosts together."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]]):
        self._batches, self.examples = batches, 0

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)


_DOCUMENTS = 32  # that a sample of segments is from, at least


def eval_examples(
    reader: TaskReader, limit: int | None
) -> Iterator[tuple[TaskReader, int, Tokens]]:
    """(reader, number, tokens) of each record, or of each segment of all text, in order.

    limit: of a fixed sample of so many. Segments are then drawn from a sample of the documents that
    is at least twice as large, so that a few long ones don't fill it by themselves.
    """
    records, length = reader.records, reader.segment_length
    if length is None:
        found: Iterator[tuple[int, Any]] = fixed_sample(
            len(records), limit, lambda i: _numbered(i, reader.index_tokens(i))
        )
    elif limit is None:
        documents: Iterator[Any] = fixed_sample(len(records), None, reader.index_tokens)
        found = enumerate(split_documents(documents, merge=None, segment_length=length))
    else:
        drawn: dict[int, np.ndarray] = {}
        left = 2 * limit * length
        for index in sample_order(len(records)) if limit else ():
            if left <= 0 and len(drawn) >= _DOCUMENTS:
                break
            if (tokens := reader.index_tokens(index)) is not None:
                drawn[index] = cast(np.ndarray, tokens)
                left -= len(tokens)
        documents = (drawn[index] for index in sorted(drawn))
        segments = list(split_documents(documents, merge=None, segment_length=length))
        found = fixed_sample(len(segments), limit, lambda i: (i, segments[i]))
    number = None
    for number, tokens in found:
        yield reader, number, tokens
    if number is None and limit != 0:
        reader.check_has_tokens()


def _numbered(number: int, tokens: Tokens | None) -> tuple[int, Tokens] | None:
    return None if tokens is None else (number, tokens)


def _stack(rows: list[Row]) -> Row:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _lengths(
    task: Task | Mixture, lengths: Mapping[str, int], architecture: str, pack: bool | str
) -> tuple[dict[str, int], dict[str, int]]:
    """Model features' lengths, and the lengths of just the features that the objective makes."""
    names = task.objective.features
    attention = task_reading(task, architecture).attention
    shapes = feature_lengths(lengths, architecture, names, bool(pack), attention)
    return shapes, {name: lengths[name] for name in names}


def _check_rows(rows: Sequence[int] | np.ndarray | None, batch_size: int) -> list[int]:
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be 1 or more.")
    rows = range(batch_size) if rows is None else rows
    if len(rows) == 0 or min(rows) < 0 or max(rows) >= batch_size:
        raise UserError(f"This host's rows are {rows}; expected some in range(0, {batch_size}).")
    return [int(row) for row in rows]
