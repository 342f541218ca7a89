"""Tensors that are somewhere else: a shape, a dtype, and a way to read a part."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

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


def described(tensor: Tensor) -> str:
    """A tensor's dtype and shape, as in "float32[32128,512]"."""
    return f"{tensor.dtype.name}[{','.join(map(str, tensor.shape))}]"


def cast(tensor: Tensor, dtype: np.dtype | None) -> Tensor:
    """The tensor with its values cast as they are read; None: as they are."""
    if dtype is None or tensor.dtype == dtype:
        return tensor
    return Tensor(tensor.shape, np.dtype(dtype), lambda index: tensor.read(index).astype(dtype))


def flattened(tensor: Tensor, count: int) -> Tensor:
    """The tensor with its last ``count`` axes as one; these are read whole."""
    kept, joined = tensor.shape[:-count], tensor.shape[-count:]

    def read(index: Index) -> np.ndarray:
        full = tuple(slice(0, size) for size in joined)
        found = tensor.read((*index[:-1], *full))
        return found.reshape(*found.shape[: len(kept)], -1)[..., index[-1]]

    return Tensor((*kept, math.prod(joined)), tensor.dtype, read)
