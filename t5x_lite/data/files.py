"""Files wherever they are: globs, folders and URLs found and fetched; bad records counted.

What takes long to make again (a download, an unpacked corpus, an index) is kept in the cache
folder: $T5X_LITE_CACHE, or ~/.cache/t5x_lite. Nothing is written beside the data.
"""

import contextlib
import logging
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.data.source import digest
from t5x_lite.errors import UserError, did_you_mean

INDEX_BYTES = 64 << 20  # the index of larger data is kept in the cache folder

_log = logging.getLogger(__name__)


# ---- what can't be used


class BadRecords:
    """Counts records that can't be used; the first beyond `limit` raises UserError."""

    def __init__(self, limit: int = 0):
        self.limit, self.count = limit, 0
        self.messages: list[str] = []

    def add(self, message: str, count: int = 1) -> None:
        """message: one line: file, position, what was found, what was expected, the nearest fix."""
        self.count += count
        if self.count > self.limit:
            more = f" ({self.count} bad records, max_bad_records is {self.limit})"
            raise UserError(message + (more if self.limit else " Or set max_bad_records."))
        if len(self.messages) < 10:
            self.messages.append(message)
            _log.warning("left out: %s", message)


# ---- where files are


def cache_folder(*parts: str) -> Path:
    """A folder within the cache folder, made if it isn't there."""
    root = os.environ.get("T5X_LITE_CACHE") or os.path.expanduser("~/.cache/t5x_lite")
    folder = Path(root, *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[str]:
    """A name to write to; it becomes `path` at the end, and goes away if that isn't reached."""
    path = Path(path)
    temporary = str(path.with_name(f".{path.name}.{uuid.uuid4().hex}"))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def cached_arrays(
    key: str, size: int, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `make` gives, kept in the cache folder under `key` if it was made of a large `size`."""
    if size < INDEX_BYTES:
        return make()
    path = cache_folder("indices") / f"{key}.npz"
    # A damaged file is made again, as if there were none.
    unreadable = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(*unreadable), np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
    arrays = make()
    with written_whole(path) as temporary, open(temporary, "wb") as f:
        np.savez(f, **arrays)
    return arrays


def version_of(path: str) -> str:
    """A digest that changes when a local file is moved or written again; cheap."""
    stat = os.stat(path)
    return digest(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)


def is_url(path: str) -> bool:
    return "://" in path


def find_files(patterns: str | Sequence[str]) -> list[str]:
    """The files, sorted, each once: of paths, globs (`**`: any depth), or gs://, s3://, ... URLs.

    UserError names the path or glob that finds none.
    """
    patterns = [patterns] if isinstance(patterns, str | os.PathLike) else list(patterns)
    if not patterns:
        raise UserError("The list of files is empty; give a path or a glob.")
    found: dict[str, str] = {}  # by what they are: a.txt and ./a.txt are one file
    for pattern in patterns:
        pattern = os.path.expanduser(os.fspath(pattern))
        if is_url(pattern):
            found |= {url: url for url in _find_urls(pattern)}
        else:
            for path in _find_local(pattern):
                found.setdefault(os.path.abspath(path), path)
    return sorted(found.values())


def _find_local(pattern: str) -> list[str]:
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
    return matches


def _file_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise UserError(
            f"{url} can't be opened ({reason}); pip install fsspec, with gcsfs for gs:// or s3fs "
            "for s3://, or copy the files to a local folder."
        ) from e


def _find_urls(pattern: str) -> list[str]:
    system, path = _file_system(pattern)
    try:
        matches = [path] if system.isfile(path) else system.glob(path)
        matches = [m for m in matches if system.isfile(m)]
    except (OSError, RuntimeError) as e:
        raise UserError(f"{pattern} can't be listed: {' '.join(str(e).split())}.") from e
    if not matches:
        raise UserError(f"No file is or matches {pattern}; check the bucket and the path.")
    return [system.unstrip_protocol(m) for m in matches]


def local_copy(path: str) -> str:
    """`path` itself, or of a URL a copy in the cache folder, fetched if it isn't there."""
    if not is_url(path):
        return path
    system, remote = _file_system(path)
    copy = cache_folder("files") / f"{digest(path, system.ukey(remote))}-{os.path.basename(remote)}"
    if not copy.exists():
        with written_whole(copy) as temporary:
            try:
                system.get_file(remote, temporary)
            except (OSError, RuntimeError) as e:
                raise UserError(f"{path} can't be fetched: {' '.join(str(e).split())}.") from e
    return str(copy)
