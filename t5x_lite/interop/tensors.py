"""Tensors that are somewhere else: a shape, a dtype, and a way to read a part."""

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
