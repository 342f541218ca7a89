"""Formats of files: each function yields what a file holds, one item after the other.

An item is the fields of a document, None for what is no document (a reason was counted), or a
function that returns one of these: work that can take long is left to the caller, who may be
passing over items.
"""

import csv
import itertools
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from t5x_lite.corpus import web, wikipedia
from t5x_lite.corpus.code_languages import LANGUAGES, language_of
from t5x_lite.corpus.encodings import SAMPLE, decoded, guess, read_as
from t5x_lite.corpus.language import tag
from t5x_lite.corpus.opening import Bomb, Problems, Stream
from t5x_lite.corpus.pdf import pdf_text

Fields = dict[str, Any]
Item = Fields | None | Callable[[], Fields | None]


class Opened:
    """A file, or a member of an archive, as the functions of formats take it.

    reader: whose settings count. name: as problems show it. stream: its bytes, unpacked.
    """

    def __init__(self, reader: Any, stream: Stream, name: str, problems: Problems, path: str = ""):
        self.reader, self.stream, self.name, self.problems = reader, stream, name, problems
        self._path = path
        self._temporary: Any = None

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.close()

    def problem(self, kind: str, detail: str = "") -> None:
        self.problems.add(kind, f"{self.name}{detail}")

    @property
    def path(self) -> str:
        """For readers that need a file: itself, or a copy of an archive's member."""
        if not self._path:
            self._temporary = tempfile.NamedTemporaryFile(prefix="t5x_lite.")  # noqa: SIM115
            while block := self.stream.read(1 << 20):
                self._temporary.write(block)
            self._temporary.flush()
            self._path = self._temporary.name
        return self._path

    def whole(self) -> bytes | None:
        """All bytes of a document; None, and a problem, if they are too many."""
        data = self.stream.read(self.reader.max_document_bytes + 1)
        self.stream.check()  # half a document is none
        if len(data) > self.reader.max_document_bytes:
            self.problem("document too long")
            return None
        return data

    def lines(self) -> Iterator[str | None]:
        """Lines without their ends; None for one that is too long. One guess of the encoding."""
        sample = self.stream.peek(4 * SAMPLE)
        codec = guess(sample)
        if codec.startswith(("utf-16", "utf-32")):
            self.stream.transcode(codec)
            codec = "utf-8"
        for number, line in enumerate(self.stream.lines(self.reader.max_document_bytes), 1):
            if line is None:
                self.problem("line too long", f" line {number}")
                yield None
                continue
            if codec == "utf-8" and not line.isascii() and sample.isascii():
                sample = line  # the first that says anything about the file's encoding
                codec = guess(line)
            yield read_as(line, codec).removeprefix("\ufeff").rstrip("\r\n")


def text(file: Opened) -> Iterator[Item]:
    """A document a file, paragraph or line."""
    if file.reader.document == "file":
        data = file.whole()
        yield None if data is None else lambda: {"text": decoded(data)}
        return
    paragraph: list[str] = []
    size = 0
    for line in itertools.chain(file.lines(), [""]):
        if line is None:
            yield None
        elif file.reader.document == "line":
            if line.strip():
                yield {"text": line}
        elif line.strip():
            size += len(line) + 1
            if size <= file.reader.max_document_bytes:
                paragraph.append(line)
        elif paragraph:
            if size > file.reader.max_document_bytes:
                file.problem("document too long")
                yield None
            else:
                yield {"text": "\n".join(paragraph)}
            paragraph, size = [], 0


# ----------------------------------------------------------------------------------- rows of fields


