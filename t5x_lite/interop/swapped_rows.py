"""Weights whose ids 0 and another change places: see `data.huggingface.HuggingFaceVocabulary`.

In every parameter with an axis over the vocabulary two rows are swapped, on the way in and out.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.interop import tokenizer_files
from t5x_lite.interop.safetensors_files import read_json
from t5x_lite.interop.tensors import Index, Tensor, whole
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.model import Model
from t5x_lite.parallel.rules import is_axis_names

log = logging.getLogger(__name__)

_AXIS = "vocab"
AS_THEY_ARE = "none"  # in the place of a vocabulary: all ids are what the weights have


def row_of(folder: Path, config: TransformerConfig, vocabulary: Any = None) -> int:
    """The id that changes places with 0 in the weights of a Hugging Face folder; 0: none does.

    vocabulary: what the weights are read with; None: the folder's; `AS_THEY_ARE`: none is.

    Raises UserError for a decoder without a vocabulary whose config.json names special tokens in
    such a way that id 0 may be text, or padding be elsewhere: that only its vocabulary says.
    """
    if vocabulary == AS_THEY_ARE:
        return 0
    own = tokenizer_files.swapped_row_of(folder)
    if vocabulary is not None:
        given = tokenizer_files.swapped_row(vocabulary)
        if own is not None and own != given:
            raise UserError(
                f"the tokenizer in {folder} has padding at its id {own}, the vocabulary that was "
                f"given at {given}: they can't be read with the same weights."
            )
        return given
    if own is not None or config.architecture != "decoder_only":
        return own or 0
    values = read_json(folder / "config.json")
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    named = {name: values[name] for name in names if values.get(name) is not None}
    if named and (named.get("pad_token_id") != 0 or named.get("bos_token_id", 0) != 0):
        said = ", ".join(f"{name} = {value}" for name, value in named.items())
        raise UserError(
            f"{folder} has no tokenizer files that are known here, and its config.json says "
            f"{said}: which id is padding, and what is at id 0, only its vocabulary says. Give "
            f"that (--vocabulary=FILE, vocabulary=HuggingFaceVocabulary(...)), or "
            f"{AS_THEY_ARE!r} to take all ids as the weights have them."
        )
    log.warning("%s has no vocabulary: its ids are taken as they are, 0 as padding.", folder)
    return 0


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
