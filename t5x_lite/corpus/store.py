"""Cleaned documents on disk, in buckets by hash, so that a shard's writer reads only its own.

A unit of input makes parts `00007.000.zst`: for each bucket a zstd frame of JSON lines. Its index,
`00007.json`, is written last, under its name in one step: a unit is there whole or not at all.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from t5x_lite.corpus.steps import Document

BUCKETS = 256
_PART_BYTES = 32 << 20  # of text, held in memory until it is written


def bucket_of(text: str) -> tuple[int, float]:
    """(bucket, position in [0, 1) for the split) of a text, by its hash."""
    found = hashlib.blake2b(text.encode(errors="replace"), digest_size=9).digest()
    return found[0], int.from_bytes(found[1:]) / 2**64


class UnitWriter:
    """Writes the documents of one unit; `close` makes them appear."""

    def __init__(self, folder: Path, unit: int):
        self._folder, self._name = folder, f"{unit:05d}"
        self._buckets: dict[int, list[bytes]] = {}
        self._size = self.documents = 0
        self._parts: list[dict[str, Any]] = []

    def write(self, document: Document) -> None:
        bucket, _ = bucket_of(document["text"])
        row = json.dumps([self.documents, document], ensure_ascii=False)
        data = row.encode("utf-8", errors="replace") + b"\n"
        self._buckets.setdefault(bucket, []).append(data)
        self._size += len(data)
        self.documents += 1
        if self._size >= _PART_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._buckets:
            return
        name = f"{self._name}.{len(self._parts):03d}.zst"
        packer, offsets, data = zstandard.ZstdCompressor(level=3), {}, []
        end = 0
        for bucket in sorted(self._buckets):
            frame = packer.compress(b"".join(self._buckets[bucket]))
            offsets[bucket] = (end, len(frame))
            data.append(frame)
            end += len(frame)
        write_whole(self._folder / name, b"".join(data))
        self._parts.append({"file": name, "buckets": offsets})
        self._buckets, self._size = {}, 0

    def close(self, more: dict[str, Any]) -> None:
        self._flush()
        index = {"documents": self.documents, "parts": self._parts, **more}
        write_json(self._folder / f"{self._name}.json", index)


def read_unit(
    folder: Path, unit: int, buckets: range | None = None
) -> Iterator[tuple[int, Document]]:
    """(number in the unit, document) of some buckets; all of them, in the unit's order a part."""
    index = json.loads((folder / f"{unit:05d}.json").read_bytes())
    unpacker = zstandard.ZstdDecompressor()
    for part in index["parts"]:
        rows = []
        with open(folder / part["file"], "rb") as file:
            for bucket, (offset, size) in part["buckets"].items():
                if buckets is None or int(bucket) in buckets:
                    file.seek(offset)
                    rows += unpacker.decompress(file.read(size)).splitlines()
        documents = (json.loads(row) for row in rows)
        yield from sorted(documents, key=lambda row: row[0]) if buckets is None else documents


def write_json(path: Path, value: Any) -> None:
    write_whole(
        path, json.dumps(value, ensure_ascii=False, sort_keys=True).encode(errors="replace")
    )


def write_whole(path: Path, data: bytes) -> None:
    """The file appears under its name with all of `data`, or not at all, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
