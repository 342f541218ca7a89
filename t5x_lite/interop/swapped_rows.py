"""Weights whose ids 0 and another change places: see `data.huggingface.HuggingFaceVocabulary`.

In every parameter with an axis over the vocabulary two rows are swapped, on the way in and out.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from t5x_lite.interop.tensors import Index, Tensor, whole
from t5x_lite.models import Model, TransformerConfig
from t5x_lite.parallel.rules import is_axis_names

_AXIS = "vocab"


def vocabulary_axes(config: TransformerConfig) -> dict[str, int]:
    """{parameter: which of its axes is over the vocabulary}, of those that have one."""
    axes = jax.tree_util.tree_leaves_with_path(Model(config).logical_axes(), is_leaf=is_axis_names)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): names for path, names in axes}
    return {name: names.index(_AXIS) for name, names in named.items() if _AXIS in names}


def swapped(
    tensors: Mapping[str, Tensor], config: TransformerConfig, row: int
) -> dict[str, Tensor]:
    """The tensors with ids 0 and ``row`` changed."""
    axes = vocabulary_axes(config)
    return {
        name: _swapped(tensor, axes[name], row) if name in axes else tensor
        for name, tensor in tensors.items()
    }


def _swapped(tensor: Tensor, axis: int, row: int) -> Tensor:
    def read(index: Index) -> np.ndarray:
        index = whole(tensor.shape, index)
        found, part = tensor.read(index), index[axis]
        for here, there in ((0, row), (row, 0)):
            if part.start <= here < part.stop:
                other = (*index[:axis], slice(there, there + 1), *index[axis + 1 :])
                found = np.array(found)  # the file's may be read-only
                np.moveaxis(found, axis, 0)[here - part.start] = np.moveaxis(
                    tensor.read(other), axis, 0
                )[0]
        return found

    return Tensor(tensor.shape, tensor.dtype, read)


def swapped_back(
    read: Callable[[str], np.ndarray], config: TransformerConfig, row: int
) -> Callable[[str], np.ndarray]:
    """name -> value with the two ids where the file has them; ``read``: name -> value."""
    axes = vocabulary_axes(config)

    def value(name: str) -> np.ndarray:
        found = read(name)
        if name in axes:
            rows = np.moveaxis(found := np.array(found), axes[name], 0)
            rows[[0, row]] = rows[[row, 0]]
        return found

    return value
