"""Files of any kind that we read, told apart by their names."""

import functools
import logging
import os
import re
from collections.abc import Mapping, Sequence

from t5x_lite.data.file_bytes import file_version
from t5x_lite.data.file_source import Keys
from t5x_lite.data.files import find_files, is_url
from t5x_lite.data.parquet import Parquet
from t5x_lite.data.record_files import ArrayRecords, TfRecords
from t5x_lite.data.source import Source
from t5x_lite.data.tables import Delimited, JsonLines
from t5x_lite.data.text_files import TextFiles
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count, Fraction, Positive

_KINDS = {
    "txt": TextFiles, "text": TextFiles, "md": TextFiles, "rst": TextFiles,
    "jsonl": JsonLines, "ndjson": JsonLines, "json": JsonLines,
    "csv": Delimited, "tsv": Delimited,
    "parquet": Parquet,
    "array_record": ArrayRecords, "arrayrecord": ArrayRecords,
    "tfrecord": TfRecords, "tfrecords": TfRecords,
}  # fmt: skip
# "corpus.jsonl.gz", "c4-train.tfrecord-00000-of-01024"
_SUFFIX = re.compile(r"\.(\w+?)(-\d+-of-\d+)?(\.gz|\.zstd?|\.xz|\.bz2)?$", re.IGNORECASE)
# What others put beside data: Spark, Delta, checksums, what a folder is about.
_ABOUT = re.compile(r"(README|LICEN[CS]E|NOTICE|CHANGELOG|CITATION)([._-].*)?", re.IGNORECASE)
_CHECKS = re.compile(r".*\.(crc|md5|sha\d+|sig|asc)|(MD5|SHA\d+)SUMS(\.\w+)?", re.IGNORECASE)
# What programs leave beside their files: copies, parts of downloads, settings of a folder.
_LEFT = re.compile(
    r".*(~|\.(bak|orig|swp|te?mp|part|partial|crdownload|incomplete|lock))|#.*#"
    r"|Thumbs\.db|desktop\.ini|dataset_(info|infos|dict)\.json",
    re.IGNORECASE,
)
_MARKER_FOLDERS = {"_delta_log", "_spark_metadata", "_temporary"}

_log = logging.getLogger(__name__)


def open_files(
    files: str | Sequence[str],
    keys: Keys = "text",
    held_out: Fraction = 0.01,
    validation_files: str | Sequence[str] | None = None,
    document: str = "paragraph",
    max_document_bytes: Positive | None = 32768,
    max_bad_records: Count = 0,
) -> Source:
    """The source for files of one kind: .txt .md .rst, .jsonl .json, .csv .tsv, .parquet,
    .array_record or .tfrecord, also with .gz, .zst, .xz or .bz2; others are read as text.

    files: paths, globs, URLs or folders. Of a folder all files are taken but for those that hold no
      data, which a warning names: hidden ones, _SUCCESS and the like, README, LICENSE, checksums,
      editors' copies, parts of downloads.
    keys: {record key: field}, or the field that holds the text. Not for text files.
    document, max_document_bytes: of text files; see `TextFiles`.

    Within a process, equal arguments give the same source, scanned once, until a file changes. If
    there are no files, or of several kinds, using the source raises UserError: a trained model can
    be used where its text isn't.
    """
    frozen_keys = tuple(sorted(keys.items())) if isinstance(keys, Mapping) else keys
    try:
        found, held = _find(files) or (), _find(validation_files)
        versions = tuple(file_version(p) for p in (*found, *(held or ())) if not is_url(p))
        return _open(
            *(found, frozen_keys, held_out, held, document, max_document_bytes),
            *(max_bad_records, versions),
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
    found: list[str] = []
    for path in map(os.path.expanduser, map(os.fspath, given)):
        if not is_url(path) and os.path.isdir(path):
            found += _data_in(path, _within(path))
        elif os.path.basename(path) in ("*", "**"):
            found += _data_in(path, find_files(path))
        else:
            found += find_files(path)
    return tuple(find_files(found))


def _within(folder: str) -> list[str]:
    """The files in a folder, of any depth; of a hidden folder its name."""
    found, seen = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        found += [os.path.join(root, name) for name in files]
        found += [os.path.join(root, name, ".") for name in folders if name[0] == "."]
        if (real := os.path.realpath(root)) in seen:  # a link to a folder above
            folders.clear()
        seen.add(real)
        folders[:] = [name for name in folders if name[0] != "."]
    return found


def _data_in(place: str, paths: Sequence[str]) -> list[str]:
    """The files that hold data; names the others in a warning, once."""
    others = _without_data(paths)
    data = [path for path in paths if path not in others]
    if not data:
        raise UserError(f"{place!r} holds no files of data; give files, or a glob.")
    _say_passed_over(place, tuple(os.path.relpath(p, place.rstrip("*")) for p in sorted(others)))
    return data


def _without_data(paths: Sequence[str]) -> set[str]:
    """Those of a folder's files that are about the others."""
    names = {path: os.path.basename(path) for path in paths}

    def suffix(path: str) -> str:
        return os.path.splitext(path)[1].lower()

    left = (_CHECKS, _LEFT)
    others = {p for p in paths if names[p][0] == "." or any(x.fullmatch(names[p]) for x in left)}
    others |= {p for p in paths if not _MARKER_FOLDERS.isdisjoint(p.split("/"))}
    about = {p for p in paths if _ABOUT.fullmatch(names[p])}
    markers = {p for p in paths if names[p][0] == "_" and names[p][:2] != "__"}
    kept = {suffix(p) for p in paths if p not in others | about | markers}
    markers = {p for p in markers if not suffix(p) or suffix(p) not in kept}
    # Where other documents of its kind are data, a README is one of them.
    about = {p for p in about if suffix(p) not in kept & {".md", ".rst"}}
    if len(others | about | markers) == len(paths):  # then a README may be all there is
        about = set()
    return others | about | markers


@functools.cache  # once
def _say_passed_over(folder: str, names: tuple[str, ...]) -> None:
    if names:
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        _log.warning(
            "passed over in %s, as no data: %s (%d); give their names to read them",
            *(folder, some, len(names)),
        )


@functools.lru_cache(maxsize=64)
def _open(
    paths, keys, held_out, validation_files, document, max_document_bytes, max_bad, versions
) -> Source:
    kinds = {path: _kind(path) for path in paths}
    first = kinds[paths[0]]
    for path, kind in kinds.items():
        if kind is not first:
            raise UserError(
                f"{paths[0]} ({first.__name__}) and {path} ({kind.__name__}) are files of two "
                "kinds; give a glob for one, such as '*.jsonl.gz', and mix tasks for both."
            )
    common = dict(held_out=held_out, validation_files=validation_files, max_bad_records=max_bad)
    if first is TextFiles:
        own = dict(document=document, max_document_bytes=max_document_bytes)
        return TextFiles(paths, **own, **common)
    return first(paths, keys=dict(keys) if isinstance(keys, tuple) else keys, **common)


def _kind(path: str):
    found = _SUFFIX.search(os.path.basename(path))
    return _KINDS.get(found[1].lower(), TextFiles) if found else TextFiles