def json_lines(file: Opened) -> Iterator[Item]:
    """A JSON object a line; of a .json file also one array, or objects over several lines."""
    start = file.stream.peek(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not file.name.lower().endswith(("jsonl", "ndjson")) and not _one_a_line(start):
        yield from _json_values(file)
        return
    for number, line in enumerate(file.lines(), 1):
        if line is None:
            yield None
        elif line.strip():
            try:
                yield row_fields(file.reader, json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                file.problem("no JSON with a text", f" line {number}")
                yield None


def _one_a_line(start: bytes) -> bool:
    first = start.split(b"\n", 1)[0]
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return start[:1] != b"[" and b'"' in first  # a broken line, or one that is longer than this


def _json_values(file: Opened) -> Iterator[Item]:
    """Objects of an array, or one after the other, each read as soon as it is whole."""
    decoder, buffer, number, most = json.JSONDecoder(), "", 0, file.reader.max_document_bytes
    block, left = 1 << 16, True
    codec = guess(file.stream.peek(SAMPLE))
    file.stream.transcode(codec)
    while True:
        buffer = buffer.lstrip("\ufeff \t\r\n,")
        if number == 0:
            buffer = buffer.removeprefix("[").lstrip(" \t\r\n")
        if buffer:
            if buffer[0] == "]" and not buffer[1:].strip() and not left:
                return
            try:
                row, end = decoder.raw_decode(buffer)
                if end < len(buffer) or not left:  # a number may go on
                    buffer, number, block = buffer[end:], number + 1, 1 << 16
                    yield _row(file, row, f" value {number}")
                    continue
            except RecursionError:
                file.problem("no JSON with a text", f" value {number + 1}: too deep")
                return
            except ValueError:
                if not left or len(buffer) > most:
                    if buffer[0] != "]":
                        file.problem("no JSON with a text", f" value {number + 1}")
                    return
        data = file.stream.read(block)
        if not data and not left:
            return
        left, block = bool(data), min(2 * block, 1 << 24)
        buffer += data.decode(errors="replace")


def _row(file: Opened, row: Any, where: str) -> Fields | None:
    try:
        return row_fields(file.reader, row)
    except (KeyError, TypeError):
        file.problem("no JSON with a text", where)
        return None


def row_fields(reader: Any, row: dict[str, Any]) -> Fields:
    """The fields of a row; address, language, licence and id may stand in its "metadata".

    Raises KeyError or TypeError if there is no text.
    """
    value = row[reader.text_field]
    if not isinstance(value, str):
        raise TypeError(value)
    found: Fields = {"text": value}
    inner = row.get("metadata")
    for field in ("url", "language", "license", "id"):
        name = getattr(reader, f"{field}_field")
        for place in (row, inner):
            given = place.get(name) if isinstance(place, dict) else None
            if isinstance(given, str) and given:
                found[field] = given
                break
    if "language" in found:
        given = found["language"]
        found["code"] = given.lower() in LANGUAGES
        found["language"] = given.lower() if found["code"] else tag(given)
    return found


def table(file: Opened) -> Iterator[Item]:
    """CSV or TSV with a row of names, as RFC 4180 and Python's csv have it."""
    csv.field_size_limit(file.reader.max_document_bytes)
    delimiter = "\t" if ".tsv" in file.name.lower() else ","
    ended = (None if line is None else f"{line}\n" for line in file.lines())
    rows = csv.reader((line for line in ended if line is not None), delimiter=delimiter)
    names: list[str] | None = None
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            file.problem("damaged row", f" line {rows.line_num}: {error}")
            yield None
            continue
        if row is None:
            return
        if names is None:
            names = [name.strip() for name in row]
            if names.count(file.reader.text_field) != 1:
                file.problem("no text column", f" has {', '.join(names)[:200]}")
                return
        elif len(row) != len(names):
            if row:
                file.problem("damaged row", f" line {rows.line_num}: {len(row)} fields")
                yield None
        else:
            yield row_fields(file.reader, dict(zip(names, row, strict=True)))


def parquet(file: Opened) -> Iterator[Item]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as opened:
        names = _columns(file, opened.schema_arrow.names)
        if names:
            yield from _rows(file, opened.iter_batches(batch_size=256, columns=names))


def arrow(file: Opened) -> Iterator[Item]:
    """Arrow's file format (Feather 2) or its stream, which Hugging Face's datasets write."""
    import pyarrow

    with pyarrow.memory_map(file.path) as source:
        try:
            opened: Any = pyarrow.ipc.open_file(source)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        except pyarrow.ArrowInvalid:
            source.seek(0)
            batches = opened = pyarrow.ipc.open_stream(source)
        names = _columns(file, opened.schema.names)
        if names:
            small = (batch.slice(i, 256) for batch in batches for i in range(0, len(batch), 256))
            yield from _rows(file, (batch.select(names) for batch in small))


def _columns(file: Opened, names: list[str]) -> list[str]:
    reader = file.reader
    if reader.text_field not in names:
        file.problem("no text column", f" has {', '.join(sorted(set(names)))[:200]}")
        return []
    wanted = (reader.text_field, reader.url_field, reader.language_field, reader.license_field,
              reader.id_field, "metadata")  # fmt: skip
    return [name for name in dict.fromkeys(wanted) if name in names]


def _rows(file: Opened, batches: Iterator[Any]) -> Iterator[Item]:
    for batch in batches:
        for row in batch.to_pylist():
            value = row[file.reader.text_field]
            if not isinstance(value, str):
                file.problem("no text")
                yield None
            elif len(value) > file.reader.max_document_bytes:
                file.problem("document too long")
                yield None
            else:
                yield row_fields(file.reader, row)


# ------------------------------------------------------------------------------- documents as files


def html(file: Opened) -> Iterator[Item]:
    data = file.whole()
    yield (
        None if data is None else lambda: {"text": web.main_text(data, None, file.reader.extractor)}
    )


def warc(file: Opened) -> Iterator[Item]:
    yield from web.warc_pages(file)


def xml(file: Opened) -> Iterator[Item]:
    yield from wikipedia.pages(file)


def pdf(file: Opened) -> Iterator[Item]:
    reader = file.reader

    def read() -> Fields | None:
        limits = reader.max_document_bytes, reader.pdf_seconds, reader.pdf_megabytes
        found, problem = pdf_text(file.path, *limits)
        if problem:
            file.problem(problem)
        return None if problem else {"text": found}

    yield read


def code(file: Opened) -> Iterator[Item]:
    data = file.whole()

    def read() -> Fields | None:
        value = decoded(data)
        language = language_of(file.reader.bare(file.name), value[:4096])
        return {"text": value, "language": language or "", "code": bool(language)}

    yield None if data is None else read


def notebook(file: Opened) -> Iterator[Item]:
    """A Jupyter notebook: its cells' sources in their order, with blank lines between."""
    data = file.whole()

    def read() -> Fields | None:
        try:
            found = json.loads(decoded(data))
            cells = [cell["source"] for cell in found["cells"] if cell.get("source")]
            parts = [cell if isinstance(cell, str) else "".join(cell) for cell in cells]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            file.problem("notebook without cells")
            return None
        return {"text": "\n\n".join(parts), "language": "jupyter", "code": True}

    yield None if data is None else read


def epub(file: Opened) -> Iterator[Item]:
    """A book as one document: the text of its chapters in the order of its spine."""

    def read() -> Fields | None:
        with zipfile.ZipFile(file.path) as book:
            chapters, size = [], 0
            for name in web.spine(book):
                info = book.getinfo(name)
                size += info.file_size
                if size > file.reader.max_document_bytes:
                    file.problem("document too long")
                    return None
                chapters.append(web.all_text(book.read(info)).strip())
        return {"text": "\n\n".join(filter(None, chapters))}

    yield read


# ---------------------------------------------------------------------------------------- archives


def zip_members(file: Opened) -> Iterator[tuple[str, Any]]:
    """(name, open file) of the members of a .zip."""
    with zipfile.ZipFile(file.path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                file.problem("encrypted member", f"/{info.filename}")
                continue
            ratio = info.file_size / max(info.compress_size, 1)
            if info.file_size > 64 << 20 and ratio > file.reader.max_ratio:
                raise Bomb(f"{info.filename} unpacks to {info.file_size:,} bytes")
            with archive.open(info) as member:
                yield info.filename, member


def tar_members(file: Opened) -> Iterator[tuple[str, Any]]:
    """(name, open file) of the regular files of a .tar, which may be packed."""
    import tarfile

    with tarfile.open(fileobj=file.stream, mode="r|") as archive:  # type: ignore[call-overload]
        for info in archive:
            if info.isfile() and (member := archive.extractfile(info)) is not None:
                yield os.path.normpath(info.name), member
    file.stream.check()
