"""The bytes of files: read by position, unpacked where they are compressed."""

import bz2
import lzma
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from t5x_lite.data.files import BadRecords, cache_folder, local_copy, version_of, written_whole
from t5x_lite.errors import UserError

# Compressed files of a source are unpacked in memory up to this size, compressed; then on disk.
MEMORY_BYTES = 128 << 20
BLOCK_BYTES = 1 << 24  # bytes looked at together while a file is indexed
BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20
_LOOK_SECONDS = 0.1  # between two looks at whether an open file has changed


class FileBytes:
    """A local file as bytes: `data[begin:end]` is read when it is asked for.

    A mapped file would be a little faster, but kills the process (SIGBUS) when it is cut short.
    name: what messages call the file. Raises UserError if it has become shorter, or can't be read.
    `on_change` is called by a read that finds that the file was written to.
    """

    def __init__(self, path: str, name: str):
        self._name, self._file = name, os.open(path, os.O_RDONLY)
        self._version = _version(os.fstat(self._file))
        self._size = self._version[0]
        self._next_look = 0.0
        self.on_change: Callable[[], Any] = lambda: None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> bytes:
        begin, end = span.start or 0, span.stop
        if end is None or end > self._size:
            end = self._size
        if (now := time.monotonic()) >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            if self.has_changed():
                self.on_change()
        try:
            data = _pread(self._file, max(end - begin, 0), begin)
            while len(data) < end - begin:  # one call gives 2 GB at most
                more = _pread(self._file, end - begin - len(data), begin + len(data))
                if not more:
                    raise UserError(
                        f"{self._name} was cut short while it was in use: it had {self._size:,} "
                        f"bytes, now {os.fstat(self._file).st_size:,}. Bring the whole file back; "
                        "the same command then continues the run."
                    )
                data += more
        except OSError as e:
            raise UserError(f"{self._name} can't be read now: {e}.") from e
        return data

    def has_changed(self) -> bool:
        """Whether it was written to since it was opened."""
        return _version(os.fstat(self._file)) != self._version

    def __del__(self) -> None:
        if hasattr(self, "_version"):
            os.close(self._file)


Bytes = bytes | FileBytes

if hasattr(os, "pread"):
    _pread = os.pread
else:  # Windows
    _lock = threading.Lock()

    def _pread(file: int, size: int, position: int) -> bytes:
        with _lock:
            os.lseek(file, position, os.SEEK_SET)
            return os.read(file, size)


def _version(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def file_version(path: str) -> tuple[int, int, int]:
    """(size, time of the last change, inode) of a local file."""
    return _version(os.stat(path))


class Window:
    """`data[begin:end]` for rising positions: read in large pieces."""

    def __init__(self, data: Bytes):
        self._data = data
        self._start, self._part = (0, data) if isinstance(data, bytes) else (0, b"")

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, span: slice) -> bytes:
        start, stop = span.start - self._start, span.stop - self._start
        if start < 0 or stop > len(self._part):
            if isinstance(self._data, bytes):
                return self._data[span]
            self._start = span.start
            self._part = self._data[span.start : max(span.stop, span.start + BLOCK_BYTES)]
            start, stop = 0, span.stop - span.start
        return self._part[start:stop]


def contents(
    data: Bytes, spans: np.ndarray, most: int | None = None
) -> Iterator[tuple[int, int, bytes | None]]:
    """(start, stop, bytes) of rising spans int64 [N, 2]; None for one of over `most` bytes."""
    first, last = (0, len(data)) if isinstance(data, bytes) else (0, 0)
    part = data if isinstance(data, bytes) else b""
    for start, stop in spans.tolist():
        if most is not None and stop - start > most:
            yield start, stop, None
            continue
        if stop > last:
            first, last = start, max(stop, start + BLOCK_BYTES)
            part = data[first:last]
        yield start, stop, part[start - first : stop - first]


def line_blocks(data: Bytes) -> Iterator[tuple[int, bytes]]:
    """(position, bytes) of consecutive pieces, of about BLOCK_BYTES, that end with a line."""
    start, size = 0, len(data)
    while start < size:
        stop = min(start + BLOCK_BYTES, size)
        block = data[start:stop]
        if stop < size and not (end := block.rfind(b"\n") + 1):
            parts = [block]
            while not end and stop < size:  # a line longer than a block
                more = data[stop : stop + BLOCK_BYTES]
                end = more.find(b"\n") + 1
                parts.append(more[: end or None])
                stop += len(parts[-1])
            block = b"".join(parts)
        elif stop < size:
            block = block[:end]
        yield start, block
        start += len(block)


# ---- compressed files

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz"}
_BZIP2 = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # behind "BZh" and a digit: text may begin so


