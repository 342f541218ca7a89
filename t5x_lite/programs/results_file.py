"""A file of results, a JSON object a line, that an interrupted program goes on with."""

import contextlib
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from t5x_lite.errors import UserError


def shard(records: Sequence[Any], which: str | None) -> Sequence[Any]:
    """Every N-th record, from the I-th, of "I/N" with I from 0; all without it."""
    if which is None:
        return records
    index, count = _parts(which)
    mine = records[index::count]
    if not mine:
        raise UserError(f"--shard={which} of {len(records)} records is empty: take fewer shards.")
    return mine


def shard_name(path: str, which: str | None) -> str:
    """out.jsonl of "1/4" is out-00001-of-00004.jsonl."""
    if which is None:
        return path
    index, count = _parts(which)
    stem, ending = os.path.splitext(path)
    return f"{stem}-{index:05}-of-{count:05}{ending}"


def _parts(which: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", which)
    if not found or int(found[1]) >= int(found[2]):
        raise UserError(f"--shard={which}: expected I/N with I from 0 to N - 1, such as 0/4.")
    return int(found[1]), int(found[2])


def fingerprint(*what: Any) -> str:
    """Of all that results depend on: JSON values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def continued(path: str, key: str, together: int) -> Iterator[tuple[TextIO, int]]:
    """A file to append results to, and how many are in it already, a multiple of ``together``.

    It has another name until the block ends without an exception. What was begun under another
    ``key`` (see `fingerprint`) is left where it is, and named.
    """
    begun = Path(f"{path}.{key}.tmp")
    for other in begun.parent.glob(f"{glob.escape(Path(path).name)}.{'[0-9a-f]' * 12}.tmp"):
        if other != begun:
            said = "of a call with other settings or texts, left there; remove it if not wanted"
            print(f"{other}: {said}", file=sys.stderr)
    lines = begun.read_bytes().split(b"\n")[:-1] if begun.exists() else []
    kept = lines[: len(lines) // together * together]
    with open(begun, "r+b" if begun.exists() else "xb") as file:
        file.truncate(sum(len(line) + 1 for line in kept))
    with open(begun, "a", encoding="utf-8") as file:
        yield file, len(kept)
    os.replace(begun, path)
