"""Which part of a split stands for it where there is a limit: a fixed sample, never its beginning.

What is first in a split is all of one file, one language or one year. So whoever looks at a part
takes the records in an order that is a permutation by their number alone: the same on any number of
hosts, for any batch size, seed or checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from t5x_lite.data.source import hash64
from t5x_lite.data.streams import shuffled

Made = TypeVar("Made")

_SEED = hash64(b"fixed sample")


def sample_order(length: int) -> Iterator[int]:
    """The numbers 0, ..., length - 1, each once, in a fixed random order."""
    return (shuffled(i, length, _SEED) for i in range(length))


def fixed_sample(
    length: int, limit: int | None, make: Callable[[int], Made | None]
) -> Iterator[Made]:
    """Yields what `make(index)` gives, in the order of the indices, where that isn't None.

    limit: yield that many, of a fixed sample of the indices below `length`; None: all. With a limit
      that is large enough the two are the same.
    """
    if limit is None:
        yield from (made for i in range(length) if (made := make(i)) is not None)
        return
    found: dict[int, Made] = {}
    for index in sample_order(length):
        if len(found) >= limit:
            break
        if (made := make(index)) is not None:
            found[index] = made
    yield from (found[index] for index in sorted(found))


def apportion(count: int, shares: Sequence[float]) -> list[int]:
    """Cuts `count` into whole parts in proportion to `shares`, by largest remainders."""
    exact = [count * share / sum(shares) for share in shares]
    parts = [int(x) for x in exact]
    largest = sorted(range(len(shares)), key=lambda i: (parts[i] - exact[i], i))
    for i in largest[: count - sum(parts)]:
        parts[i] += 1
    return parts
