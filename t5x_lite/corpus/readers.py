"""Files of many kinds -> documents, one at a time. What can't be read is counted and named."""

import dataclasses
import errno
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from t5x_lite.corpus import formats
from t5x_lite.corpus.code_languages import BY_SUFFIX, DOCUMENT_SUFFIXES, language_of
from t5x_lite.corpus.formats import Item, Opened
from t5x_lite.corpus.opening import Bomb, Problems, Stream, Torn, is_binary
from t5x_lite.corpus.steps import Document
from t5x_lite.errors import UserError
from t5x_lite.ranges import Positive

_PACKED = re.compile(r"\.(gz|bz2|xz|zst|zstd)$", re.IGNORECASE)
_TAR = re.compile(r"\.(?:tar(?:\.(?:gz|bz2|xz|zst|zstd))?|tgz|tbz2?|txz)$", re.IGNORECASE)
# kind: (suffixes, function, whether the file is text)
_FORMATS = {
    "text": ("txt text md rst tex log", formats.text, True),
    "json_lines": ("jsonl ndjson json", formats.json_lines, True),
    "table": ("csv tsv", formats.table, True),
    "parquet": ("parquet", formats.parquet, False),
    "arrow": ("arrow feather", formats.arrow, False),
    "warc": ("warc wet", formats.warc, False),
    "html": ("html htm xhtml", formats.html, True),
    "xml": ("xml", formats.xml, True),
    "notebook": ("ipynb", formats.notebook, True),
    "epub": ("epub", formats.epub, False),
    "pdf": ("pdf", formats.pdf, False),
}
_BY_SUFFIX = {s: kind for kind, (suffixes, *_) in _FORMATS.items() for s in suffixes.split()}
_ARCHIVES = {"zip": formats.zip_members, "tar": formats.tar_members}
_END = object()


@dataclasses.dataclass(frozen=True)
class Reader:
    """How files become documents.

    Kinds are told by the names: .txt .md .rst (a document a file), .jsonl .json .ndjson, .csv .tsv,
    .parquet, .arrow, .warc .wet, .html, .epub, .ipynb, .xml (Wikipedia's dumps), source code, and
    .pdf if asked for; packed as .gz .bz2 .xz .zst; and the members of .zip and .tar archives.

    Args:
      text_field, url_field, ...: fields of rows of JSON, CSV, Parquet and Arrow; all but the text
        are looked for in a row's "metadata", too.
      document: what a document of a text file is: "file", "paragraph" or "line".
      extractor: of the main text of HTML: "resiliparse", or "trafilatura" (slower, installed
        apart).
      max_document_bytes: longer ones are passed over and counted.
      max_ratio: of unpacked to packed bytes; see `Stream`.
      max_members: of an archive, that are read.
      code: read source code, by the file's name and content.
      tree: the input is source trees: .json, .html, .xml, .md, .tex and .ipynb files are source
        code, too, and not documents or containers of them.
      pdf: read PDF files (30 ms a page; pypdf is installed apart), each with at most pdf_seconds of
        processor time and pdf_megabytes of memory.
    """

    text_field: str = "text"
    url_field: str = "url"
    language_field: str = "language"
    license_field: str = "license"
    id_field: str = "id"
    document: str = "file"
    extractor: str = "resiliparse"
    max_document_bytes: Positive = 10_000_000
    max_ratio: float = 200.0
    max_members: int = 1_000_000
    code: bool = True
    tree: bool = False
    pdf: bool = False
    pdf_seconds: int = 60
    pdf_megabytes: int = 1000

    def __post_init__(self):
        if self.document not in ("file", "paragraph", "line"):
            raise UserError(
                f"Reader.document is {self.document!r}; use 'file', 'paragraph' or 'line'."
            )
        if self.extractor not in ("resiliparse", "trafilatura"):
            raise UserError(
                f"Reader.extractor is {self.extractor!r}; use 'resiliparse' or 'trafilatura'."
            )
        if self.pdf and importlib.util.find_spec("pypdf") is None:
            raise UserError(
                f"Reader.pdf needs pypdf, which isn't installed for {sys.executable}: "
                "pip install pypdf, or leave PDF files out."
            )

    def read(self, path: str, name: str, source: str, problems: Problems) -> Iterator[Document]:
        """Documents of one file; `name` is its path as the documents show it.

        Never raises on what a file holds: that goes to `problems`.
        """
        for _, document in self.items(path, name, source, problems):
            if document is not None:
                yield document

    def items(
        self, path: str, name: str, source: str, problems: Problems, start: int = 0
    ) -> Iterator[tuple[int, Document | None]]:
        """(position, document or None) of a file's items from `start` on; those before cost little.

        An item that fails is counted and named, and the next one is read.
        """
        found = self._open(path, name, problems)
        for position in range(sys.maxsize):
            where = f"{name} item {position + 1}"
            item: Any = _END
            with _Counted(problems, name, f"after {position} items"):
                item = next(found, _END)
            if item is _END:
                return
            if position < start:
                continue
            document = None
            with _Counted(problems, where, kind="page that fails"):
                given, shown = item
                fields = given() if callable(given) else given
                if fields is not None:
                    document = _document(fields, shown, source, f"{name}\0{position}")
            yield position, document

    def _open(self, path: str, name: str, problems: Problems) -> Iterator[tuple[Item, str]]:
        with open(path, "rb") as file:
            yield from self._members(file, path, name, problems)

    def _members(
        self, file: Any, path: str, name: str, problems: Problems
    ) -> Iterator[tuple[Item, str]]:
        """(item, name of its file) of a file, or of all members of an archive."""
        stream = Stream(file, name, self.max_ratio)
        if archive := self._archive(name):
            with Opened(self, stream, name, problems, path) as opened:
                for number, (member, inner) in enumerate(_ARCHIVES[archive](opened)):
                    shown = f"{name}/{member}"
                    if number >= self.max_members:
                        problems.add("archive with too many members", name)
                        return
                    if self._archive(member):
                        problems.add("archive in an archive", shown)
                        continue
                    with _Counted(problems, shown):
                        yield from self._members(inner, "", shown, problems)
            return
        kind, read = self.kind(name, stream)
        if read is None:
            problems.add("unknown kind of file", name)
            return
        if (kind == "code" or _FORMATS[kind][2]) and is_binary(stream.peek(8192)):
            problems.add("binary file with a text's name", name)
            return
        with Opened(self, stream, name, problems, "" if stream.packed else path) as opened:
            for item in read(opened):
                yield item, name

    def kind(self, name: str, stream: Stream | None = None) -> tuple[str, Any]:
        """(kind, its function) by the name, without the suffix of packing, and the first bytes."""
        bare = self.bare(name)
        suffix = PurePosixPath(bare).suffix.lower().lstrip(".")
        if self.code and self.tree and (suffix in DOCUMENT_SUFFIXES or suffix in BY_SUFFIX):
            return ("notebook", formats.notebook) if suffix == "ipynb" else ("code", formats.code)
        if suffix == "pdf" and (not self.pdf or _PACKED.search(name)):
            return "unknown", None
        if suffix in _BY_SUFFIX and PurePosixPath(bare).name.lower() != "cmakelists.txt":
            return _BY_SUFFIX[suffix], _FORMATS[_BY_SUFFIX[suffix]][1]
        if self.code:
            head = stream.peek(256).decode("latin-1") if stream is not None else ""
            if suffix in BY_SUFFIX or language_of(bare, head):
                return "code", formats.code
        return ("text", formats.text) if not suffix else ("unknown", None)

    @staticmethod
    def bare(name: str) -> str:
        """A name without the suffix of packing."""
        return _PACKED.sub("", name)

    @staticmethod
    def _archive(name: str) -> str:
        return "zip" if name.lower().endswith(".zip") else "tar" if _TAR.search(name) else ""


