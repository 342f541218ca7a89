"""Records with fields, one a line or row: JSON lines, CSV and TSV."""

import csv
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from t5x_lite.data.file_bytes import BOM, Bytes, contents, foreign_format, line_blocks
from t5x_lite.data.file_source import FileSource, Found, Keys, MissingKey, normal_keys, pick
from t5x_lite.data.files import BadRecords
from t5x_lite.data.source import Record, hash64
from t5x_lite.data.text_files import find_documents
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count, Fraction, Positive

_SPACE = re.compile(r"[ \t\n\r]*")


class _Rows(FileSource):
    """Records in rows of bytes, from which the fields of `keys` are taken.

    `scan` gives `parse` the same bytes as `read` will: what it can't use up is a bad record.
    """

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
        if problem := foreign_format(data[:512]):
            bad.add(f"{self.paths[file]} {problem}.")
            return Found.of([])
        torn = bad.count > torn
        spans = self.rows(file, data, bad)
        if torn and len(spans):
            spans = spans[:-1]  # the end of a torn file is half a row
        rows = []
        for start, stop, row in contents(data, spans, self.max_record_bytes):
            if row is None:
                problem = (
                    f"a record of {stop - start:,} bytes, expected at most "
                    f"{self.max_record_bytes:,}; split it, or raise "
                    f"{type(self).__name__}.max_record_bytes."
                )
            elif (problem := self._problem(file, row, start)) is None:
                rows.append((hash64(row.strip()), stop - start, start, stop))
            if problem is not None:
                line, lines = _count_lines(data, start) + 1, _count_lines(data, stop, start)
                # An open quote may take in many rows: a bad row counts as all its lines.
                bad.add(f"{self.paths[file]} line {line} (byte {start}): {problem}", max(lines, 1))
        return Found.of(rows)

    def _problem(self, file: int, row: bytes, start: int) -> str | None:
        try:
            pick(self.check(file, row), self.keys)
        except MissingKey as e:
            return f"{e}; set {type(self).__name__}.keys."
        except UnicodeDecodeError as e:
            return _not_utf8(e, start)
        except ValueError as e:
            return f"{e}; correct or remove the line."
        return None

    def check(self, file: int, row: bytes) -> Record:
        """As `parse`, and raises ValueError for more that may be wrong."""
        return self.parse(file, row)

    def read(self, file: int, begin: int, end: int) -> Record:
        return pick(self.parse(file, self.data(file)[begin:end]), self.keys)

    def place(self, file: int, begin: int) -> str:
        return f"line {_count_lines(self.data(file), begin) + 1}"


def _not_utf8(error: UnicodeDecodeError, start: int) -> str:
    return (
        f"not UTF-8, byte 0x{error.object[error.start]:02x} at offset {start + error.start} "
        f"({error.reason}); convert the file."
    )


def _count_lines(data: Bytes, stop: int, start: int = 0, block: int = 1 << 24) -> int:
    return sum(data[i : min(i + block, stop)].count(b"\n") for i in range(start, stop, block))


