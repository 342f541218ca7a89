"""The order of training examples: a stream for each row of the batch.

Row r of a global batch of B rows draws the documents r, r + B, r + 2B, ... of a task's endless
sequence: epoch after epoch, each a permutation of the documents by (seed, task, epoch). It cuts
them into examples, packs these into rows, and the k-th of those is row r of batch k. So a batch is
a function of (seed, k, B) alone, any host can make any rows of it, and all that a stream knows is

  position: int64 [1 + 2 * tasks] = [examples made, (documents drawn, tokens used of the next) ...]

at the first example that isn't in a finished row yet. Restoring it costs the tokenisation of the
documents of that one example.
"""

import bisect
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from t5x_lite.data.features import NextFitPacker, Row, pad_example
from t5x_lite.data.randomness import generator_at
from t5x_lite.data.source import Source, hash64
from t5x_lite.data.tasks import Task
from t5x_lite.errors import UserError

# 2**64 divided by the golden ratio: its multiples mod 2**64 spread as evenly as any can.
_GOLDEN = 0x9E3779B97F4A7C15
_SMALL = 1 << 14

Tokens = np.ndarray | dict[str, np.ndarray]


class TaskReader:
    """A task's endless sequence of documents, and the examples made of it. Holds no position."""

    def __init__(self, task: Task, split: str, seed: int, lengths: Mapping[str, int]):
        self.task, self.lengths = task, lengths
        if task.source.tokenized:
            cast(Any, task.source).check(task)
        self.records = task.source.split(split)
        self.segment_length = task.objective.segment_length(lengths)
        self._key = f"{seed}/{task.name}"
        self._rng_key = hash64(self._key.encode())
        self._document_rng_key = hash64(f"{self._key}/document".encode())
        self._change_document = getattr(task.objective, "document", None)
        if len(self.records) == 0:
            raise UserError(
                f"Task {task.name!r}: the {split!r} split of its {type(task.source).__name__} "
                "holds no documents; give it more, or (validation) raise held_out."
            )

    def document(self, draw: int) -> Tokens:
        """Tokens of the draw-th document: an array, or a dict where a record is an example."""
        return self._tokens(self.index(draw), draw)

    def index(self, draw: int) -> int:
        """Which record the draw-th document is."""
        epoch, index = divmod(draw, len(self.records))
        return shuffled(index, len(self.records), _epoch_seed(self._key, epoch))

    def _tokens(self, index: int, draw: int) -> Tokens:
        if self.segment_length is None:
            return self.task.fields(self.records, index)
        tokens = self.task.document(self.records, index)
        if self._change_document is not None and len(tokens):
            rng = generator_at(self._document_rng_key, draw)
            return self._change_document(tokens, rng, self.task.vocabulary)
        return tokens

    def check_records(self, most: int = 1000, seconds: float = 0.5) -> None:
        """Raises UserError for a record that isn't what the preprocessors and the objective read.

        Looks at `most` records of this split and of the validation split, evenly spaced, for so
        many seconds each: before a device is at work.
        """
        self._check(self.records, most, seconds)
        try:
            validation = self.task.source.split("validation")
            len(validation)
        except UserError:  # there is none, which matters to an evaluation alone
            return
        self._check(validation, most, seconds)

    def _check(self, records: Source, most: int, seconds: float) -> None:
        task, end = self.task, time.monotonic() + seconds
        if task.source.tokenized or not (task.preprocessors or self.segment_length is None):
            return
        keys: Sequence[str] = ("text",)
        if self.segment_length is None:
            own = hasattr(task.objective, "tokens")
            keys = () if own else getattr(task.objective, "reads", task.objective.features)
        for index in range(0, len(records), max(1, len(records) // most)):
            if (record := task.record(records, index)) is not None:
                for key in keys:
                    task.text(record, key, records, index)
            if time.monotonic() > end:
                return

    def example(self, tokens: Tokens, draw: int, offset: int) -> dict[str, np.ndarray]:
        """The example of a segment that starts at token `offset` of the draw-th document."""
        rng = generator_at(self._rng_key, draw, offset)
        return self.task.example(tokens, rng, self.lengths)

    @functools.cached_property
    def has_tokens(self) -> bool:
        return any(_any_tokens(self._tokens(i, i)) for i in range(len(self.records)))

    def check_has_tokens(self) -> None:
        if not self.has_tokens:
            raise UserError(
                f"Task {self.task.name!r}: an epoch of {len(self.records)} documents gives no "
                "example: all are blank or dropped by its preprocessors; check those and the keys."
            )

    def index_tokens(self, index: int) -> Tokens | None:
        """Tokens of the record at `index`, as evaluations read it; None if it has none."""
        tokens = self._tokens(index, index)
        return tokens if _any_tokens(tokens) else None


def shuffled(index: int, length: int, seed: int) -> int:
    """Where `index` is in the permutation of `length` things that the 64-bit seed stands for."""
    # index_shuffle walks through 2**16 places or more: milliseconds for a handful of documents.
    if length <= _SMALL:
        return int(_permutation(length, seed)[index])
    from grain.experimental import index_shuffle  # late, as grain imports jax

    return index_shuffle(index, length - 1, seed % 2**32, 4)


@functools.lru_cache(maxsize=256)
def _epoch_seed(key: str, epoch: int) -> int:
    return hash64(f"{key}/{epoch}".encode())


@functools.lru_cache(maxsize=64)
def _permutation(length: int, seed: int) -> np.ndarray:
    return np.argsort(np.random.default_rng(seed).random(length), kind="stable")


def _any_tokens(tokens: Tokens) -> bool:
    return any(map(len, tokens.values())) if isinstance(tokens, dict) else len(tokens) > 0


class TaskChooser:
    """Which task a row's next example comes from, so that shares are kept as evenly as can be.

    Row r's example c falls on a point of a circle that is cut into arcs by the shares: examples
    step by the golden ratio, rows are spaced evenly. Any stretch of a row, and the rows of a batch,
    then hold each task in its share within a few examples.
    """

    def __init__(self, shares: Sequence[float], seed: int, batch_size: int):
        ends = [round(total * 2**64) for total in itertools.accumulate(shares)]
        self._ends = ends[:-1]  # the last arc is all that is left, whatever the rounding
        self._start, self._batch_size = hash64(f"{seed}/mixture".encode()), batch_size

    def __call__(self, row: int, example: int) -> int:
        if not self._ends:
            return 0
        point = self._start + (row << 64) // self._batch_size + example * _GOLDEN
        return bisect.bisect_right(self._ends, point % 2**64)


class RowStream:
    """One row of all batches. `position` is where the row after the last one begins."""

    def __init__(
        self,
        readers: Sequence[TaskReader],
        chooser: TaskChooser,
        row: int,
        batch_size: int,
        packer: NextFitPacker | None,
    ):
        self._readers, self._chooser, self._packer = readers, chooser, packer
        self._row, self._batch_size = row, batch_size
        self.restore(np.zeros(1 + 2 * len(readers), np.int64))

    def restore(self, position: np.ndarray) -> None:
        self.position = position.copy()
        self._examples, *rest = position.tolist()
        self._drawn, self._used = rest[::2], rest[1::2]  # by task
        self._documents: list[Tokens | None] = [None] * len(self._readers)  # the next, if known
        if self._packer is not None:
            self._packer.flush()

    def next_row(self) -> Row:
        """int32 [length] features: packed, or one example padded."""
        while True:
            task = self._chooser(self._row, self._examples)
            before = self._examples, self._drawn[task], self._used[task]
            example = self._next_example(task)
            self._examples += 1
            if self._packer is None:
                self.position = self._state()
                return pad_example(example, self._readers[task].lengths)
            if (row := self._packer.add(example)) is not None:
                # The example opened the next row: a restored stream makes it again.
                self.position = self._state()
                self.position[[0, 1 + 2 * task, 2 + 2 * task]] = before
                return row

    def _state(self) -> np.ndarray:
        pairs = zip(self._drawn, self._used, strict=True)
        return np.array([self._examples, *itertools.chain(*pairs)], np.int64)

    def _next_example(self, task: int) -> dict[str, np.ndarray]:
        reader = self._readers[task]
        if (missing := reader.segment_length) is None:
            record, draw = self._next_document(task), self._draw(task)
            self._step_over(task)
            return reader.example(record, draw, 0)
        pieces, start = [], None
        while missing:
            document, used = self._next_document(task), self._used[task]
            start = start or (self._draw(task), used)
            assert isinstance(document, np.ndarray), "only records without segments are dicts"
            pieces.append(document[used : used + missing])
            missing -= len(pieces[-1])
            self._used[task] += len(pieces[-1])
            if self._used[task] == len(document):
                self._step_over(task)
        return reader.example(pieces[0] if len(pieces) == 1 else np.concatenate(pieces), *start)

    def _next_document(self, task: int) -> Tokens:
        """The next document with tokens left; skips those without any."""
        reader, skipped = self._readers[task], 0
        while (document := self._documents[task]) is None:
            document = reader.document(self._draw(task))
            if _any_tokens(document):
                if self._used[task] and self._used[task] >= len(document):
                    raise UserError(
                        f"Task {reader.task.name!r}: the position to restore has used "
                        f"{self._used[task]} tokens of a document of {len(document)}; the data or "
                        "the vocabulary changed since: start a new run, or bring them back."
                    )
                self._documents[task] = document
                return document
            self._step_over(task)
            skipped += 1
            if skipped % len(reader.records) == 0:
                reader.check_has_tokens()
        return document

    def _draw(self, task: int) -> int:
        return self._row + self._drawn[task] * self._batch_size

    def _step_over(self, task: int) -> None:
        self._drawn[task] += 1
        self._used[task] = 0
        self._documents[task] = None
