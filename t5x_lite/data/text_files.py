"""Text files as a source: documents are found once, then read by byte offset."""

import functools
import gzip
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from glob import glob

import gin
import numpy as np

from t5x_lite.data.source import HashSplit, Index, Record, hash64
from t5x_lite.errors import UserError, did_you_mean

Bytes = bytes | mmap.mmap

_BLOCK = 1 << 24  # bytes looked at together while a file is indexed
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


@gin.configurable(module="t5x_lite")
class TextFiles(HashSplit):
    """Documents in UTF-8 text files, plain or gzipped. Records are `{"text", "path"}`.

    Args:
      files: a path or glob, or several; `**` matches folders of any depth.
      document: what a document is: a "line", a "paragraph" (between blank lines) or a "file".
        Blank ones are left out; lines and paragraphs come without the line end that closes them.
      held_out: share of documents held out, by a hash of their content.
      validation_files: hold out these files instead; they are left out of `files`.
      max_document_bytes: cut longer documents, at the last line end or else space that fits. Rows
        of a batch draw whole documents: with fewer documents than rows, rows repeat each other.
      invalid: "error", or "replace" to read bytes that are not UTF-8 as U+FFFD.

    Plain files are mapped, not read into memory; gzipped ones are held in memory, decompressed.

    Raises:
      UserError: a file is missing or a glob matches nothing (at once); a file is not UTF-8 (the
        message has the byte's offset) or is a torn gzip file (on first use, for all files).
    """

    def __init__(
        self,
        files: str | Sequence[str],
        document: str = "line",
        held_out: float = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_document_bytes: int | None = None,
        invalid: str = "error",
    ):
        if document not in ("line", "paragraph", "file"):
            raise UserError(f"TextFiles.document is {document!r}; use 'line', 'paragraph', 'file'.")
        if invalid not in ("error", "replace"):
            raise UserError(f"TextFiles.invalid is {invalid!r}; use 'error' or 'replace'.")
        if max_document_bytes is not None and max_document_bytes < 16:
            raise UserError(f"max_document_bytes is {max_document_bytes}; use 16 or more.")
        self.document, self.max_document_bytes, self.invalid = document, max_document_bytes, invalid
        paths, validation = find_files(files), None
        if validation_files is not None:
            validation = TextFiles(
                validation_files, document, 0.0, None, max_document_bytes, invalid
            )
            held = {os.path.realpath(p) for p in validation.paths}
            paths = [p for p in paths if os.path.realpath(p) not in held]
            if not paths:
                raise UserError(f"All of {files!r} are validation_files; none is left to train on.")
        super().__init__(held_out, validation)
        self.paths = paths
        self._forget_data()

    @property
    def num_files(self) -> int:
        return len(self.paths)

    # ---- the files' bytes

    def _forget_data(self) -> None:
        self._unzipped: dict[int, bytes] = {}
        # A map holds a file descriptor, so there can't be one for each of thousands of files.
        self._data = functools.lru_cache(maxsize=64)(self._map)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("_data", "_unzipped")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget_data()

    def _map(self, file: int) -> Bytes:
        if file in self._unzipped:
            return self._unzipped[file]
        path = self.paths[file]
        with open(path, "rb") as f:
            magic = f.read(len(_GZIP))
            if not magic:
                return b""
            if magic != _GZIP:
                return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        return self._unzipped.setdefault(file, _unzip(path))

    # ---- documents

    @functools.cached_property
    def _documents(self) -> tuple[np.ndarray, np.ndarray]:
        """File number int32 [N] and byte span int64 [N, 2]; all text is checked to be UTF-8."""
        files, spans = [], []
        for i, path in enumerate(self.paths):
            data = self._data(i)
            if self.invalid == "error":
                for start, stop in _blocks(data):
                    _decode(data[start:stop], path, start, self.invalid)
            found = find_documents(data, self.document)
            if self.max_document_bytes is not None:
                found = cut_documents(data, found, self.max_document_bytes)
            spans.append(found)
            files.append(np.full(len(found), i, np.int32))
        return np.concatenate(files), np.concatenate(spans)

    def make_index(self) -> Index:
        files, spans = self._documents
        hashes = np.empty(len(files), np.uint64)
        for i, (file, (start, stop)) in enumerate(zip(files.tolist(), spans.tolist(), strict=True)):
            hashes[i] = hash64(self._data(file)[start:stop].strip())
        return Index(hashes, spans[:, 1] - spans[:, 0])

    def __getitem__(self, index: int) -> Record:
        files, spans = self._documents
        file, (start, stop) = int(files[index]), spans[index].tolist()
        path = self.paths[file]
        text = _decode(self._data(file)[start:stop], path, start, self.invalid)
        return {"text": text if self.document == "file" else text.strip("\r\n"), "path": path}


