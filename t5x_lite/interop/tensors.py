"""Tensors that are somewhere else: a shape, a dtype, and a way to read a part."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from t5x_lite.errors import UserError

Index = tuple[slice, ...]  # one slice for each axis; steps are 1


class Tensor(NamedTuple):
    """An array in a file. ``read(index)`` reads and returns that part, and nothing is kept."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    def all(self) -> np.ndarray:
        return self.read(tuple(slice(0, size) for size in self.shape))


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As np.empty, in a place from which JAX makes a CPU array without copying."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    data = np.empty(size + 64, np.uint8)
    start = -data.ctypes.data % 64
    return data[start : start + size].view(dtype).reshape(shape)


Tensors = Mapping[str, Tensor]


def whole(shape: tuple[int, ...], index: Index) -> Index:
    """The index with every None filled in, as [0, size) is not what a callback gets."""
    return tuple(slice(*part.indices(size)) for part, size in zip(index, shape, strict=True))


def rows(shape: tuple[int, ...], count: int = 4096) -> Iterator[Index]:
    """Parts of an array that together are all of it, ``count`` rows of the first axis each."""
    for start in range(0, shape[0], count):
        yield slice(start, min(start + count, shape[0])), *(slice(0, size) for size in shape[1:])


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, read part by part up to the first difference."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.read(part), other.read(part)) for part in rows(one.shape))


_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F80_0000, "float64": 0x7FF << 52}
_CHUNK = 2**20


def require_finite(values: np.ndarray, what: str) -> np.ndarray:
    """The values; UserError that says ``what`` they are if one is NaN or infinite."""
    if values.dtype.name not in _EXPONENTS:
        return values
    # All bits of the exponent set: faster than isfinite, which bfloat16 has not as a loop.
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    mask = unsigned.type(_EXPONENTS[values.dtype.name])
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        bits = flat[start : start + _CHUNK].view(unsigned) & mask
        if (found := bits == mask).any():
            place = np.unravel_index(int(found.argmax()) + start, values.shape)
            raise UserError(
                f"{what} isn't finite: {values[place]} at {[int(i) for i in place]}. "
                f"Such weights compute nothing: fetch or convert them again."
            )
    return values


def finite(tensor: Tensor, what: str) -> Tensor:
    """The tensor, whose values are looked at as they are read: see `require_finite`."""
    return tensor._replace(read=lambda index: require_finite(tensor.read(index), what))


def described(tensor: Tensor) -> str:
    """A tensor's dtype and shape, as in "float32[32128,512]"."""
    return f"{tensor.dtype.name}[{','.join(map(str, tensor.shape))}]"


def cast(tensor: Tensor, dtype: np.dtype | None) -> Tensor:
    """The tensor with its values cast as they are read; None: as they are."""
    if dtype is None or tensor.dtype == dtype:
        return tensor

    def read(index: Index) -> np.ndarray:
        with np.errstate(over="ignore"):  # seen by whoever asks whether all is finite
            return tensor.read(index).astype(dtype)

    return Tensor(tensor.shape, np.dtype(dtype), read)


def flattened(tensor: Tensor, count: int) -> Tensor:
    """The tensor with its last ``count`` axes as one; these are read whole."""
    kept, joined = tensor.shape[:-count], tensor.shape[-count:]

    def read(index: Index) -> np.ndarray:
        full = tuple(slice(0, size) for size in joined)
        found = tensor.read((*index[:-1], *full))
        return found.reshape(*found.shape[: len(kept)], -1)[..., index[-1]]

    return Tensor((*kept, math.prod(joined)), tensor.dtype, read)
