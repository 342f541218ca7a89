"""Text files as sources: documents, or lines of several files side by side."""

from collections.abc import Mapping, Sequence

import numpy as np

from t5x_lite.data.file_bytes import BOM, Bytes, Window, contents, foreign_format, line_blocks
from t5x_lite.data.file_source import FileSource, Found
from t5x_lite.data.files import BadRecords, find_files
from t5x_lite.data.source import HashSplit, Index, Record, hash64
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count, Fraction, Positive


class TextFiles(FileSource):
    """Documents in UTF-8 text files, plain or compressed. Records are `{"text", "path"}`.

    Args:
      files: a path, glob or URL, or several; `**` matches folders of any depth.
      document: what a document is: a "line", a "paragraph" (between blank lines) or a "file".
        Blank ones are left out; lines and paragraphs come without the line end that closes them.
      held_out: share of documents held out, by a hash of their content.
      validation_files: hold out these files instead; they are left out of `files`.
      max_document_bytes: cut longer documents, at the last line end or else space that fits. Rows
        of a batch draw whole documents: with fewer documents than rows, rows repeat each other.
      invalid: "error", or "replace" to read bytes that are not UTF-8 as U+FFFD.
      max_bad_records, max_record_bytes: see `FileSource`.

    Compressed files (.gz, .zst, .xz, .bz2) are unpacked: in memory while they are small, else in
    the cache folder.

    Raises:
      UserError: a file is missing or a glob matches nothing (at once); a file is not UTF-8 (the
        message has the byte's offset), empty or torn, or a document is too long (on first use).
    """

    def __init__(
        self,
        files: str | Sequence[str],
        document: str = "line",
        held_out: Fraction = 0.01,
        validation_files: str | Sequence[str] | None = None,
        max_document_bytes: Positive | None = None,
        invalid: str = "error",
        max_bad_records: Count = 0,
        max_record_bytes: Positive = 10_000_000,
    ):
        if document not in ("line", "paragraph", "file"):
            raise UserError(f"TextFiles.document is {document!r}; use 'line', 'paragraph', 'file'.")
        if invalid not in ("error", "replace"):
            raise UserError(f"TextFiles.invalid is {invalid!r}; use 'error' or 'replace'.")
        if max_document_bytes is not None and max_document_bytes < 16:
            raise UserError(f"max_document_bytes is {max_document_bytes}; use 16 or more.")
        self.document, self.max_document_bytes, self.invalid = document, max_document_bytes, invalid
        super().__init__(files, held_out, validation_files, max_bad_records, max_record_bytes)

    def scan(self, file: int, bad: BadRecords) -> Found:
        path, torn = self.paths[file], bad.count
        data = self.scan_data(file, bad)
        if problem := foreign_format(data[:512]):
            bad.add(f"{path} {problem}.")
            return Found.of([])
        spans = find_documents(data, self.document)
        if bad.count > torn and len(spans):
            spans = spans[:-1]  # the end of a torn file is half a document
        if self.max_document_bytes is not None:
            spans = cut_documents(data, spans, self.max_document_bytes)
        valid = self.invalid == "replace" or self._all_utf8(data, path, bad)
        rows = []
        for start, stop, content in contents(data, spans, self.max_record_bytes):
            if content is None:
                bad.add(
                    f"{path} byte {start}: a document of {stop - start:,} bytes, expected at most "
                    f"{self.max_record_bytes:,}; cut such ones with max_document_bytes, or raise "
                    "max_record_bytes."
                )
                continue
            if not valid:
                try:
                    content.decode()
                except UnicodeDecodeError as e:
                    bad.add(_not_utf8(path, start, e))
                    continue
            rows.append((hash64(content.strip()), stop - start, start, stop))
        return Found.of(rows)

    def _all_utf8(self, data: Bytes, path: str, bad: BadRecords) -> bool:
        for start, block in line_blocks(data):
            try:
                block.decode()
            except UnicodeDecodeError as e:
                if not bad.limit:
                    bad.add(_not_utf8(path, start, e))
                return False
        return True

    def read(self, file: int, begin: int, end: int) -> Record:
        path = self.paths[file]
        errors = "strict" if self.invalid == "error" else "replace"
        text = self.data(file)[begin:end].decode(errors=errors)
        return {"text": text if self.document == "file" else text.strip("\r\n"), "path": path}


