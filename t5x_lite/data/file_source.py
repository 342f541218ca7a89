"""What all sources of files share: files found, scanned once, read by position, split by hash."""

import copy
import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.data import file_bytes
from t5x_lite.data.file_bytes import Bytes, FileBytes, file_version, open_bytes
from t5x_lite.data.files import BadRecords, cached_arrays, find_files, local_copy, version_of
from t5x_lite.data.source import HashSplit, Index, Record, digest, hash64
from t5x_lite.errors import UserError, did_you_mean

Keys = str | Mapping[str, str] | None

_INDEX_VERSION = 2  # raised when `scan` finds other records in the same files
_OPENED = ("_opened", "_unpacked", "_suspect")


@dataclasses.dataclass(frozen=True)
class Found:
    """The records of a file: `hashes` uint64 [N] of their content, `sizes` int64 [N] in bytes,
    and `spans` int64 [N, 2], where the subclass finds them again."""

    hashes: np.ndarray
    sizes: np.ndarray
    spans: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, int]]) -> "Found":
        """Of a (hash, size, span begin, span end) for each record."""
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        hashes = np.array(columns[0], np.uint64)
        sizes, *spans = (np.array(column, np.int64) for column in columns[1:])
        return cls(hashes, sizes, np.stack(spans, 1))


class FileSource(HashSplit):
    """Records in files, each found by one pass over them on first use.

    Subclasses set their own options, then call this, and give `scan` and `read`.

    Args:
      files: a path, glob or URL, or several.
      held_out: share of records held out, by a hash of their content.
      validation_files: hold out these files instead; they are left out of `files`.
      max_bad_records: so many records that can't be used are left out and counted; one more is an
        error that names its file and position. A torn or empty file counts as one.
      max_record_bytes: a longer record is bad.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        held_out: float = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_bad_records: int = 0,
        max_record_bytes: int = 10_000_000,
    ):
        if max_bad_records < 0:
            raise UserError(f"max_bad_records is {max_bad_records}; use 0 or more.")
        self.max_bad_records, self.max_record_bytes = max_bad_records, max_record_bytes
        paths: list[str] = find_files(files)
        validation: Any = None
        if validation_files is not None:
            validation = copy.copy(self)
            HashSplit.__init__(validation, 0.0)
            validation.paths = find_files(validation_files)
            validation._forget_data()
            held = {os.path.realpath(p) for p in validation.paths}
            paths = [p for p in paths if os.path.realpath(p) not in held]
            if not paths:
                raise UserError(f"All of {files!r} are validation_files; none is left to train on.")
        super().__init__(held_out, validation)
        self.paths = paths
        self._forget_data()

    def scan(self, file: int, bad: BadRecords) -> Found:
        """Finds the records of `paths[file]`, telling `bad` of those that can't be used."""
        raise NotImplementedError

    def read(self, file: int, begin: int, end: int) -> Record:
        """The record of a span that `scan` found."""
        raise NotImplementedError

    def content(self, file: int, begin: int, end: int) -> bytes:
        """What `scan` hashed of a span, read now."""
        return self.data(file)[begin:end].strip()

    def place(self, file: int, begin: int) -> str:
        """Where a record is in its file, such as "line 3", for messages."""
        return f"byte {begin}"

    def options(self) -> tuple:
        """What decides which records `scan` finds."""
        hidden = ("paths", "validation", "held_out", "index", "fingerprint")
        own = {k: v for k, v in vars(self).items() if k not in hidden and not k.startswith("_")}
        return (type(self).__name__, sorted(own.items()))

    # ---- the files' bytes

    def _forget_data(self) -> None:
        self._unpacked: dict[int, Bytes] = {}
        # An open file holds a descriptor, so there can't be one for each of thousands of files.
        self._opened = functools.lru_cache(maxsize=64)(lambda file: self._open(file, None))
        self._suspect: set[int] = set()  # files that were written to since they were indexed

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in _OPENED}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget_data()

    @functools.cached_property
    def _versions(self) -> list[tuple[int, int, int]]:
        """The size, time and inode of each file when it was indexed."""
        return [file_version(local_copy(path)) for path in self.paths]

    @functools.cached_property
    def _in_memory(self) -> bool:
        """Whether the files are small enough to be unpacked in memory."""
        return sum(size for size, _, _ in self._versions) <= file_bytes.MEMORY_BYTES

    def data(self, file: int) -> Bytes:
        """The content of `paths[file]`, unpacked."""
        return self._unpacked[file] if file in self._unpacked else self._opened(file)

    def _open(self, file: int, bad: BadRecords | None) -> Bytes:
        path = self.paths[file]
        try:
            if file_version(local_copy(path)) != self._versions[file]:
                self._suspect.add(file)
            data = open_bytes(path, self._in_memory, bad)
        except OSError as e:
            raise UserError(f"{path} can't be read now: {e}.") from e
        if isinstance(data, FileBytes):
            data.on_change = functools.partial(self._suspect.add, file)
        else:
            self._unpacked[file] = data
        return data

    def _check_unchanged(self, file: int, index: int, begin: int, end: int) -> None:
        """Raises UserError if a record isn't what it was. A file that grew may go on growing."""
        if hash64(self.content(file, begin, end)) != self._records["hashes"][index]:
            raise UserError(
                f"{self.paths[file]} has changed since it was indexed: record {index}, at "
                f"{self.place(file, begin)}, is another now. Bring the old file back and give "
                "the same command, or begin a new run."
            )

    def scan_data(self, file: int, bad: BadRecords) -> Bytes:
        """As `data`, and tells `bad` if the file is torn or empty."""
        torn = bad.count
        data = self._open(file, bad)
        if not len(data) and bad.count == torn:
            bad.add(f"{self.paths[file]} is empty; remove it, or fetch it again.")
        return data

    # ---- all records

    @functools.cached_property
    def _records(self) -> dict[str, np.ndarray]:
        """hashes and sizes as of `Found`; places int64 [N, 3]: a span, and its file's number."""
        versions = (version_of(local_copy(path)) for path in self.paths)
        key = digest(_INDEX_VERSION, self.options(), *versions, *self.paths)
        size = sum(size for size, _, _ in self._versions)
        arrays = cached_arrays(key, size, self._scan_all)
        # One look-up gives a record's place: this is done for each record that is read.
        places = np.column_stack([arrays.pop("spans"), arrays.pop("files")])
        return arrays | {"places": places}

    def _scan_all(self) -> dict[str, np.ndarray]:
        bad = BadRecords(self.max_bad_records)
        found = []
        for file, path in enumerate(self.paths):
            before = bad.count
            found.append(self.scan(file, bad))
            if not len(found[-1].hashes) and bad.count == before:
                bad.add(f"{path} holds no records; remove it, or fetch it again.")
        columns = {
            name: np.concatenate([getattr(f, name) for f in found])
            for name in ("hashes", "sizes", "spans")
        }
        files = np.repeat(np.arange(len(found), dtype=np.int32), [len(f.hashes) for f in found])
        messages = np.frombuffer(json.dumps(bad.messages).encode(), np.uint8)
        return columns | {"files": files, "bad": np.array(bad.count), "messages": messages}

    def make_index(self) -> Index:
        return Index(self._records["hashes"], self._records["sizes"])

    def __getitem__(self, index: int) -> Record:
        begin, end, file = self._records["places"][index].tolist()
        try:
            record = self.read(file, begin, end)
        except UserError:
            raise
        except Exception:  # as of a parser; what `scan` let through can be read
            self._check_unchanged(file, index, begin, end)
            raise
        if file in self._suspect:
            self._check_unchanged(file, index, begin, end)
        return record

    def where(self, index: int) -> str:
        begin, _, file = self._records["places"][index].tolist()
        return f"{self.paths[file]} {self.place(file, begin)}"

    @property
    def num_files(self) -> int:
        return len(self.paths)

    @property
    def bad_records(self) -> int:
        """How many records were left out."""
        return int(self._records["bad"])

    @property
    def bad_messages(self) -> list[str]:
        """What was wrong with the first of them."""
        return json.loads(self._records["messages"].tobytes())

    def describe(self) -> dict[str, Any]:
        left_out = {"bad_records": self.bad_records} if self.max_bad_records else {}
        return super().describe() | left_out


