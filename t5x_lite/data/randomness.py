"""Random generators that are functions of coordinates."""

import hashlib

import numpy as np
from numpy.random.bit_generator import ISeedSequence


class _Words(ISeedSequence):
    """256 bits of seed, made before."""

    def __init__(self, words: np.ndarray):
        self.words = words

    def generate_state(self, n_words: int, dtype=np.uint32) -> np.ndarray:
        assert n_words == 4 and dtype is np.uint64, "PCG64 asks for its 256 bits"
        return self.words


def generator_at(*coordinates: int) -> np.random.Generator:
    """A generator of its own for integer coordinates, 0 or more and below 2**64.

    The coordinates are hashed here and not by numpy's SeedSequence, which takes ten times as long,
    as long as an example of span corruption.
    """
    key = b"".join(int(c).to_bytes(8, "little") for c in coordinates)
    words = np.frombuffer(hashlib.blake2b(key, digest_size=32).digest(), "<u8").astype(np.uint64)
    return np.random.Generator(np.random.PCG64(_Words(words)))  # type: ignore[arg-type]
