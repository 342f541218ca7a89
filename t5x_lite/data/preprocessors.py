"""What may happen to a record before it is tokenized: functions of a record, by name.

A `Task` calls its preprocessors in order; each returns a record, or None to drop it. Any function
does, these are the common ones; their fields can be set in gin. All are pure: what they return
depends on the record and their fields alone, so that any host can make any record at any time.

One record to several can't be a preprocessor, as it would change how many records there are:
`FlatMap` makes a source of such a function, `Chunk` for instance.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from t5x_lite.data.record_text import as_text, fill, string_of
from t5x_lite.data.source import Record, Source, digest, hash64
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.ranges import Count, Positive


@dataclasses.dataclass(frozen=True)
class Rekey:
    """Renames: a record of the keys of `key_map`, with the values of its old keys.

    An old key that is None, empty or not in the record gives "", as with seqio.
    """

    key_map: Mapping[str, str | None]

    def __call__(self, record: Record) -> Record:
        return {new: record.get(old, "") if old else "" for new, old in self.key_map.items()}


@dataclasses.dataclass(frozen=True)
class Fields:
    """Writes new records by templates over the old ones' keys.

    `Fields({"inputs": "translate English to German: {en}", "targets": "{de}"})`. A field that is
    null, a list, an object or NaN is an error unless the template says what to write of it:
    `{stars|default(unknown)}`, `{words|join( )}` (record_text.py).
    """

    templates: Mapping[str, str]

    def __call__(self, record: Record) -> Record:
        return {key: fill(template, record) for key, template in self.templates.items()}


@dataclasses.dataclass(frozen=True)
class Strip:
    """Takes white space off both ends of the strings under `keys` (None: of all strings)."""

    keys: Sequence[str] | None = None

    def __call__(self, record: Record) -> Record:
        keys = [k for k, v in record.items() if isinstance(v, str)]
        keys = keys if self.keys is None else self.keys
        return {**record, **{key: string_of(record, key).strip() for key in keys}}


@dataclasses.dataclass(frozen=True)
class Filter:
    """Keeps the records whose string under `key` passes every test.

    min_characters, max_characters: its length. matching, without: a regular expression that is
    found somewhere in it, or nowhere.
    """

    key: str = "text"
    min_characters: Count = 0
    max_characters: Positive | None = None
    matching: str | None = None
    without: str | None = None

    def __post_init__(self):
        for name in ("matching", "without"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise UserError(
                    f"Filter.{name} is {getattr(self, name)!r}, no regular expression: {error}"
                ) from error

    def __call__(self, record: Record) -> Record | None:
        text = string_of(record, self.key)
        too_long = self.max_characters is not None and len(text) > self.max_characters
        if len(text) < self.min_characters or too_long:
            return None
        if self.matching is not None and not re.search(self.matching, text):
            return None
        return None if self.without is not None and re.search(self.without, text) else record


@dataclasses.dataclass(frozen=True)
class Concatenate:
    """Joins the texts under `keys` into a new one under `into`; empty, null and missing ones are
    left out."""

    keys: Sequence[str]
    into: str = "text"
    separator: str = "\n"

    def __call__(self, record: Record) -> Record:
        found = {key: record.get(key) for key in self.keys}
        texts = [as_text(value, key) for key, value in found.items() if value is not None]
        return {**record, self.into: self.separator.join(filter(None, texts))}


@dataclasses.dataclass(frozen=True)
class Truncate:
    """Cuts the string under `key` to `length`: characters, or tokens of a vocabulary.

    side: which end is cut, "right" or "left". (A task cuts features that are too long at the
    right by itself; a prompt whose end matters is cut at the left, by tokens.)
    vocabulary: the task's, if `length` counts tokens. It must be lossless, as the tokens that are
    left are decoded.
    """

    key: str
    length: Positive
    side: str = "right"
    vocabulary: Vocabulary | None = None

    def __post_init__(self):
        if self.side not in ("left", "right"):
            raise UserError(
                f"Truncate.side is {self.side!r}, expected left or right."
                + did_you_mean(self.side, ("left", "right"))
            )
        if self.length < 1:
            raise UserError(f"Truncate.length is {self.length}, expected 1 or more")

    def __call__(self, record: Record) -> Record:
        text = string_of(record, self.key)
        cut = slice(-self.length, None) if self.side == "left" else slice(self.length)
        if self.vocabulary is None:
            return {**record, self.key: text[cut]}
        ids = self.vocabulary.encode(text)
        if len(ids) <= self.length:
            return record
        return {**record, self.key: self.vocabulary.decode(ids[cut])}

    def __repr__(self) -> str:  # what a task's fingerprint is made of: no paths in it
        unit = "characters" if self.vocabulary is None else self.vocabulary.fingerprint
        return f"Truncate({self.key!r}, {self.length}, {self.side!r}, {unit})"


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Puts solved examples in front of the string under `key`.

    shots: records to choose from: a list or a source.
    count: how many; None: all, in their order. Which, and in what order, follows from `seed` and
      the record. The record itself is never one of its shots.
    split: of a source, such as "train"; None: all of it.
    templates: preprocessors of what is in `shots`, such as the task's own before this one.
    shot: template of an example. query: of the record, behind them. As of `Fields`.
    """

    shots: Sequence[Record] | Source
    count: Count | None = None
    seed: Count = 0
    shot: str = "{inputs}\n{targets}"
    query: str = "{inputs}\n"
    separator: str = "\n\n"
    key: str = "inputs"
    split: str | None = None
    templates: Sequence[Callable[[Record], Record | None]] = ()

    def __post_init__(self):
        if len(self._records) < (self.count or 0):
            found = len(self._records)
            raise UserError(f"FewShot.count is {self.count}, but there are {found} shots")

    @functools.cached_property
    def _records(self) -> Sequence[Record] | Source:
        if self.split is None:
            return self.shots
        if not isinstance(self.shots, Source):
            raise UserError(f"FewShot.split is {self.split!r}, and a list of shots has no splits.")
        return self.shots.split(self.split)

    def _shot(self, index: int) -> Record | None:
        """A record as the templates leave it; None if they drop it."""
        record: Record | None = self._records[index]
        for template in self.templates:
            record = record if record is None else template(record)
        return record

    def __call__(self, record: Record) -> Record:
        parts = [fill(self.shot, shot) for shot in self._chosen(record)]
        parts.append(fill(self.query, record))
        return {**record, self.key: self.separator.join(parts)}

    def _chosen(self, record: Record) -> list[Record]:
        if self.count is None:
            every = (self._shot(i) for i in range(len(self._records)))
            return [shot for shot in every if shot not in (None, record)]
        rng = np.random.default_rng((self.seed, hash64(repr(sorted(record.items())).encode())))
        chosen: dict[int, Record] = {}
        tried: set[int] = set()
        while len(chosen) < self.count and len(tried) < len(self._records):
            tried.add(i := int(rng.random() * len(self._records)))
            if i not in chosen and (shot := self._shot(i)) not in (None, record):
                chosen[i] = shot
        return list(chosen.values())

    def __repr__(self) -> str:
        shots = self.shots.fingerprint if isinstance(self.shots, Source) else digest(*self.shots)
        settings: tuple = (self.count, self.seed, self.shot, self.query, self.separator, self.key)
        if self.split is not None or self.templates:  # else as before there were these
            settings += (self.split, *self.templates)
        return f"FewShot({shots}, {', '.join(map(repr, settings))})"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Cuts the string under `key` into chunks of `length` characters; for `FlatMap`.

    overlap: characters that a chunk shares with the one before. Returns one record a chunk, the
    last may be shorter; other keys are copied.
    """

    length: Positive
    overlap: Count = 0
    key: str = "text"

    def __post_init__(self):
        if not 0 <= self.overlap < self.length:
            raise UserError(
                f"Chunk.length is {self.length} and overlap {self.overlap}: expected an overlap of "
                "0 or more and below the length"
            )

    def __call__(self, record: Record) -> list[Record]:
        text = string_of(record, self.key)
        ends = max(len(text) - self.overlap, 1)
        starts = range(0, ends, self.length - self.overlap)
        return [{**record, self.key: text[i : i + self.length]} for i in starts]


class FlatMap(Source):
    """A source of all records that `function` makes, a list of them, of each record of `source`.

    On first use every record is read once, to count. Splits are the source's, so that what comes
    from one record stays on one side.
    """

    def __init__(self, source: Source, function: Callable[[Record], Sequence[Record]]):
        self.source, self.function = source, function
        self._ends: np.ndarray | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return self.source.splits

    @property
    def num_files(self) -> int:
        return self.source.num_files

    @property
    def ends(self) -> np.ndarray:
        """int64 [records of the source]: how many records there are up to and with each."""
        if self._ends is None:
            counts = [len(self._made(i)) for i in range(len(self.source))]
            self._ends = np.cumsum(np.array(counts, np.int64))
        return self._ends

    @property
    def num_bytes(self) -> int:
        return self.source.num_bytes

    @property
    def fingerprint(self) -> str:
        name = getattr(self.function, "__qualname__", None) or repr(self.function)
        return digest(self.source.fingerprint, name)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        i = int(np.searchsorted(self.ends, index, "right"))
        before = int(self.ends[i - 1]) if i else 0
        return self._made(i)[index - before]

    def _made(self, index: int) -> Sequence[Record]:
        try:
            return self.function(self.source[index])
        except UserError as e:
            raise UserError(f"{self.source.where(index)}: {e}") from e

    def where(self, index: int) -> str:
        return self.source.where(int(np.searchsorted(self.ends, index, "right")))

    def _split(self, name: str) -> Source:
        return FlatMap(self.source.split(name), self.function)
