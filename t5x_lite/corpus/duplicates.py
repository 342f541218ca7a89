"""Duplicates: keys of documents and lines, and which of those that share a key goes.

A document is one number, unit << 28 | its number in the unit: the order of input. Of each group
of duplicates the first stays. All here works on NumPy arrays of keys and numbers, so that Beam
moves a few arrays a unit, not a record for each hash of each document.
"""

import dataclasses
import hashlib
import re

import numpy as np

from t5x_lite.corpus.text import comparable, exact_form, units
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """What counts as a duplicate. The defaults are FineWeb's: 14 bands of 8 hashes of 5 words.

    Documents of Jaccard similarity s share a band with probability 1 - (1 - s**rows)**bands: 0.05
    for s = 0.5, 0.56 for 0.7, 0.77 for 0.75, 0.92 for 0.8.

    Args:
      exact: drop documents whose text is the same but for case, white space and punctuation at the
        ends of words; letters, marks, digits and operators count, and in source code all does.
      near: drop documents that share a band of MinHashes; chains of them count as one group. They
        are of text without accents, punctuation and numbers; source code counts as it is written.
      ngram, bands, rows, seed: of MinHash; n-grams of words, in scripts without spaces of
        characters.
      lines: drop lines that stood anywhere before, as C4 does (lower case, ends stripped).
      min_line_characters: shorter lines are never dropped.
      min_sentences: a document with fewer left after that is dropped (C4: 3).
      substrings: remove runs of so many bytes that stood before (Lee et al. 2022; ROOTS: 50); on
        one machine, as it looks at the whole text at once. None: don't.
      max_substring_bytes: the most text that `substrings` takes on; it needs 40 times as much
        memory.
    """

    exact: bool = True
    near: bool = True
    ngram: int = 5
    bands: int = 14
    rows: int = 8
    seed: Count = 1
    lines: bool = False
    min_line_characters: int = 1
    min_sentences: int = 3
    substrings: int | None = None
    max_substring_bytes: int = 200_000_000

    def __post_init__(self):
        for name in ("ngram", "bands", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"Duplicates.{name} is {getattr(self, name)}; use 1 or more.")

    def keys(self, text: str, code: bool = False) -> np.ndarray:
        """uint64 [1 + bands]: the exact key, then one for each band (only those switched on).

        code: `text` is source code.
        """
        found = []
        if self.exact:
            found.append(np.array([_hash64(exact_form(text, code) or text)], np.uint64))
        if self.near:
            found.append(self.band_keys(_tokens(text) if code else units(comparable(text)), text))
        return np.concatenate(found) if found else np.zeros(0, np.uint64)

    def band_keys(self, parts: list[str], text: str) -> np.ndarray:
        """uint64 [bands] of a text's words (or characters); of the text itself if it has none."""
        parts = parts or [text]
        grams = {
            " ".join(parts[i : i + self.ngram]) for i in range(max(1, len(parts) - self.ngram + 1))
        }
        digest = np.array(_minhash(self.bands * self.rows, self.seed, grams), np.uint64)
        return mix(digest.reshape(self.bands, self.rows))

    @property
    def names(self) -> list[str]:
        """Of the columns of `keys`."""
        bands = [f"band {i}" for i in range(self.bands)] if self.near else []
        return ["exact"] * self.exact + bands


_TOKEN = re.compile(r"\w+|[^\w\s]+")


def _tokens(text: str) -> list[str]:
    """Of source code: names, numbers and operators."""
    return _TOKEN.findall(text)


def _minhash(number: int, seed: int, grams: set[str]) -> list[int]:
    import rensa

    minhash = rensa.RMinHash(num_perm=number, seed=seed)
    minhash.update(sorted(grams))
    return minhash.digest()


def line_key(line: str) -> int:
    """As C4: of the line in lower case without white space at its ends."""
    return _hash64(line.strip().lower())


def _hash64(text: str) -> int:
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest)


def mix(values: np.ndarray) -> np.ndarray:
    """uint64 [n, k] -> [n]: a hash of each row (the steps of splitmix64)."""
    state = np.zeros(len(values), np.uint64)
    with np.errstate(over="ignore"):
        for column in values.T:
            state = (state ^ column) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return state


def repeats(keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, later): for each number but the smallest of its key, that smallest and itself."""
    order = np.lexsort((numbers, keys))
    keys, numbers = keys[order], numbers[order]
    begins = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, int)
    sizes = np.diff(np.r_[begins, len(keys)])
    firsts = np.repeat(numbers[begins], sizes)
    later = firsts != numbers
    return firsts[later], numbers[later]


def groups(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number, smallest of its group) of all numbers in the pairs: connected components.

    Labels run along the pairs and halve their paths until nothing changes, so a chain of n takes
    about log n rounds.
    """
    numbers, inverse = np.unique(np.concatenate([first, second]), return_inverse=True)
    left, right = inverse[: len(first)], inverse[len(first) :]
    label = np.arange(len(numbers))
    while True:
        low = np.minimum(label[left], label[right])
        new = label.copy()
        # A root takes the smallest label that any member of its tree meets.
        np.minimum.at(new, label[left], low)
        np.minimum.at(new, label[right], low)
        while not np.array_equal(new[new], new):
            new = new[new]
        if np.array_equal(new, label):
            return numbers, numbers[label]
        label = new


# ------------------------------------------------------------------------------ repeated substrings


def repeated_spans(texts: list[bytes], length: int) -> list[list[tuple[int, int]]]:
    """For each text the spans of bytes in runs of `length` or more that stood before.

    Ranks of all positions by their next 1, 2, 4, ... bytes, as a suffix array is built by doubling,
    stopped at `length`: equal ranks are equal bytes, without collisions. Runs don't cross texts.
    """
    sizes = np.array([len(t) for t in texts], np.int64)
    ends = np.cumsum(sizes)
    data = np.frombuffer(b"".join(texts), np.uint8)
    if len(data) < length:
        return [[] for _ in texts]
    rank, covered = data.astype(np.int64), 1
    while covered < length:
        step = min(covered, length - covered)  # the last two overlap
        shifted = np.r_[rank[step:], np.zeros(step, np.int64)]
        _, rank = np.unique(rank * (int(rank.max()) + 1) + shifted, return_inverse=True)
        covered += step
    positions = np.arange(len(data))
    owner = np.searchsorted(ends, positions, "right")
    inside = positions + length <= ends[np.minimum(owner, len(ends) - 1)]
    order = np.flatnonzero(inside)
    _, first = np.unique(rank[order], return_index=True)
    again = inside.copy()
    again[order[first]] = False
    change = np.zeros(len(data) + 1, np.int64)
    np.add.at(change, np.flatnonzero(again), 1)
    np.add.at(change, np.flatnonzero(again) + length, -1)
    marked = np.cumsum(change[:-1]) > 0
    return [
        _spans(marked[end - size : end], data[end - size : end])
        for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)
    ]


def _spans(marked: np.ndarray, data: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.r_[0, marked.astype(np.int8), 0])).reshape(-1, 2)
    found = []
    for begin, stop in edges.tolist():
        while begin < stop and data[begin] & 0xC0 == 0x80:  # within a character of UTF-8
            begin += 1
        while stop < len(data) and stop > begin and data[stop] & 0xC0 == 0x80:
            stop -= 1
        if stop > begin:
            found.append((begin, stop))
    return found


def without_spans(text: bytes, spans: list[tuple[int, int]]) -> str:
    """The text without some of its bytes."""
    parts, end = [], 0
    for begin, stop in spans:
        parts.append(text[end:begin])
        end = stop
    return b"".join([*parts, text[end:]]).decode(errors="ignore")