def _not_utf8(path: str, start: int, error: UnicodeDecodeError) -> str:
    return (
        f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
        f"{start + error.start} ({error.reason}); convert the file or set TextFiles.invalid = "
        "'replace'."
    )


class _Lines(TextFiles):
    """Every line, blank ones too."""

    def scan(self, file: int, bad: BadRecords) -> Found:
        data = self.scan_data(file, bad)
        if problem := foreign_format(data[:512]):
            bad.add(f"{self.paths[file]} {problem}.")
        self._all_utf8(data, self.paths[file], bad)
        spans = find_documents(data, "every line")
        lines = (line for _, _, line in contents(data, spans) if line is not None)
        hashes = np.array([hash64(line.strip()) for line in lines], np.uint64)
        return Found(hashes, spans[:, 1] - spans[:, 0], spans)


class ParallelFiles(HashSplit):
    """Text files whose lines belong together, as of a translation: {record key: file}.

    `ParallelFiles({"en": "train.en.gz", "de": "train.de.gz"})` has a record {"en", "de"} for each
    line; plain or compressed. `validation_files`, of the same keys, are held out; without them
    `held_out` of the records, by a hash of their content. On first use raises UserError if the
    files have different numbers of lines.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        held_out: Fraction = 0.01,
        validation_files: Mapping[str, str] | None = None,
    ):
        validation = None
        if validation_files is not None:
            if set(validation_files) != set(files):
                raise UserError(
                    f"ParallelFiles.validation_files has {', '.join(sorted(validation_files))}, "
                    f"expected {', '.join(sorted(files))}, as files has."
                )
            validation = ParallelFiles(validation_files, held_out=0.0)
        super().__init__(held_out, validation)
        self.columns = {key: _Lines(find_files(f), held_out=0.0) for key, f in files.items()}

    @property
    def num_files(self) -> int:
        return sum(column.num_files for column in self.columns.values())

    def make_index(self) -> Index:
        counts = {column.paths[0]: len(column) for column in self.columns.values()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{path} {count:,}" for path, count in counts.items())
            raise UserError(f"Parallel files have different numbers of lines: {found}.")
        columns = [column.index for column in self.columns.values()]
        rows = zip(*(index.hashes.tolist() for index in columns), strict=True)
        hashes = [hash64(repr(row).encode()) for row in rows]
        sizes = np.sum([index.sizes for index in columns], axis=0)
        return Index(np.array(hashes, np.uint64), sizes)

    def where(self, index: int) -> str:
        return " and ".join(column.where(index) for column in self.columns.values())

    def __getitem__(self, index: int) -> Record:
        return {key: column[index]["text"] for key, column in self.columns.items()}


def find_documents(data: Bytes, document: str) -> np.ndarray:
    """Byte spans [start, stop) of the documents in a text, int64 [N, 2]; its BOM is in none.

    document: "line", "paragraph" or "file", of which blank ones are left out; "row": a line that
      holds anything, if only white space; "every line": a blank one, too.
    """
    begin = len(BOM) if data[: len(BOM)] == BOM else 0
    starts, stops, blank = [], [], []
    for start, content in line_blocks(data):
        block = np.frombuffer(content, np.uint8)
        ends = np.flatnonzero(block == ord("\n")) + 1
        if not len(ends) or ends[-1] != len(block):
            ends = np.append(ends, len(block))
        begins = np.append(0, ends[:-1])
        if document == "row":
            visible = (block != ord("\n")) & (block != ord("\r"))
        else:
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
    if document == "every line":
        blank[:] = False
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
    pieces, window = [], Window(data)
    for start, stop in spans.tolist():
        while stop - start > limit:
            part = window[start : start + limit + 1]
            cut = part.rfind(b"\n", 0, limit) + 1 or part.rfind(b" ", 0, limit) + 1
            if not cut:
                cut = limit
                while cut > limit - 3 and part[cut] & 0xC0 == 0x80:
                    cut -= 1
            pieces.append((start, start + cut))
            start += cut
        pieces.append((start, stop))
    pieces = [(start, stop) for start, stop in pieces if window[start:stop].strip()]
    return np.array(pieces, np.int64).reshape(-1, 2)
