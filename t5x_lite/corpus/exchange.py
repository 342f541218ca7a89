"""Rows that many tasks hand to many others, by files instead of through the runner's memory.

A task writes one file, sorted by receiver, and each receiver reads its slice of all of them: a
shuffle that is flat in memory, can be read again after a restart, and works on any runner whose
workers see the folder.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from t5x_lite.corpus.store import write_whole


def send(file: Path, receivers: np.ndarray, rows: np.ndarray, number: int) -> None:
    """rows: uint64 [n, width]; receivers: [n], each below `number`."""
    order = np.argsort(receivers, kind="stable")
    offsets = np.searchsorted(receivers[order], np.arange(number + 1)).astype(np.int64)
    write_whole(file, offsets.tobytes() + rows[order].astype(np.uint64).tobytes())


def receive(files: Iterable[Path], receiver: int, number: int, width: int) -> np.ndarray:
    """uint64 [n, width]: the rows for one of `number` receivers, in the order of the files."""
    parts = [np.zeros(0, np.uint64)]
    for path in files:
        with open(path, "rb") as file:
            file.seek(8 * receiver)
            begin, end = np.frombuffer(file.read(16), np.int64).tolist()
            file.seek(8 * (number + 1 + width * begin))
            parts.append(np.frombuffer(file.read(8 * width * (end - begin)), np.uint64))
    return np.concatenate(parts).reshape(-1, width)