def compression(path: str) -> str | None:
    """ "gzip", "zstd", "xz", "bzip2" or None, by the first bytes of a local file."""
    with open(path, "rb") as f:
        start = f.read(10)
    if start.startswith(b"BZh") and start[4:] in _BZIP2:
        return "bzip2"
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)


def open_bytes(path: str, in_memory: bool, bad: BadRecords | None = None) -> Bytes:
    """The bytes of a file, unpacked if it is gzip, zstd, xz or bzip2.

    in_memory: where to unpack to; else a file in the cache folder.
    bad: told of a file that is torn or damaged; of that, what could be unpacked is given.
    """
    local = local_copy(path)
    kind = compression(local)
    if kind is None:
        return FileBytes(local, path) if os.path.getsize(local) else b""
    if in_memory:
        chunks: list[bytes] = []
        _unpack(local, path, kind, chunks.append, bad)
        return b"".join(chunks)
    unpacked = cache_folder("unpacked") / version_of(local)
    # Told of again at each scan: an unpacked copy doesn't say that its original is torn.
    if bad is not None or not unpacked.exists():
        with written_whole(unpacked) as temporary, open(temporary, "wb") as f:
            _unpack(local, path, kind, f.write, bad)
            f.flush()
    return FileBytes(str(unpacked), f"{unpacked} (the content of {path})")


def _unpack(
    local: str, name: str, kind: str, write: Callable[[bytes], Any], bad: BadRecords | None
) -> None:
    size, new = 0, _unpacker(name, kind)
    try:
        with open(local, "rb") as f:
            for data in _unpacked(f, new):
                write(data)
                size += len(data)
    except Exception as e:  # the libraries have five classes of errors
        if isinstance(e, OSError) and e.errno:
            raise  # of the disk
        if bad is not None:
            bad.add(
                f"{name} is a truncated or damaged {kind} file ({e}), after {size:,} bytes of "
                "content; fetch or compress it again."
            )


def _unpacked(file: BinaryIO, new: Callable[[], Any]) -> Iterator[bytes]:
    """The content of a file of one or several frames (gzip: members; xz, bzip2: streams)."""
    unpacker, inside = new(), False
    while data := file.read(_CHUNK):
        while data := data if inside else data.lstrip(b"\0"):  # gzip and xz files may be padded
            yield unpacker.decompress(data)
            inside, data = not unpacker.eof, b"" if not unpacker.eof else unpacker.unused_data
            if not inside:
                unpacker = new()
    if inside:
        raise EOFError("it ends in the middle")


def _unpacker(path: str, kind: str) -> Callable[[], Any]:
    if kind == "gzip":
        return lambda: zlib.decompressobj(31)
    if kind == "xz":
        return lzma.LZMADecompressor
    if kind == "bzip2":
        return bz2.BZ2Decompressor
    try:
        from compression import zstd  # Python 3.14

        return zstd.ZstdDecompressor
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError as e:
        raise UserError(f"{path} is compressed with zstd; pip install 't5x_lite[data]'.") from e
    return lambda: zstandard.ZstdDecompressor().decompressobj()


# ---- what is no UTF-8 text

_FOREIGN = {
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
    b"PK\x03\x04": "a zip archive", b"ARROW1\0\0": "an Arrow file", b"PAR1\x15": "a Parquet file",
}  # fmt: skip


def _without_mark(start: bytes) -> bool:
    """Whether bytes are UTF-16 text without a byte order mark, by its ASCII, of spaces at least.

    Where these have a zero, each other letter has the number of its script's block: few values. Of
    less than 8 characters all must be ASCII.
    (Text of other scripts than Latin and Cyrillic is no UTF-8 anyway.)
    """
    even, odd = start[::2], start[1 : len(start) // 2 * 2 : 2]
    for low, high in ((even, odd), (odd, even)):
        few = high.count(0) > 1 and len({*high}) <= 4
        if all(low) and (few if len(high) > 7 else len(high) > 3 and not any(high)):
            return True
    return False


def foreign_format(start: bytes) -> str | None:
    """What is wrong with the first 512 bytes of a file that should be UTF-8 text, or None."""
    kind = next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), None)
    if kind is None and _without_mark(start):
        kind = "UTF-16"
    if kind is None and start[257:262] == b"ustar":
        kind = "a tar archive"
    if kind is None:
        return None
    if kind.startswith("UTF"):
        return (
            f"is {kind} text, expected UTF-8: save it as UTF-8 (in Excel: 'CSV UTF-8'), or convert "
            f"it: iconv -f {kind} -t UTF-8 FILE > NEW_FILE"
        )
    fix = "unpack it" if "archive" in kind else "save it as Parquet, with a name on .parquet"
    return f"is {kind}, expected text: {fix}"
