"""A task is a source, an objective and a vocabulary; a mixture is tasks with rates."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from t5x_lite.data.objectives.base import Objective, finish_example
from t5x_lite.data.preprocessors import Fields
from t5x_lite.data.reading import Reading, objective_reading
from t5x_lite.data.source import Record, Source, digest
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.ranges import AboveZero

__all__ = ["Fields", "Mixture", "Preprocessor", "Task"]

Preprocessor = Callable[[Record], Record | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a model learns from: text, and what is made of it.

    name: keys the order of the documents and the noise, together with the seed.
    preprocessors: functions of a record that return a record, or None to drop it, in order.

    metrics: functions of (targets, predictions) by which it is judged: t5x_lite.evaluation.metrics.

    The objective reads {"text": str} of a record; one that takes each record as one example
    (TextToText) reads the strings under its features' names, or what it says (objectives/base.py).
    For metrics, a record may hold more: see t5x_lite.data.templates.
    """

    name: str
    source: Source
    objective: Objective
    vocabulary: Vocabulary
    preprocessors: Sequence[Preprocessor] = ()
    metrics: Sequence[Callable] = ()

    reading: ClassVar[Reading | None] = None  # of the weights that it was made for: `read_as`

    def __post_init__(self):
        if hasattr(self.objective, "head"):  # templates then make what it reads
            made = [
                dataclasses.replace(p, for_heads=True) if hasattr(p, "for_heads") else p
                for p in self.preprocessors
            ]
            object.__setattr__(self, "preprocessors", made)

    @functools.cached_property
    def num_examples(self) -> int:
        """Documents in the training split."""
        return len(self.source.split("train"))

    @functools.cached_property
    def num_bytes(self) -> int:
        """Bytes of text in the training split."""
        return self.source.split("train").num_bytes

    @property
    def leaves(self) -> tuple[tuple["Task", float], ...]:
        """As of a mixture: ((task, share), ...)."""
        return ((self, 1.0),)

    def read_as(self, reading: Reading) -> "Task":
        """The task for weights that read so, whatever its objective says: to be evaluated."""
        made = copy.copy(self)
        object.__setattr__(made, "reading", reading)
        return made

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of all that decides on its examples, except the code of preprocessors."""
        parts = (self.source.fingerprint, repr(self.objective), self.vocabulary.fingerprint)
        causal = ["causal"] * (getattr(self.objective, "prefix", None) == "causal")
        return digest(self.name, *parts, *self.steps, *causal)

    @property
    def steps(self) -> list[str]:
        """The preprocessors by name, and the chat template's text: as in its fingerprint."""
        names = [getattr(p, "__qualname__", None) or repr(p) for p in self.preprocessors]
        template = getattr(self.objective, "template", None)
        return names if template is None else [*names, template.identity(self.vocabulary)]

    def document(self, records: Source, index: int) -> np.ndarray:
        """Tokens of a record's text, int32 [tokens]; none if it is blank or dropped."""
        record = self.record(records, index)
        tokens = self._encode(record, "text", records, index) if record else np.zeros(0, np.int32)
        if len(tokens) and self.objective.document_eos:
            tokens = np.concatenate((tokens, np.array([self.vocabulary.eos_id], np.int32)))
        return tokens

    def fields(self, records: Source, index: int) -> dict[str, np.ndarray]:
        """Tokens of each key that the objective reads of a record; {} if it is dropped."""
        record = self.record(records, index)
        own = getattr(self.objective, "tokens", None)
        if record and own is not None and not self.source.tokenized:
            try:
                return own(record, self.vocabulary)
            except UserError as e:
                raise UserError(f"Task {self.name!r}: {_place(records, index)}: {e}") from e
        names = getattr(self.objective, "reads", self.objective.features) if record else ()
        return {name: self._encode(record, name, records, index) for name in names}

    def example(
        self,
        tokens: np.ndarray | Mapping[str, np.ndarray],
        rng: np.random.Generator,
        lengths: Mapping[str, int],
    ) -> dict[str, np.ndarray]:
        """The objective's example of a segment of documents, or of `fields`; trimmed, with EOS."""
        objective, eos = self.objective, self.vocabulary.eos_id
        example = objective(tokens, rng, self.vocabulary, lengths)
        reading = self.reading
        if reading is None and getattr(objective, "prefix", None) == "causal":
            reading = objective_reading(objective, "decoder_only")
        if reading is not None:
            return reading.finish(example, lengths, objective.append_eos, eos)
        return finish_example(example, lengths, objective.append_eos, eos)

    def record(self, records: Source, index: int) -> Record | None:
        """A record as the preprocessors leave it; None if they drop it."""
        record = records[index]
        if self.source.tokenized:
            return record
        for function in self.preprocessors:
            name = getattr(function, "__name__", None) or repr(function)
            found = record
            try:
                record = function(found)
            except KeyError as e:
                raise UserError(
                    f"Task {self.name!r}: preprocessor {name} wants the key {e} of "
                    f"{_place(records, index)}, which has {_names(found)}."
                ) from e
            except UserError as e:
                raise UserError(f"Task {self.name!r}: {_place(records, index)}: {e}") from e
            if record is None:
                return None
            if not isinstance(record, Mapping):
                raise UserError(
                    f"Task {self.name!r}: preprocessor {name} returned {type(record).__name__} for "
                    f"record {index}; it must return a dict, or None to drop the record."
                )
        return record

    def _encode(self, record: Record, key: str, records: Source, index: int) -> np.ndarray:
        if self.source.tokenized and key in record:
            return record[key]
        return self.vocabulary.encode(self.text(record, key, records, index))

    def text(self, record: Record, key: str, records: Source, index: int) -> str:
        """The text under a key of `record(records, index)`; UserError if there is none."""
        if key not in record:
            raise UserError(
                f"Task {self.name!r}: record {index} has the keys {_names(record)}, expected "
                f"{key!r}; rename it in the source or with the preprocessor Fields."
                + did_you_mean(key, record)
            )
        if not isinstance(record[key], str):
            raise UserError(
                f"Task {self.name!r}: {key!r} of {_place(records, index)} is "
                f"{type(record[key]).__name__}, expected str; turn it into text in a preprocessor."
            )
        return record[key]


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Tasks, or mixtures, in proportion.

    rates: a weight for each, or "examples": its number of training documents, or "bytes": of its
      training text, in the place of tokens; at most `maximum` (the K of T5, arXiv:1910.10683), to
      the power of 1 / `temperature`.

    The rate of a mixture within a mixture is shared out among its own tasks. All tasks must make
    the same features with the same vocabulary; a task met twice counts once, with the summed share.
    """

    name: str
    tasks: Sequence["Task | Mixture"]
    rates: Sequence[float] | str = "examples"
    maximum: AboveZero | None = None
    temperature: AboveZero = 1.0

    def __post_init__(self):
        if not self.tasks:
            raise UserError(f"Mixture {self.name!r} has no tasks; give it one at least.")
        if not self.temperature > 0:
            raise UserError(f"Mixture {self.name!r}: temperature is {self.temperature}, not > 0.")
        if isinstance(self.rates, str):
            if self.rates not in ("examples", "bytes"):
                raise UserError(
                    f"Mixture {self.name!r}: rates are {self.rates!r}; use 'examples', 'bytes' "
                    "(which stand for tokens) or numbers."
                )
        elif len(self.rates) != len(self.tasks):
            raise UserError(
                f"Mixture {self.name!r} has {len(self.tasks)} tasks and {len(self.rates)} rates; "
                "give one rate to each task."
            )
        elif not all(0 <= r < math.inf for r in self.rates) or sum(self.rates) == 0:
            raise UserError(
                f"Mixture {self.name!r}: rates are {list(self.rates)}; they must be 0 or more and "
                "not all 0."
            )

    @property
    def objective(self) -> Objective:
        """Of one of its tasks: they make the same features."""
        return self.leaves[0][0].objective

    @property
    def vocabulary(self) -> Vocabulary:
        """Of all its tasks."""
        return self.leaves[0][0].vocabulary

    @functools.cached_property
    def num_examples(self) -> int:
        """Documents in the training splits of its tasks."""
        return sum(task.num_examples for task, _ in self.leaves)

    @functools.cached_property
    def num_bytes(self) -> int:
        """Bytes of text in the training splits of its tasks."""
        return sum(task.num_bytes for task, _ in self.leaves)

    @functools.cached_property
    def leaves(self) -> tuple[tuple[Task, float], ...]:
        """((task, share), ...): every task once, with a share > 0; the shares sum to 1."""
        rates = self.rates
        if isinstance(rates, str):
            cap = math.inf if self.maximum is None else self.maximum
            sizes = [t.num_bytes if rates == "bytes" else t.num_examples for t in self.tasks]
            rates = [min(size, cap) ** (1 / self.temperature) for size in sizes]
        shares: dict[Task, float] = {}
        for part, rate in zip(self.tasks, rates, strict=True):
            for task, share in part.leaves if rate else ():
                shares[task] = shares.get(task, 0.0) + share * rate / sum(rates)
        self._check_alike(list(shares))
        return tuple(shares.items())

    def read_as(self, reading: Reading) -> "Mixture":
        """As of a task."""
        made = copy.copy(self)
        leaves = tuple((task.read_as(reading), share) for task, share in self.leaves)
        object.__setattr__(made, "leaves", leaves)
        return made

    def _check_alike(self, tasks: list[Task]) -> None:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(
                f"Mixture {self.name!r} has different tasks of the name {twice!r}; rename one."
            )
        for task in tasks[1:]:
            if task.objective.features != tasks[0].objective.features:
                raise UserError(
                    f"Mixture {self.name!r}: task {names[0]!r} makes "
                    f"{_names(tasks[0].objective.features)} and {task.name!r} "
                    f"{_names(task.objective.features)}; mix tasks with the same features."
                )
            prefixes = [getattr(t.objective, "prefix", "bidirectional") for t in (tasks[0], task)]
            if prefixes[0] != prefixes[1]:
                raise UserError(
                    f"Mixture {self.name!r}: inputs of task {names[0]!r} are {prefixes[0]} and "
                    f"those of {task.name!r} {prefixes[1]}; set TextToText.prefix alike."
                )
            if task.vocabulary.fingerprint != tasks[0].vocabulary.fingerprint:
                raise UserError(
                    f"Mixture {self.name!r}: tasks {names[0]!r} and {task.name!r} have different "
                    "vocabularies; give them the same one."
                )

    @property
    def fingerprint(self) -> str:
        return digest(*((task.fingerprint, share) for task, share in self.leaves))


def _place(records: Source, index: int) -> str:
    """Such as "record 12 (a.jsonl line 13)"."""
    where = records.where(index)
    return f"record {index} ({where})" if where != f"record {index}" else where


def _names(names) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