class _Counted:
    """Whatever its block raises because of what a file holds becomes a problem."""

    def __init__(self, problems: Problems, name: str, detail: str = "", kind: str = ""):
        self._problems, self._name, self._detail, self._kind = problems, name, detail, kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            return False
        said = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        detail = f" {self._detail}" if self._detail else ""
        if isinstance(error, Torn):
            self._problems.add("torn packed file", f"{self._name}{detail}: {error}")
        elif isinstance(error, Bomb):
            self._problems.add("packed too tight", f"{self._name}: {error}")
        elif isinstance(error, MemoryError):
            self._problems.add("too large", self._name)
        elif isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            self._problems.add("unreadable", f"{self._name}: {error.strerror or error}")
        else:
            kind = self._kind or _damage(self._name)
            self._problems.add(kind, f"{self._name}{detail}: {said}")
        return True


def _damage(name: str) -> str:
    kind = PurePosixPath(_PACKED.sub("", name)).suffix.lower()
    names = {".parquet": "Parquet file", ".arrow": "Arrow file", ".zip": "zip file",
             ".tar": "tar file", ".epub": "EPUB file", ".warc": "WARC file"}  # fmt: skip
    return f"damaged {names.get(kind, 'file')}"


def _document(fields: dict[str, Any], name: str, source: str, place: str) -> Document:
    key = hashlib.blake2b(f"{source}\0{place}".encode(errors="replace"), digest_size=10)
    document: Document = {"url": name, "language": "", "license": "", "id": key.hexdigest()}
    document |= fields
    for field, value in document.items():  # JSON may hold half a character, which UTF-8 can't
        if isinstance(value, str):
            document[field] = value.encode(errors="replace").decode()
    return document | {"source": source, "scores": {}}


def find_inputs(root: str, problems: Problems) -> list[tuple[str, str, int]]:
    """(path, name, bytes) of all files of a folder, in the order of their names, or of one file.

    Names are paths within the folder, with what isn't UTF-8 spelt as \\xff. Folders that can't be
    opened are problems, and so are links to folders, which aren't followed.
    """
    if os.path.isfile(root):
        return [(root, shown(os.path.basename(root)), os.path.getsize(root))]

    def failed(error: OSError) -> None:
        where = os.path.relpath(error.filename or root, root)
        problems.add("unreadable folder", f"{shown(where)}: {error.strerror}")

    found = []
    for folder, folders, files in os.walk(root, onerror=failed):
        for link in folders:
            path = os.path.join(folder, link)
            if os.path.islink(path):
                problems.add("link to a folder, not followed", shown(os.path.relpath(path, root)))
        for file in files:
            path = os.path.join(folder, file)
            name = shown(os.path.relpath(path, root).replace(os.sep, "/"))
            try:
                if not os.path.isfile(path):  # a socket, a pipe: reading one may never end
                    problems.add("no regular file", name)
                    continue
                found.append((path, name, os.path.getsize(path)))
            except OSError as error:
                problems.add("unreadable", f"{name}: {error.strerror}")
    return sorted(found, key=lambda item: item[1])


def shown(name: str) -> str:
    """A file's name as text: bytes that aren't UTF-8 are spelt out."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")
