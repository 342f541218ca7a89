"""Rows on disk in buckets by their text's hash, so that a shard's writer reads only its own.

A file is the offsets of its buckets, then for each bucket frames of zstd with JSON lines. It
appears under its name in one step: whole or not at all.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zstandard

MOST_BUCKETS = 1 << 16
_PART_BYTES = 32 << 20  # of rows, held in memory until they are packed
_COPY_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Layout:
    """Into how many pieces a corpus is cut.

    units: of input, each cleaned by one task. buckets: of documents by hash, a power of two.
    parts: of the units (unit % parts) and of each column of keys, when documents are compared.
    """

    units: int
    buckets: int
    parts: int

    def units_of(self, part: int) -> range:
        return range(part, self.units, self.parts)


def bucket_of(text: str, buckets: int) -> tuple[int, float]:
    """(bucket, position in [0, 1) for the split) of a text, by its hash."""
    found = hashlib.blake2b(text.encode(errors="replace"), digest_size=9).digest()
    # Its last byte, too: the others of the position decide the split.
    bucket = (found[0] << 8 | found[8]) * buckets // MOST_BUCKETS
    return bucket, int.from_bytes(found[1:]) / 2**64


class BucketWriter:
    """Writes (number, value) rows of one file; `close` makes it appear."""

    def __init__(self, path: Path, buckets: int):
        self._path, self._number = path, buckets
        self._rows: dict[int, list[bytes]] = {}
        self._size = 0
        self._parts: list[np.ndarray] = []  # of each, the offsets of its buckets
        self._spilled = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 # until close

    def write(self, bucket: int, number: int, value: Any) -> None:
        row = json.dumps([number, value], ensure_ascii=False)
        data = row.encode("utf-8", errors="replace") + b"\n"
        self._rows.setdefault(bucket, []).append(data)
        self._size += len(data)
        if self._size >= _PART_BYTES:
            self._spill()

    def _spill(self) -> None:
        packer = zstandard.ZstdCompressor(level=3)
        sizes = np.zeros(self._number + 1, np.int64)
        sizes[0] = self._spilled.tell()
        for bucket in sorted(self._rows):
            sizes[bucket + 1] = self._spilled.write(packer.compress(b"".join(self._rows[bucket])))
        self._parts.append(np.cumsum(sizes))
        self._rows, self._size = {}, 0

    def close(self) -> None:
        self._spill()
        ends = np.cumsum([np.diff(part) for part in self._parts], axis=1).sum(0)
        with self._spilled, whole_file(self._path) as file:
            file.write(np.r_[0, ends].astype(np.int64).tobytes())
            for bucket in range(self._number):
                for part in self._parts:
                    self._spilled.seek(part[bucket])
                    left = int(part[bucket + 1] - part[bucket])
                    while left > 0:
                        left -= file.write(self._spilled.read(min(left, _COPY_BYTES)))


def read_rows(path: Path, chosen: range, buckets: int) -> Iterator[tuple[int, Any]]:
    """(number, value) of some buckets, bucket by bucket; none if there is no such file."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(8 * chosen.start)
        offsets = np.frombuffer(file.read(8 * (len(chosen) + 1)), np.int64)
        base = 8 * (buckets + 1)
        for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            if begin < end:
                file.seek(base + begin)
                yield from map(json.loads, _unpacked(file.read(end - begin)).rstrip().split(b"\n"))


def _unpacked(data: bytes) -> bytes:
    parts = []
    while data:  # one frame of each spilled part
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        parts.append(unpacker.decompress(data))
        data = unpacker.unused_data
    return b"".join(parts)


# ------------------------------------------------------------------------------------ whole files


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def write_json(path: Path, value: Any) -> None:
    try:
        data = json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
    except (
        UnicodeEncodeError
    ):  # names of files that aren't UTF-8: as escapes, so that they come back
        data = json.dumps(value, sort_keys=True).encode()
    write_whole(path, data)


def write_whole(path: Path, data: bytes) -> None:
    with whole_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Appears under its name with all that is written, or not at all, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
