"""Records with fields, in files: JSON lines, CSV and TSV, Parquet."""

import csv
import functools
import io
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import gin
import numpy as np

from t5x_lite.data.file_source import FileSource, Found, Keys, MissingKey, normal_keys, pick
from t5x_lite.data.files import (
    MEMORY_BYTES,
    BadRecords,
    Bytes,
    cache_folder,
    local_copy,
    version_of,
    written_whole,
)
from t5x_lite.data.source import Record, digest, hash64
from t5x_lite.data.text_files import find_documents
from t5x_lite.errors import UserError

_BOM = b"\xef\xbb\xbf"


class _Rows(FileSource):
    """Records in rows of bytes, from which the fields of `keys` are taken."""

    def __init__(self, files, keys: Keys, *arguments):
        self.keys = normal_keys(keys)
        super().__init__(files, *arguments)

    def rows(self, file: int, data: Bytes, bad: BadRecords) -> np.ndarray:
        """Spans int64 [N, 2] of the rows in the file's bytes."""
        raise NotImplementedError

    def parse(self, file: int, row: bytes) -> Record:
        """A row's fields; raises ValueError or MissingKey with what is wrong with it."""
        raise NotImplementedError

    def scan(self, file: int, bad: BadRecords) -> Found:
        torn = bad.count
        data = self.scan_data(file, bad)
        spans = self.rows(file, data, bad)
        if bad.count > torn and len(spans):
            spans = spans[:-1]  # the end of a torn file is half a row
        rows = []
        for start, stop in spans.tolist():
            if (problem := self._problem(file, data, start, stop)) is None:
                rows.append((hash64(data[start:stop].strip()), stop - start, start, stop))
            else:
                line = _count_lines(data, start) + 1
                bad.add(f"{self.paths[file]} line {line} (byte {start}): {problem}")
        return Found.of(rows)

    def _problem(self, file: int, data: Bytes, start: int, stop: int) -> str | None:
        name = type(self).__name__
        if stop - start > self.max_record_bytes:
            return (
                f"a record of {stop - start:,} bytes, expected at most {self.max_record_bytes:,}; "
                f"split it, or raise {name}.max_record_bytes."
            )
        try:
            pick(self.parse(file, data[start:stop]), self.keys)
        except MissingKey as e:
            return f"{e}; set {name}.keys."
        except UnicodeDecodeError as e:
            return (
                f"not UTF-8, byte 0x{e.object[e.start]:02x} at offset {start + e.start} "
                f"({e.reason}); convert the file."
            )
        except ValueError as e:
            return f"{e}; correct or remove the line."
        return None

    def read(self, file: int, begin: int, end: int) -> Record:
        return pick(self.parse(file, self.data(file)[begin:end]), self.keys)


def _count_lines(data: Bytes, stop: int, block: int = 1 << 24) -> int:
    return sum(data[i : min(i + block, stop)].count(b"\n") for i in range(0, stop, block))


