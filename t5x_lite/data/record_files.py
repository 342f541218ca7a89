"""Files of binary records: array_record and TFRecord."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_lite.data.file_bytes import file_version
from t5x_lite.data.file_source import FileSource, Found, Keys, MissingKey, normal_keys, pick
from t5x_lite.data.files import BadRecords, local_copy
from t5x_lite.data.source import Record, hash64
from t5x_lite.data.tf_example import TornFile, frame_spans, parse_example
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count, Fraction, Positive

_FORMATS = ("tf.Example", "json", "text")


class _Binary(FileSource):
    """Records that are a tf.Example, a JSON object or text each."""

    def __init__(self, files, keys: Keys, record_format: str | None, *arguments):
        if record_format not in (None, *_FORMATS):
            raise UserError(
                f"{type(self).__name__}.record_format is {record_format!r}; use {_FORMATS}."
            )
        self.keys, self.record_format = normal_keys(keys), record_format
        super().__init__(files, *arguments)

    def find(self, file: int, bad: BadRecords) -> np.ndarray:
        """Spans int64 [N, 2] of the file's records."""
        raise NotImplementedError

    def raw(self, file: int, spans: np.ndarray) -> Sequence[bytes]:
        """The bytes of some records."""
        raise NotImplementedError

    def scan(self, file: int, bad: BadRecords) -> Found:
        rows, spans = [], self.find(file, bad)
        for first in range(0, len(spans), 256):
            some = spans[first : first + 256]
            for i, (span, data) in enumerate(zip(some.tolist(), self.raw(file, some), strict=True)):
                if problem := self._problem(data):
                    bad.add(f"{self.paths[file]} record {first + i}: {problem}")
                else:
                    rows.append((hash64(data), len(data), *span))
        return Found.of(rows)

    def _problem(self, data: bytes) -> str | None:
        name = type(self).__name__
        if len(data) > self.max_record_bytes:
            return (
                f"{len(data):,} bytes, expected at most {self.max_record_bytes:,}; split it, or "
                f"raise {name}.max_record_bytes."
            )
        try:
            self._record(data)
        except MissingKey as e:
            return f"{e}; set {name}.keys."
        except ValueError as e:
            return f"{' '.join(str(e).split())}; expected {self._format}: set {name}.record_format."
        return None

    @functools.cached_property
    def _format(self) -> str:
        """As given, or what the first record is."""
        if self.record_format is not None:
            return self.record_format
        for file in range(len(self.paths)):
            spans = self.find(file, BadRecords(len(self.paths)))
            if len(spans):
                return _guess(self.raw(file, spans[:1])[0])
        return "text"

    def _record(self, data: bytes) -> Record:
        match self._format:
            case "text":
                record: dict[str, Any] = {"text": data.decode()}
            case "json":
                record = json.loads(data)
                if not isinstance(record, dict):
                    raise ValueError(f"a JSON {type(record).__name__}, no object")
            case _:
                record = {k: _text(v) for k, v in parse_example(data).items()}
        return pick(record, self.keys)

    def read(self, file: int, begin: int, end: int) -> Record:
        return self._record(self.content(file, begin, end))

    def content(self, file: int, begin: int, end: int) -> bytes:
        return self.raw(file, np.array([[begin, end]]))[0]


def _guess(data: bytes) -> str:
    try:
        if isinstance(json.loads(data), dict):
            return "json"
    except ValueError:
        pass
    try:
        if parse_example(data):
            return "tf.Example"
    except ValueError:
        pass
    return "text"


def _text(value: Any) -> Any:
    """Bytes as UTF-8 where they are."""
    if isinstance(value, list):
        return [_text(v) for v in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


class ArrayRecords(_Binary):
    """array_record files.

    keys: {record key: field}; a string means {"text": string}; None gives all fields.
    record_format: "tf.Example", "json" or "text" (UTF-8, in the field "text"); by default what the
      first record is.
    Other arguments and errors as of `FileSource`.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        keys: Keys = "text",
        record_format: str | None = None,
        held_out: Fraction = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_bad_records: Count = 0,
        max_record_bytes: Positive = 10_000_000,
    ):
        super().__init__(
            *(files, keys, record_format, held_out, validation_files),
            *(max_bad_records, max_record_bytes),
        )

    def _forget_data(self) -> None:
        super()._forget_data()
        self._readers = functools.lru_cache(maxsize=256)(
            lambda file: open_array_record(local_copy(self.paths[file]))
        )

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "_readers"}

    def find(self, file: int, bad: BadRecords) -> np.ndarray:
        try:
            count = self._readers(file).num_records()
        except (RuntimeError, ValueError, IndexError) as e:
            reason = " ".join(str(e).split())[:200]
            bad.add(f"{self.paths[file]} is no array_record file, or a torn one ({reason}).")
            return np.zeros((0, 2), np.int64)
        if not count:
            bad.add(f"{self.paths[file]} is no array_record file, or an empty one; remove it.")
        return np.stack([np.arange(count), np.arange(1, count + 1)], 1)

    def raw(self, file: int, spans: np.ndarray) -> Sequence[bytes]:
        # Each time: of a file that was cut short, the reader gives empty records without an error.
        try:
            if file_version(local_copy(self.paths[file])) != self._versions[file]:
                self._suspect.add(file)
        except OSError:
            self._suspect.add(file)
        try:
            return self._readers(file).read(spans[:, 0].tolist())
        except (RuntimeError, ValueError, IndexError) as e:
            raise UserError(
                f"{self.paths[file]} can't be read: {' '.join(str(e).split())[:200]}. If it was "
                "written to, bring the old file back; else fetch it again."
            ) from e


def open_array_record(path: str) -> Any:
    """A reader with num_records() and read(indices)."""
    try:
        from array_record.python import array_record_module
    except ImportError as e:
        raise UserError(f"array_record needs a package ({e}); pip install 't5x_lite[data]'.") from e
    # For random access: nothing read ahead, no threads.
    options = "readahead_buffer_size:0,max_parallelism:0"
    return array_record_module.ArrayRecordReader(path, options, file_reader_buffer_size=32768)


class TfRecords(_Binary):
    """TFRecord files, plain or compressed, without TensorFlow: one pass finds where records are.

    Arguments and errors as of `ArrayRecords`.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        keys: Keys = "text",
        record_format: str | None = None,
        held_out: Fraction = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_bad_records: Count = 0,
        max_record_bytes: Positive = 10_000_000,
    ):
        super().__init__(
            *(files, keys, record_format, held_out, validation_files),
            *(max_bad_records, max_record_bytes),
        )

    def find(self, file: int, bad: BadRecords) -> np.ndarray:
        data = self.scan_data(file, bad)
        try:
            return frame_spans(data)
        except TornFile as e:
            bad.add(
                f"{self.paths[file]} is no TFRecord file, or a torn one: {e}, after "
                f"{len(e.spans):,} records; fetch it again."
            )
            return e.spans

    def raw(self, file: int, spans: np.ndarray) -> Sequence[bytes]:
        data = self.data(file)
        return [data[begin:end] for begin, end in spans.tolist()]
