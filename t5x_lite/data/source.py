"""What a source of records is, and how a part of one is held out."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5x_lite.errors import UserError, did_you_mean

UNLABELLED = "<unk>"  # T5's target where the label is -1, as in test splits

Record = dict[str, Any]


class Source:
    """A sequence of records (dicts) with random access, cut into named splits.

    `num_bytes` is the size of the text in UTF-8 bytes (of the stored records for TFDS), `num_files`
    how many files hold it, `fingerprint` a hex digest that changes with the content, not with where
    it lies. Records of a `tokenized` source hold int32 [tokens] arrays in the place of text.
    """

    splits: tuple[str, ...] = ("train", "validation")
    tokenized = False
    num_files: int = 0
    num_bytes: int = 0
    fingerprint: str = ""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Record:
        raise NotImplementedError

    def where(self, index: int) -> str:
        """Where a record comes from, such as "a.csv line 3", for messages."""
        return f"record {index}"

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def split(self, name: str) -> "Source":
        """The records of one split; UserError for a name that the source doesn't have."""
        if name not in self.splits:
            raise UserError(
                f"{type(self).__name__} has no split {name!r}; it has {', '.join(self.splits)}."
                + did_you_mean(name, self.splits)
            )
        return self._split(name)

    def _split(self, name: str) -> "Source":
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What it holds, to print: kind, files, records, bytes, and the records of each split."""
        return {
            "kind": type(self).__name__,
            "files": self.num_files,
            "records": len(self),
            "bytes": self.num_bytes,
            "splits": {name: len(self.split(name)) for name in self.splits},
        }


class Subset(Source):
    """The records of `parent` at `indices`: one of its splits, of that `name`."""

    def __init__(self, parent: Any, name: str, indices: Sequence[int] | np.ndarray, num_bytes: int):
        self.parent, self.indices, self.num_bytes = parent, indices, num_bytes
        self.splits = (name,)
        self.num_files = parent.num_files

    @property
    def fingerprint(self) -> str:
        return digest(self.parent.fingerprint, self.splits[0], len(self))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.parent[int(self.indices[index])]

    def where(self, index: int) -> str:
        return self.parent.where(int(self.indices[index]))

    def _split(self, name: str) -> Source:
        return self

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"kind": type(self.parent).__name__}


@dataclasses.dataclass(frozen=True)
class Index:
    """Per document: `hashes` uint64 [N], by which it is held out; `sizes` int64 [N] in bytes."""

    hashes: np.ndarray
    sizes: np.ndarray


class HashSplit(Source):
    """A source that holds out the share `held_out` of its documents by a hash of each.

    Or, if `validation` is given, all of that other source and none of its own. Subclasses give
    `make_index`, called once, on first use.
    """

    def __init__(self, held_out: float, validation: "HashSplit | None" = None):
        if not 0 <= held_out < 1:
            raise UserError(f"held_out is {held_out}; it must be a share of documents in [0, 1).")
        self.held_out = held_out if validation is None else 0.0
        self.validation = validation

    def make_index(self) -> Index:
        raise NotImplementedError

    @functools.cached_property
    def index(self) -> Index:
        return self.make_index()

    def __len__(self) -> int:
        return len(self.index.hashes)

    @property
    def num_bytes(self) -> int:
        return int(self.index.sizes.sum())

    @functools.cached_property
    def fingerprint(self) -> str:
        held_out = self.held_out if self.validation is None else self.validation.fingerprint
        return digest(self.index.hashes.tobytes(), self.index.sizes.tobytes(), held_out)

    @functools.cached_property
    def _held_out_mask(self) -> np.ndarray:
        return held_out_mask(self.index.hashes, self.held_out)

    def _split(self, name: str) -> Source:
        if name == "validation" and self.validation is not None:
            others = self.validation
            return Subset(others, name, range(len(others)), others.num_bytes)
        (indices,) = np.nonzero(self._held_out_mask == (name == "validation"))
        return Subset(self, name, indices, int(self.index.sizes[indices].sum()))


def held_out_mask(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents to hold out: bool [N] for `hashes` uint64 [N].

    Those whose hash is in the lowest `fraction` of its range: a document's side does not depend on
    the others, and equal documents are on the same side. But a small corpus with `fraction` > 0
    holds out one at least, and never all.
    """
    if fraction == 0 or len(hashes) == 0 or hashes.min() == hashes.max():
        return np.zeros(len(hashes), bool)
    low = hashes < np.uint64(int(fraction * 2**64))
    return (low | (hashes == hashes.min())) & (hashes != hashes.max())


def hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def digest(*parts: Any) -> str:
    """Hex digest of the parts (bytes, or anything by its `str`), in order."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()
