"""Parameters of a model with `fused_projections` from those of one without, and the other way.

Weights are exchanged in the plain form; see models/functional/fusing.py for the other.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.interop.tensors import Index, Tensor, Tensors, whole
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.functional.fusing import join_heads, split_heads
from t5x_lite.training import checkpoint_layout as layout

Shape = tuple[int, ...]
_FUSED = re.compile(r"(.*/)(qkv|kv|wi_fused)/(kernel|bias)")
_PLAIN = re.compile(r"(.*/)(query|key|mlp/wi_0)/(kernel|bias)")
_HEADS = {"qkv": ("query", "key", "value"), "kv": ("key", "value")}
_CROSS = "encoder_decoder_attention/"


def is_fused(names: Iterable[str]) -> bool:
    return any(_FUSED.fullmatch(name) for name in names)


def fuse(params: Mapping[str, Any], config: TransformerConfig) -> dict[str, Any]:
    """A plain tree of parameters, scanned or unrolled, as one with fused projections."""
    return _convert(params, config, fuse_tensors)


def unfuse(params: Mapping[str, Any], config: TransformerConfig) -> dict[str, Any]:
    """The inverse of `fuse`."""
    return _convert(params, config, unfuse_tensors)


def _convert(params: Mapping[str, Any], config: TransformerConfig, convert: Callable) -> dict:
    arrays = {name: np.asarray(value) for name, value in layout.by_name(params).items()}
    tensors = {n: Tensor(a.shape, a.dtype, a.__getitem__) for n, a in arrays.items()}
    return layout.nested({name: tensor.all() for name, tensor in convert(tensors, config).items()})


def fuse_tensors(tensors: Tensors, config: TransformerConfig) -> dict[str, Tensor]:
    """Plain parameters by name as fused ones; each is put together when it is read."""
    found = dict(tensors)
    for name in tensors:
        match = _PLAIN.fullmatch(name)
        if match is None or (match[2] == "query" and match[1].endswith(_CROSS)):
            continue
        if match[2] == "key" and not match[1].endswith(_CROSS):
            continue
        kind = {"query": "qkv", "key": "kv", "mlp/wi_0": "wi_fused"}[match[2]]
        if kind == "wi_fused":
            block = f"{match[1]}mlp/"
            parts = [f"{block}wi_{i}/{match[3]}" for i in range(len(config.mlp_activations))]
        else:
            block = match[1]
            parts = [f"{block}{part}/{match[3]}" for part in _HEADS[kind]]
        pieces = [found.pop(part) for part in parts]
        found[f"{block}{kind}/{match[3]}"] = _joined(pieces, kind, config.kv_heads)
    return found


def unfuse_tensors(tensors: Tensors, config: TransformerConfig) -> dict[str, Tensor]:
    """The inverse of `fuse_tensors`. A part of a fused parameter is read with the whole of it."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _FUSED.fullmatch(name)
        if match is None:
            found[name] = tensor
            continue
        widths = _widths(match[2], config)
        names = _HEADS.get(match[2]) or [f"wi_{i}" for i in range(len(widths))]
        for i, part in enumerate(names):
            found[f"{match[1]}{part}/{match[3]}"] = _part(tensor, match[2], i, widths, config)
    return found


def plain_shapes(shapes: Mapping[str, Shape], config: TransformerConfig) -> dict[str, Shape]:
    """Shapes of fused parameters by name -> of the plain ones."""
    return {name: t.shape for name, t in unfuse_tensors(_empty(shapes), config).items()}


def fused_shapes(shapes: Mapping[str, Shape], config: TransformerConfig) -> dict[str, Shape]:
    """The inverse of `plain_shapes`."""
    return {name: t.shape for name, t in fuse_tensors(_empty(shapes), config).items()}


def plain_model(
    config: TransformerConfig, read: Callable[[str], np.ndarray], shapes: Mapping[str, Shape]
) -> tuple[TransformerConfig, Callable[[str], np.ndarray], dict[str, Shape]]:
    """A model, how its parameters are read by name, and their shapes: all in the plain form."""
    if not config.fused_projections:
        return config, read, dict(shapes)

    def tensor(name: str, shape: Shape) -> Tensor:
        return Tensor(shape, np.dtype(np.float32), lambda index: read(name)[index])

    tensors = unfuse_tensors({name: tensor(name, shape) for name, shape in shapes.items()}, config)
    plain = dataclasses.replace(config, fused_projections=False)
    return plain, lambda name: tensors[name].all(), {n: t.shape for n, t in tensors.items()}


def _empty(shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    nothing = np.dtype(np.float32)
    return {name: Tensor(s, nothing, lambda index: np.empty(0)) for name, s in shapes.items()}


def _widths(kind: str, config: TransformerConfig) -> list[int]:
    if kind == "wi_fused":
        return [config.mlp_dim] * len(config.mlp_activations)
    heads = {"query": config.num_heads, "key": config.kv_heads, "value": config.kv_heads}
    return [heads[part] * config.head_dim for part in _HEADS[kind]]


def _joined(parts: Sequence[Tensor], kind: str, kv_heads: int) -> Tensor:
    first = parts[0].shape
    gates = kind == "wi_fused"
    last = (len(parts), first[-1]) if gates else (sum(part.shape[-1] for part in parts),)
    shape = (*first[:-1], *last)

    def read(index: Index) -> np.ndarray:
        *rows, final = whole(shape, index)
        if gates:
            *rows, chosen = rows
            part_index = (*rows, final)
            return np.stack([part.read(part_index) for part in parts[chosen]], axis=-2)
        pieces = [part.read((*rows, slice(0, part.shape[-1]))) for part in parts]
        return join_heads(pieces, kv_heads, np)[..., final]

    return Tensor(shape, parts[0].dtype, read)


def _part(
    tensor: Tensor, kind: str, i: int, widths: Sequence[int], config: TransformerConfig
) -> Tensor:
    gates = kind == "wi_fused"
    shape = (*tensor.shape[: -2 if gates else -1], widths[i])

    def read(index: Index) -> np.ndarray:
        *rows, final = whole(shape, index)
        if gates:
            return tensor.read((*rows, slice(i, i + 1), final))[..., 0, :]
        full = tensor.read((*rows, slice(0, tensor.shape[-1])))
        return split_heads(full, config.kv_heads, widths)[i][..., final]

    return Tensor(shape, tensor.dtype, read)