@gin.configurable(module="t5x_lite")
class JsonLines(_Rows):
    """Files with one JSON object a line, plain, .gz or .zst.

    keys: {record key: field}, "a/b" for a nested field; a string means {"text": string}; None gives
      all fields under their own names. A line without such a field is bad.
    Other arguments and errors as of `FileSource`.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        keys: Keys = "text",
        held_out: float = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_bad_records: int = 0,
        max_record_bytes: int = 10_000_000,
    ):
        super().__init__(files, keys, held_out, validation_files, max_bad_records, max_record_bytes)

    def rows(self, file: int, data: Bytes, bad: BadRecords) -> np.ndarray:
        return find_documents(data, "line")

    def parse(self, file: int, row: bytes) -> Record:
        try:
            record = json.loads(row.decode())
        except json.JSONDecodeError as e:
            raise ValueError(f"no JSON ({e.msg} at character {e.pos})") from e
        except RecursionError as e:
            raise ValueError("JSON that is nested too deeply") from e
        if not isinstance(record, dict):
            raise ValueError(f"a JSON {type(record).__name__}, expected one object a line")
        return record


@gin.configurable(module="t5x_lite")
class Delimited(_Rows):
    """CSV and TSV files, plain, .gz or .zst; all values are strings.

    keys: {record key: column}; a string means {"text": string}; None gives all columns.
    columns: their names, if the files' first row doesn't have them.
    delimiter: by default a tab for .tsv, else a comma.
    quoting: whether fields may be "quoted" (RFC 4180); by default not for .tsv.
    Other arguments and errors as of `FileSource`. A row with another number of fields is bad.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        keys: Keys = "text",
        columns: Sequence[str] | None = None,
        delimiter: str | None = None,
        quoting: bool | None = None,
        held_out: float = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_bad_records: int = 0,
        max_record_bytes: int = 10_000_000,
    ):
        self.columns = None if columns is None else tuple(columns)
        self.delimiter, self.quoting = delimiter, quoting
        super().__init__(files, keys, held_out, validation_files, max_bad_records, max_record_bytes)

    def rows(self, file: int, data: Bytes, bad: BadRecords) -> np.ndarray:
        spans = self._row_spans(file, data)
        if self.columns is None and len(spans):
            names, wanted = self._header(file), (self.keys or {}).values()
            if missing := [name for name in wanted if name not in names]:
                # One mistake for the whole file, not one a row.
                bad.add(
                    f"{self.paths[file]} line 1: no column {missing[0]!r}, found "
                    f"{', '.join(map(repr, names))}; set Delimited.keys, or, if that is no header, "
                    "Delimited.columns.",
                    len(spans),
                )
                return spans[:0]
        return spans if self.columns is not None else spans[1:]

    def _row_spans(self, file: int, data: Bytes) -> np.ndarray:
        if not self._style(file)[1]:
            return find_documents(data, "line")
        # A line end ends a row unless an odd number of quotes is before it.
        array = np.frombuffer(data, np.uint8)
        quotes, ends = np.flatnonzero(array == ord('"')), np.flatnonzero(array == ord("\n")) + 1
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        if len(data) and (not len(ends) or ends[-1] != len(data)):
            ends = np.append(ends, len(data))
        begins = np.append(0, ends)[:-1]
        if len(begins) and data[: len(_BOM)] == _BOM:
            begins[0] = len(_BOM)
        spans = np.stack([begins, ends], 1).astype(np.int64)
        return spans[[bool(data[a:b].strip()) for a, b in spans.tolist()]]

    def _style(self, file: int) -> tuple[str, bool]:
        tabs = bool(re.search(r"\.tsv(\.|$)", os.path.basename(self.paths[file])))
        delimiter = self.delimiter or ("\t" if tabs else ",")
        return delimiter, not tabs if self.quoting is None else self.quoting

    def _fields(self, file: int, row: bytes) -> list[str]:
        delimiter, quoting = self._style(file)
        text = row.decode()
        if not quoting:
            return text.rstrip("\r\n").split(delimiter)
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        try:
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        except csv.Error as e:
            raise ValueError(f"no CSV ({e})") from e

    @functools.cached_property
    def _headers(self) -> dict[int, tuple[str, ...]]:
        return {}

    def _header(self, file: int) -> tuple[str, ...]:
        if self.columns is not None:
            return self.columns
        if file not in self._headers:
            data = self.data(file)
            start, stop = self._row_spans(file, data)[0].tolist()
            self._headers[file] = tuple(self._fields(file, data[start:stop]))
        return self._headers[file]

    def parse(self, file: int, row: bytes) -> Record:
        names, values = self._header(file), self._fields(file, row)
        if len(names) != len(values):
            raise ValueError(f"{len(values)} fields, expected {len(names)}: {', '.join(names)}")
        return dict(zip(names, values, strict=True))


