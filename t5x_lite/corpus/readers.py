"""Files of many kinds -> documents, one at a time. What can't be read is counted and named."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import gin

from t5x_lite.corpus import web
from t5x_lite.corpus.code import BY_SUFFIX
from t5x_lite.corpus.opening import Bomb, Problems, Stream, Torn, decoded, is_binary
from t5x_lite.corpus.pdf import pdf_text
from t5x_lite.corpus.steps import Document
from t5x_lite.errors import UserError

_PACKED = re.compile(r"\.(gz|bz2|xz|zst|zstd)$", re.IGNORECASE)
_TEXT = {"txt", "text", "md", "rst", "tex", "log", ""}


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Reader:
    """How files become documents.

    Kinds are told by the names: .txt .md .rst (a document a file), .jsonl .json .ndjson, .parquet,
    .warc .wet, .html, .xml (Wikipedia's dumps), source code, and .pdf if asked for; packed (PDF
    isn't) as .gz .bz2 .xz .zst.

    Args:
      text_field, url_field, ...: fields of JSON lines and Parquet rows.
      document: what a document of a text file is: "file", "paragraph" or "line".
      extractor: of the main text of HTML: "resiliparse", or "trafilatura" (slower, installed
        apart).
      max_document_bytes: longer ones are passed over and counted.
      max_ratio: of unpacked to packed bytes; see `Stream`.
      code: read source trees' files, by their suffix, as code.
      pdf: read PDF files (30 ms a page; pypdf is installed apart), each with at most pdf_seconds of
        processor time and pdf_megabytes of memory.
    """

    text_field: str = "text"
    url_field: str = "url"
    language_field: str = "language"
    license_field: str = "license"
    document: str = "file"
    extractor: str = "resiliparse"
    max_document_bytes: int = 10_000_000
    max_ratio: float = 200.0
    code: bool = True
    pdf: bool = False
    pdf_seconds: int = 60
    pdf_megabytes: int = 1000

    def __post_init__(self):
        if self.pdf and importlib.util.find_spec("pypdf") is None:
            raise UserError(
                f"Reader.pdf needs pypdf, which isn't installed for {sys.executable}: "
                "pip install pypdf, or leave PDF files out."
            )

    def read(self, path: str, name: str, source: str, problems: Problems) -> Iterator[Document]:
        """Documents of one file; `name` is its path as the documents show it.

        Never raises on what a file holds: that goes to `problems`.
        """
        kind, read = self.kind(name)
        if read is None:
            problems.add("unknown kind of file", name)
            return
        number = 0
        try:
            with open(path, "rb") as file:
                stream = Stream(file, name, self.max_ratio)
                if kind not in ("parquet", "warc", "pdf") and is_binary(stream.peek(8192)):
                    problems.add("binary file with a text's name", name)
                    return
                for fields in read(self, stream, path, name, problems):
                    yield _document(fields, name, source, number)
                    number += 1
        except Torn as error:
            problems.add("torn packed file", f"{name} after {number} documents: {error}")
        except Bomb as error:
            problems.add("packed too tight", f"{name}: {error}")
        except OSError as error:
            problems.add("unreadable", f"{name}: {error.strerror or error}")
        except MemoryError:
            problems.add("too large", name)

    def kind(self, name: str) -> tuple[str, Callable | None]:
        """(kind, its function) by the name, without the suffix of packing."""
        suffix = PurePosixPath(_PACKED.sub("", name)).suffix.lower().lstrip(".")
        for kind, suffixes in _SUFFIXES.items():
            if suffix in suffixes and (kind != "pdf" or (self.pdf and not _PACKED.search(name))):
                return kind, _READERS[kind]
        if self.code and suffix in BY_SUFFIX:
            return "code", _READERS["code"]
        return "unknown", None


def _document(fields: dict[str, Any], name: str, source: str, number: int) -> Document:
    key = hashlib.blake2b(f"{source}\0{name}\0{number}".encode(errors="replace"), digest_size=10)
    document = {"url": name, "language": "", "license": "", **fields}
    for field, value in document.items():  # JSON may hold half a character, which UTF-8 can't
        document[field] = value.encode(errors="replace").decode()
    return document | {"id": key.hexdigest(), "source": source, "scores": {}}


def _whole(reader: Reader, stream: Stream, name: str, problems: Problems) -> bytes | None:
    data = stream.read(reader.max_document_bytes + 1)
    stream.check()  # half a document is none
    if len(data) > reader.max_document_bytes:
        problems.add("document too long", name)
        return None
    return data


def _text(reader, stream, path, name, problems):
    if reader.document == "file":
        data = _whole(reader, stream, name, problems)
        if data is not None:
            yield {"text": decoded(data)}
        return
    paragraph: list[str] = []
    for line in _lines(reader, stream, name, problems):
        text = decoded(line).rstrip("\r\n")
        if reader.document == "line":
            if text.strip():
                yield {"text": text}
        elif text.strip():
            paragraph.append(text)
        elif paragraph:
            yield {"text": "\n".join(paragraph)}
            paragraph = []
    if paragraph:
        yield {"text": "\n".join(paragraph)}


def _lines(reader, stream, name, problems) -> Iterator[bytes]:
    for number, line in enumerate(stream.lines(reader.max_document_bytes), 1):
        if line is None:
            problems.add("line too long", f"{name} line {number}")
        else:
            yield line


def _json_lines(reader, stream, path, name, problems):
    for number, line in enumerate(_lines(reader, stream, name, problems), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            yield _fields(reader, row)
        except (ValueError, KeyError, TypeError, RecursionError):
            problems.add("no JSON with a text", f"{name} line {number}")


def _fields(reader: Reader, row: dict[str, Any]) -> dict[str, Any]:
    text = row[reader.text_field]
    if not isinstance(text, str):
        raise TypeError(text)
    found = {"text": text}
    for field in ("url", "language", "license"):
        value = row.get(getattr(reader, f"{field}_field"))
        if isinstance(value, str):
            found[field] = value
    return found


def _parquet(reader, stream, path, name, problems):
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            wanted = [reader.text_field, reader.url_field, reader.language_field,
                      reader.license_field]  # fmt: skip
            columns = [column for column in wanted if column in names]
            if reader.text_field not in names:
                problems.add("no text column", f"{name} has {', '.join(sorted(names))[:200]}")
                return
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    text = row[reader.text_field]
                    if not isinstance(text, str):
                        problems.add("no text", name)
                    elif len(text) > reader.max_document_bytes:
                        problems.add("document too long", name)
                    else:
                        yield _fields(reader, row)
    except pyarrow.ArrowException as error:
        reason = str(error).split("\n")[0][:200]
        problems.add("damaged Parquet file", f"{name}: {reason}")


def _html(reader, stream, path, name, problems):
    data = _whole(reader, stream, name, problems)
    if data is not None:
        yield {"text": web.main_text(data, None, reader.extractor)}


def _warc(reader, stream, path, name, problems):
    yield from web.warc_pages(stream, name, reader.extractor, reader.max_document_bytes, problems)


def _xml(reader, stream, path, name, problems):
    yield from web.wikipedia_pages(stream, name, reader.max_document_bytes, problems)


def _pdf(reader, stream, path, name, problems):
    limits = reader.max_document_bytes, reader.pdf_seconds, reader.pdf_megabytes
    text, problem = pdf_text(path, *limits)
    if problem:
        problems.add(problem, name)
    else:
        yield {"text": text}


def _code(reader, stream, path, name, problems):
    data = _whole(reader, stream, name, problems)
    if data is not None:
        suffix = PurePosixPath(_PACKED.sub("", name)).suffix.lower().lstrip(".")
        yield {"text": decoded(data), "language": BY_SUFFIX[suffix]}


_SUFFIXES = {
    "text": _TEXT,
    "json_lines": {"jsonl", "ndjson", "json"},
    "parquet": {"parquet"},
    "warc": {"warc", "wet"},
    "html": {"html", "htm", "xhtml"},
    "xml": {"xml"},
    "pdf": {"pdf"},
}
_READERS = {"text": _text, "json_lines": _json_lines, "parquet": _parquet, "warc": _warc,
            "html": _html, "xml": _xml, "pdf": _pdf, "code": _code}  # fmt: skip


def find_inputs(root: str, problems: Problems) -> list[tuple[str, str, int]]:
    """(path, name, bytes) of all files of a folder, in the order of their names, or of one file.

    Names are paths within the folder. Folders that can't be opened are problems; links to folders
    aren't followed.
    """
    if os.path.isfile(root):
        return [(root, os.path.basename(root), os.path.getsize(root))]

    def failed(error: OSError) -> None:
        where = os.path.relpath(error.filename or root, root)
        problems.add("unreadable folder", f"{where}: {error.strerror}")

    found = []
    for folder, _, files in os.walk(root, onerror=failed):
        for file in files:
            path = os.path.join(folder, file)
            name = os.path.relpath(path, root).replace(os.sep, "/")
            try:
                if not os.path.isfile(path):  # a socket, a pipe: reading one may never end
                    problems.add("no regular file", name)
                    continue
                found.append((path, name, os.path.getsize(path)))
            except OSError as error:
                problems.add("unreadable", f"{name}: {error.strerror}")
    return sorted(found, key=lambda item: item[1])