# ---- keys of records


def normal_keys(keys: Keys) -> dict[str, str] | None:
    return {"text": keys} if isinstance(keys, str) else None if keys is None else dict(keys)


class MissingKey(Exception):
    """A record lacks a field, or has none there that can be used; the message says what it has."""


def pick(record: Mapping[str, Any], keys: dict[str, str] | None) -> Record:
    """{record key: value of a field}, "a/b" for a nested one; None: the record as it is."""
    if keys is None:
        return dict(record)
    picked = {}
    for key, path in keys.items():
        value: Any = record
        for part in (path,) if path in record else path.split("/"):
            if not isinstance(value, Mapping) or value.get(part) is None:
                raise MissingKey(_missing(path, value, part))
            value = value[part]
        if key == "text" and not isinstance(value, str):
            raise MissingKey(f"{path!r} is {type(value).__name__}, expected text")
        picked[key] = value
    return picked


def _missing(path: str, value: Any, part: str) -> str:
    if isinstance(value, Mapping) and part in value:
        return f"{path!r} is null"
    names = list(value) if isinstance(value, Mapping) else [type(value).__name__]
    found = ", ".join(map(repr, names[:12])) or "nothing"
    return f"no field {path!r}, found {found}" + did_you_mean(part, names).rstrip("?").rstrip()
