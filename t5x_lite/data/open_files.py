"""Files of any kind that we read, told apart by their names."""

import functools
import os
import re
from collections.abc import Mapping, Sequence

import gin

from t5x_lite.data.file_source import Keys
from t5x_lite.data.files import find_files, is_url
from t5x_lite.data.record_files import ArrayRecords, TfRecords
from t5x_lite.data.source import Source
from t5x_lite.data.tables import Delimited, JsonLines, Parquet
from t5x_lite.data.text_files import TextFiles
from t5x_lite.errors import UserError

_KINDS = {
    "txt": TextFiles, "text": TextFiles, "md": TextFiles, "rst": TextFiles,
    "jsonl": JsonLines, "ndjson": JsonLines, "json": JsonLines,
    "csv": Delimited, "tsv": Delimited,
    "parquet": Parquet,
    "array_record": ArrayRecords, "arrayrecord": ArrayRecords,
    "tfrecord": TfRecords, "tfrecords": TfRecords,
}  # fmt: skip
# "corpus.jsonl.gz", "c4-train.tfrecord-00000-of-01024"
_SUFFIX = re.compile(r"\.(\w+?)(-\d+-of-\d+)?(\.gz|\.zst)?$")


@gin.configurable(module="t5x_lite")
def open_files(
    files: str | Sequence[str],
    keys: Keys = "text",
    held_out: float = 0.01,
    validation_files: str | Sequence[str] | None = None,
    document: str = "paragraph",
    max_document_bytes: int | None = 32768,
    max_bad_records: int = 0,
) -> Source:
    """The source for files of one kind: .txt .md .rst, .jsonl .json, .csv .tsv, .parquet,
    .array_record or .tfrecord, also with .gz or .zst; others are read as text.

    files: paths, globs, URLs or folders, of which all files are taken.
    keys: {record key: field}, or the field that holds the text. Not for text files.
    document, max_document_bytes: of text files; see `TextFiles`.

    Within a process, equal arguments give the same source, which is scanned once. If there are no
    files, or of several kinds, using the source raises UserError: a trained model can be used where
    its text isn't.
    """
    frozen_keys = tuple(sorted(keys.items())) if isinstance(keys, Mapping) else keys
    try:
        return _open(
            *(_find(files), frozen_keys, held_out, _find(validation_files)),
            *(document, max_document_bytes, max_bad_records),
        )
    except UserError as error:
        return _Unusable(error)


class _Unusable(Source):
    """In the place of a source; any use raises its error."""

    def __init__(self, error: UserError):
        self.error = error

    def __len__(self) -> int:
        raise self.error

    def split(self, name: str) -> Source:
        raise self.error

    fingerprint = num_bytes = num_files = property(__len__)


def _find(files: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if files is None:
        return None
    given = [files] if isinstance(files, str | os.PathLike) else files
    return tuple(find_files([_all_within(os.path.expanduser(os.fspath(f))) for f in given]))


def _all_within(path: str) -> str:
    return os.path.join(path, "**") if not is_url(path) and os.path.isdir(path) else path


@functools.lru_cache(maxsize=64)
def _open(paths, keys, held_out, validation_files, document, max_document_bytes, max_bad) -> Source:
    kinds = {path: _kind(path) for path in paths}
    first = kinds[paths[0]]
    for path, kind in kinds.items():
        if kind is not first:
            raise UserError(
                f"{paths[0]} ({first.__name__}) and {path} ({kind.__name__}) are files of two "
                "kinds; give a glob for one, such as '*.jsonl.gz', and mix tasks for both."
            )
    # All arguments, so that gin's bindings of the classes come in only where there is no other.
    common = dict(held_out=held_out, validation_files=validation_files, max_bad_records=max_bad)
    if first is TextFiles:
        own = dict(document=document, max_document_bytes=max_document_bytes)
        return TextFiles(paths, **own, **common)
    return first(paths, keys=dict(keys) if isinstance(keys, tuple) else keys, **common)


def _kind(path: str):
    found = _SUFFIX.search(os.path.basename(path))
    return _KINDS.get(found[1].lower(), TextFiles) if found else TextFiles