@gin.configurable(module="t5x_lite")
class Parquet(FileSource):
    """Parquet files, by pyarrow. Row groups have no random access, so they are unpacked: in memory
    while they are small, else into Arrow files in the cache folder, which are mapped.

    keys: {record key: column}; a string means {"text": string}; None gives all columns.
    Other arguments and errors as of `FileSource`. All rows of a file without such a column, or
    with another type of it than the first file, are bad, and so is a row with no value.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        keys: Keys = "text",
        held_out: float = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_bad_records: int = 0,
        max_record_bytes: int = 10_000_000,
    ):
        self.keys = normal_keys(keys)
        super().__init__(files, held_out, validation_files, max_bad_records, max_record_bytes)

    def scan(self, file: int, bad: BadRecords) -> Found:
        path = self.paths[file]
        try:
            types, count = self._types(file)
        except (OSError, ValueError) as e:  # pyarrow's errors are of these classes
            bad.add(f"{path} is no Parquet file, or a torn one ({_line(e)}); fetch it again.")
            return Found.of([])
        if problem := self._other_schema(file, types):
            bad.add(f"{path}: {problem}", max(count, 1))
            return Found.of([])
        rows, table = [], self._table(file)
        row = 0
        for batch in table.to_batches(max_chunksize=1024):
            for record in batch.to_pylist():
                try:
                    content = repr(pick(record, self.keys)).encode()
                    if len(content) > self.max_record_bytes:
                        raise MissingKey(
                            f"a record of {len(content):,} bytes, expected at most "
                            f"{self.max_record_bytes:,}; split it, or raise max_record_bytes"
                        )
                    rows.append((hash64(content), len(content), row, row + 1))
                except MissingKey as e:
                    bad.add(f"{path} row {row}: {e}.")
                row += 1
        if not row:
            bad.add(f"{path} has no rows; remove it, or fetch it again.")
        return Found.of(rows)

    def read(self, file: int, begin: int, end: int) -> Record:
        row = {name: column[begin].as_py() for name, column in self._columns(file)}
        return pick(row, self.keys)

    def _other_schema(self, file: int, types: dict[str, str]) -> str | None:
        first = next(iter(self._first_types.values()), types)
        wanted = list(first) if self.keys is None else [_column(k) for k in self.keys.values()]
        for name in wanted:
            if name not in types:
                found = ", ".join(f"{n} ({t})" for n, t in types.items())
                return f"no column {name!r}, found {found}; set Parquet.keys, or leave it out."
            if types[name] != first.get(name, types[name]):
                return (
                    f"column {name!r} is {types[name]}, expected {first[name]} as in "
                    f"{self.paths[next(iter(self._first_types))]}; leave the file out."
                )
        self._first_types.setdefault(file, types)
        return None

    @functools.cached_property
    def _first_types(self) -> dict[int, dict[str, str]]:
        return {}

    # ---- pyarrow

    def _forget_data(self) -> None:
        super()._forget_data()
        self._tables: dict[int, Any] = {}
        self._columns = functools.lru_cache(maxsize=1024)(
            lambda file: list(zip(self._table(file).column_names, self._table(file).columns,
                                  strict=True))
        )  # fmt: skip

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k not in ("_tables", "_columns")}

    def _types(self, file: int) -> tuple[dict[str, str], int]:
        parquet = _pyarrow().parquet.ParquetFile(local_copy(self.paths[file]))
        schema = parquet.schema_arrow
        types = {name: str(schema.field(name).type) for name in schema.names}
        return types, parquet.metadata.num_rows

    def _table(self, file: int) -> Any:
        if file not in self._tables:
            self._tables[file] = self._read_table(file)
        return self._tables[file]

    def _read_table(self, file: int) -> Any:
        arrow, path = _pyarrow(), local_copy(self.paths[file])
        columns = self.keys and sorted({_column(k) for k in self.keys.values()})
        if sum(self._file_sizes) <= MEMORY_BYTES:
            return arrow.parquet.read_table(path, columns=columns, partitioning=None)
        unpacked = cache_folder("unpacked") / f"{digest(version_of(path), columns)}.arrow"
        if not unpacked.exists():
            parquet = arrow.parquet.ParquetFile(path)
            batches = parquet.iter_batches(columns=columns)
            with written_whole(unpacked) as temporary:
                writer = None
                for batch in batches:
                    writer = writer or arrow.ipc.new_file(temporary, batch.schema)
                    writer.write_batch(batch)
                if writer is None:
                    return arrow.parquet.read_table(path, columns=columns)
                writer.close()
        return arrow.ipc.open_file(arrow.memory_map(str(unpacked))).read_all()


def _column(path: str) -> str:
    return path.split("/")[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as e:
        raise UserError(f"Parquet needs pyarrow ({e}); pip install 't5x_lite[data]'.") from e
    return pyarrow