def find_files(patterns: str | Sequence[str]) -> list[str]:
    """The files, sorted, each once; UserError names the path or glob that finds none."""
    patterns = [patterns] if isinstance(patterns, str | os.PathLike) else list(patterns)
    if not patterns:
        raise UserError("The list of files is empty; give a path or a glob.")
    found = set()
    for pattern in patterns:
        pattern = os.path.expanduser(os.fspath(pattern))
        if os.path.isdir(pattern):
            raise UserError(f"{pattern!r} is a folder; give files, such as '{pattern}/*.txt'.")
        # A plain file first: its name may hold the characters of globs.
        matches = [pattern] if os.path.isfile(pattern) else glob(pattern, recursive=True)
        matches = [m for m in matches if os.path.isfile(m)]
        if not matches:
            folder, name = os.path.split(pattern)
            near = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
            raise UserError(
                f"No file is or matches {pattern!r} (working folder {os.getcwd()})."
                + did_you_mean(name, near)
            )
        found.update(matches)
    return sorted(found)


def find_documents(data: Bytes, document: str) -> np.ndarray:
    """Byte spans [start, stop) of the documents that are not blank, int64 [N, 2]."""
    begin = len(_BOM) if data[: len(_BOM)] == _BOM else 0
    starts, stops, blank = [], [], []
    for start, stop in _blocks(data):
        block = np.frombuffer(data, np.uint8, stop - start, start)
        ends = np.flatnonzero(block == ord("\n")) + 1
        if not len(ends) or ends[-1] != len(block):
            ends = np.append(ends, len(block))
        begins = np.append(0, ends[:-1])
        visible = block > ord(" ")
        if start == 0:
            visible[:begin] = False
        starts.append(begins + start)
        stops.append(ends + start)
        blank.append(~np.logical_or.reduceat(visible, begins))
    if not starts:
        return np.zeros((0, 2), np.int64)
    starts, stops, blank = (np.concatenate(x) for x in (starts, stops, blank))
    starts[0] = begin
    if blank.all():
        return np.zeros((0, 2), np.int64)
    if document == "file":
        return np.array([[begin, len(data)]], np.int64)
    if document == "paragraph":
        # A paragraph runs from a line after a blank one to a line before a blank one.
        edge = np.concatenate([[True], blank, [True]])
        return np.stack([starts[~blank & edge[:-2]], stops[~blank & edge[2:]]], 1).astype(np.int64)
    return np.stack([starts[~blank], stops[~blank]], 1).astype(np.int64)


def cut_documents(data: Bytes, spans: np.ndarray, limit: int) -> np.ndarray:
    """Cuts spans int64 [N, 2] longer than `limit` bytes, never inside a UTF-8 character."""
    pieces = []
    for start, stop in spans.tolist():
        while stop - start > limit:
            cut = data.rfind(b"\n", start, start + limit) + 1
            cut = cut or data.rfind(b" ", start, start + limit) + 1
            if not cut:
                cut = start + limit
                while cut > start + limit - 3 and data[cut] & 0xC0 == 0x80:
                    cut -= 1
            pieces.append((start, cut))
            start = cut
        pieces.append((start, stop))
    pieces = [(start, stop) for start, stop in pieces if data[start:stop].strip()]
    return np.array(pieces, np.int64).reshape(-1, 2)


def _blocks(data: Bytes) -> Iterator[tuple[int, int]]:
    """Consecutive spans of about _BLOCK bytes that end with a line."""
    start = 0
    while start < len(data):
        stop = start + _BLOCK
        if stop < len(data):
            end = data.rfind(b"\n", start, stop)
            stop = end + 1 if end >= 0 else data.find(b"\n", stop) + 1
        stop = min(stop or len(data), len(data))
        yield start, stop
        start = stop


def _decode(data: bytes, path: str, offset: int, invalid: str) -> str:
    try:
        return data.decode("utf-8", "strict" if invalid == "error" else "replace")
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[e.start]:02x} at offset {offset + e.start} "
            f"({e.reason}); convert the file or set TextFiles.invalid = 'replace'."
        ) from None


def _unzip(path: str) -> bytes:
    try:
        with gzip.open(path) as f:
            return f.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(
            f"{path} is a truncated or damaged gzip file ({e}); fetch or compress it again."
        ) from None