class JsonLines(_Rows):
    """Files with one JSON object a line, or with one list of objects; plain or compressed.

    keys: {record key: field}, "a/b" for a nested field; a string means {"text": string}; None gives
      all fields under their own names. A line without such a field, or with a field twice, is bad.
    Other arguments and errors as of `FileSource`.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        keys: Keys = "text",
        held_out: Fraction = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_bad_records: Count = 0,
        max_record_bytes: Positive = 10_000_000,
    ):
        super().__init__(files, keys, held_out, validation_files, max_bad_records, max_record_bytes)

    def rows(self, file: int, data: Bytes, bad: BadRecords) -> np.ndarray:
        spans = find_documents(data, "line")
        if not len(spans) or data[spans[0, 0] : spans[0, 0] + 64].lstrip()[:1] != b"[":
            return spans
        try:
            return np.array(_list_items(data[: len(data)]), np.int64).reshape(-1, 2)
        except UnicodeDecodeError as e:
            bad.add(f"{self.paths[file]}: {_not_utf8(e, 0)}")
        except json.JSONDecodeError as e:
            bad.add(
                f"{self.paths[file]} line {e.lineno}: no JSON list of objects ({e.msg}); expected "
                "one list, or one object a line."
            )
        return spans[:0]

    def parse(self, file: int, row: bytes) -> Record:
        return _json_object(row, _raw_decode)

    def check(self, file: int, row: bytes) -> Record:
        record = self.parse(file, row)
        # Looking at each field takes a while: only if there may be more than were kept.
        if row.count(b":") != len(record):
            most = row.count(b'":') + sum(map(row.count, (b" :", b"\t:", b"\r:", b"\n:")))
            if most != len(record):
                _json_object(row, _raw_decode_each_once)
        return record


def _json_object(row: bytes, raw_decode: Callable[[str], tuple[Any, int]]) -> Record:
    text = row.decode().strip(" \t\r\n")
    try:
        record, end = raw_decode(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as e:
        raise ValueError(f"no JSON ({e.msg} at character {e.pos})") from e
    except RecursionError as e:
        raise ValueError("JSON that is nested too deeply") from e
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, expected one object a line")
    return record


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two fields of the name {twice!r} in one JSON object")
    return found


_raw_decode = json.JSONDecoder().raw_decode
_raw_decode_each_once = json.JSONDecoder(object_pairs_hook=_each_once).raw_decode


def _list_items(data: bytes) -> list[tuple[int, int]]:
    """Spans in bytes of the items of a JSON list; raises JSONDecodeError or UnicodeDecodeError."""
    text = data.decode("utf-8-sig")
    decoder, spans = json.JSONDecoder(), []
    character, byte = 0, len(data) - len(text.encode())  # one place, counted in both

    def skip(begin: int) -> int:
        return _SPACE.match(text, begin).end()  # type: ignore[union-attr]  # it always matches

    at = skip(skip(0) + 1)
    while text[at : at + 1] != "]":
        if spans:
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = skip(at + 1)
        try:
            _, end = decoder.raw_decode(text, at)
        except RecursionError as e:
            raise json.JSONDecodeError("nested too deeply", text, at) from e
        start = byte + len(text[character:at].encode())
        character, byte = end, start + len(text[at:end].encode())
        spans.append((start, byte))
        at = skip(end)
    if text[skip(at + 1) :]:
        raise json.JSONDecodeError("Text after the list", text, skip(at + 1))
    return spans


class Delimited(_Rows):
    """CSV and TSV files, plain or compressed; all values are strings.

    keys: {record key: column}; a string means {"text": string}; None gives all columns.
    columns: their names, if the files' first row doesn't have them.
    delimiter: by default a tab for .tsv, else a comma.
    quoting: whether fields may be "quoted" (RFC 4180); by default not for .tsv.

    A quote opens a quoted field at the beginning of a field only. Rows end at \\n or \\r\\n; empty
    lines are passed over. Bad are rows with another number of fields, with text behind a closing
    quote, or with a lone \\r in a field that isn't quoted: programs disagree on what these mean.
    Other arguments and errors as of `FileSource`.
    """

    def __init__(
        self,
        files: str | Sequence[str],
        keys: Keys = "text",
        columns: Sequence[str] | None = None,
        delimiter: str | None = None,
        quoting: bool | None = None,
        held_out: Fraction = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_bad_records: Count = 0,
        max_record_bytes: Positive = 10_000_000,
    ):
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise UserError(
                f"Delimited.delimiter is {delimiter!r}; expected one character, such as ';', and "
                "no quote or line end."
            )
        self.columns = None if columns is None else tuple(columns)
        if self.columns is not None and (twice := _twice(self.columns)):
            raise UserError(f"Delimited.columns has the name {twice[0]!r} twice; rename one.")
        self.delimiter, self.quoting = delimiter, quoting
        super().__init__(files, keys, held_out, validation_files, max_bad_records, max_record_bytes)

    def rows(self, file: int, data: Bytes, bad: BadRecords) -> np.ndarray:
        spans = np.array(list(self._row_spans(file, data)), np.int64).reshape(-1, 2)
        if self.columns is not None or not len(spans):
            return spans
        try:
            problem = self._header_problem(self._header(file))
        except UnicodeDecodeError as e:
            problem = _not_utf8(e, 0)
        except ValueError as e:
            problem = f"{e}; correct the header."
        if problem is None and len(spans) == 1:
            problem = "a header and no rows; remove the file, or fetch it again."
        if problem is not None:  # one mistake for the whole file, not one a row
            bad.add(f"{self.paths[file]} line 1: {problem}", max(len(spans) - 1, 1))
            return spans[:0]
        return spans[1:]

    def _header_problem(self, names: tuple[str, ...]) -> str | None:
        wanted = (self.keys or {}).values()
        # Spreadsheets leave columns without a name; they matter if all columns are wanted.
        if twice := [name for name in _twice(names) if name or self.keys is None]:
            return f"two columns of the name {twice[0]!r}; rename one."
        if missing := [name for name in wanted if name not in names]:
            return (
                f"no column {missing[0]!r}, found {', '.join(map(repr, names))}; set "
                "Delimited.keys, or, if that is no header, Delimited.columns."
            )
        return None

    def _row_spans(self, file: int, data: Bytes) -> Iterator[tuple[int, int]]:
        """Where rows are, by the parser that also reads them."""
        delimiter, quoting = self._style(file)
        if not quoting:
            yield from map(tuple, find_documents(data, "row").tolist())
            return
        csv.field_size_limit(self.max_record_bytes)
        start = end = len(BOM) if data[: len(BOM)] == BOM else 0

        def lines() -> Iterator[str]:
            nonlocal end
            skipped = end
            for _, block in line_blocks(data):
                for line in io.BytesIO(block):  # lines end at \\n alone
                    if skipped:
                        line, skipped = line[skipped:], 0
                    end += len(line)
                    yield line.decode(errors="surrogateescape")

        reader = csv.reader(lines(), delimiter=delimiter, strict=True)
        while True:
            try:
                row: list[str] | None = next(reader, None)
                if row is None:
                    return
            except csv.Error:  # `parse` finds it again, and says what it is
                row = None
            if row != []:
                yield start, end
            start = end

    def _style(self, file: int) -> tuple[str, bool]:
        tabs = bool(re.search(r"\.tsv(\.|$)", os.path.basename(self.paths[file])))
        delimiter = self.delimiter or ("\t" if tabs else ",")
        return delimiter, not tabs if self.quoting is None else self.quoting

    def _fields(self, file: int, row: bytes) -> list[str]:
        delimiter, quoting = self._styles[file]
        text = row.decode()
        if not quoting:
            return text.removesuffix("\n").removesuffix("\r").split(delimiter)
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        try:
            # One string: what follows the end of the first row in it is an error.
            return next(csv.reader((text,), delimiter=delimiter, strict=True))
        except csv.Error as e:
            raise ValueError(_reason(e)) from e

    @functools.cached_property
    def _headers(self) -> dict[int, tuple[str, ...]]:
        return {}

    @functools.cached_property
    def _styles(self) -> list[tuple[str, bool]]:
        return [self._style(file) for file in range(len(self.paths))]

    def _header(self, file: int) -> tuple[str, ...]:
        if self.columns is not None:
            return self.columns
        if file not in self._headers:
            data = self.data(file)
            start, stop = next(self._row_spans(file, data))
            self._headers[file] = tuple(self._fields(file, data[start:stop]))
        return self._headers[file]

    def parse(self, file: int, row: bytes) -> Record:
        names, values = self._header(file), self._fields(file, row)
        if len(names) != len(values):
            raise ValueError(f"{len(values)} fields, expected {len(names)}: {', '.join(names)}")
        return dict(zip(names, values, strict=True))


def _reason(error: csv.Error) -> str:
    if "new-line character" in str(error):
        return "a carriage return (\\r) in a field that isn't quoted"
    if "unexpected end" in str(error):
        return "a quoted field that isn't closed"
    return f"no CSV ({error})"


def _twice(names: Sequence[str]) -> list[str]:
    return [name for i, name in enumerate(names) if name in names[:i]]
