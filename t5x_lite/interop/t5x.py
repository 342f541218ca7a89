"""Checkpoints that T5X wrote: its own (msgpack and zarr) and Orbax's, unrolled and scanned.

    checkpoint_1000/
      checkpoint               msgpack: {"version": 3, "optimizer": {"target": ..., "state": ...}}
      target.encoder.....kernel/     one zarr array for each parameter that isn't in the msgpack
or
    checkpoint_1000/state/     one Orbax tree {"target": ..., "state": ...}

Only "target", the parameters, is read. The optimizer's state isn't: what it means depends on
T5X's options, and training on starts well without.
"""

import functools
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.interop.safetensors_files import read_json
from t5x_lite.interop.tensors import Index, Tensor
from t5x_lite.interop.weight_maps import Rule, Shape, as_parameters, unrolled_shapes
from t5x_lite.models.config import TransformerConfig

MAX_MSGPACK_BYTES = 2**31
_STEP = re.compile(r"checkpoint_(\d+)")


def find(path: str | os.PathLike) -> Path | None:
    """The checkpoint at a path, or the newest one of a run of T5X there; None if there is none."""
    path = Path(path)
    if (path / "checkpoint").is_file() or _is_orbax(path):
        return path
    if not path.is_dir():
        return None
    steps = [(int(m[1]), p) for p in path.iterdir() if (m := _STEP.fullmatch(p.name))]
    for _, inside in sorted(steps, reverse=True):
        if (inside / "checkpoint").is_file() or _is_orbax(inside):
            return inside
    return None


def _is_orbax(path: Path) -> bool:
    """T5X's tree has "target" where ours has "params" and a description beside it."""
    return (path / "state" / "_METADATA").is_file() and not (path / "description").exists()


def read(path: Path) -> dict[str, Tensor]:
    """The parameters by T5X's names with "/"; scanned ones as unrolled, matrices with two axes.

    Raises:
      UserError: a file is damaged, named in the message, or of a version that isn't known.
    """
    tensors = _read_orbax(path) if _is_orbax(path) else _read_native(path)
    if not tensors:
        raise UserError(f"{path} holds no parameters under 'target'.")
    return _plain(tensors)


# ------------------------------------------------------------------------------- the two formats


def _read_native(path: Path) -> dict[str, Tensor]:
    import msgpack

    file = path / "checkpoint"
    try:
        if file.stat().st_size > MAX_MSGPACK_BYTES:
            raise ValueError(f"it has more than {MAX_MSGPACK_BYTES:,} bytes")
        data = file.read_bytes()
        if data.startswith(b"model_checkpoint_path"):
            raise UserError(f"{file} is TensorFlow's (Mesh TensorFlow T5): convert it with T5X.")
        root = msgpack.unpackb(
            data, ext_hook=_numpy, raw=False, strict_map_key=False, max_ext_len=len(data)
        )
        version = root["version"]
        target = root["optimizer"]["target"]
    except UserError:
        raise
    except Exception as error:  # a damaged file ends in almost any kind
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise UserError(f"{file} is damaged or not T5X's ({reason}).") from error
    if version != 3:
        raise UserError(f"{file} is of version {version!r}, expected 3: save it anew with T5X.")
    return {name: _native_leaf(path, name, leaf) for name, leaf in _flat(target)}


def _native_leaf(path: Path, name: str, leaf: Any) -> Tensor:
    if isinstance(leaf, dict):  # a tensorstore spec
        store = leaf.get("kvstore", {})
        place = store.get("path", leaf.get("path"))
    elif isinstance(leaf, str) and leaf.startswith("PLACEHOLDER://"):  # early Orbax
        place = leaf.removeprefix("PLACEHOLDER://")
    elif isinstance(leaf, np.ndarray):
        return Tensor(leaf.shape, leaf.dtype, lambda index: leaf[index])
    else:
        raise UserError(f"{path / 'checkpoint'}: {name} is {type(leaf).__name__}, not an array.")
    place = str(place).rstrip("/").rsplit("/", 1)[-1]  # always beside, whatever it says
    return _zarr(path / place)


def _numpy(code: int, data: bytes) -> Any:
    """flax.serialization's types: 1 an array (shape, dtype, bytes), 3 a scalar as one."""
    import msgpack

    if code not in (1, 3):
        raise ValueError(f"extension type {code}")
    shape, dtype, buffer = msgpack.unpackb(data, raw=False, max_bin_len=len(data))
    return np.frombuffer(buffer, _dtype(dtype)).reshape(shape)


def _dtype(name: Any) -> np.dtype:
    import jax.numpy as jnp

    name = name.decode() if isinstance(name, bytes) else str(name)
    return np.dtype(jnp.bfloat16) if name in ("bfloat16", "V2") else np.dtype(name)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and "driver" not in value:
            yield from _flat(value, f"{name}/")
        else:
            yield name, value


def _zarr(path: Path) -> Tensor:
    tensor = _store({"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}}, path)
    chunks = read_json(path / ".zarray")["chunks"]
    # A chunk that isn't there would be read as zeros.
    for place in np.ndindex(*(math.ceil(s / c) for s, c in zip(tensor.shape, chunks, strict=True))):
        name = ".".join(map(str, place)) or "0"
        if not (path / name).is_file():
            raise UserError(f"the array {path} is damaged: its file {name} is missing.")
    return tensor


def _store(spec: dict[str, Any], path: Path) -> Tensor:
    import tensorstore as ts

    def complain(error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:200]
        return UserError(f"the array {path} is missing or damaged: {reason}.")

    try:
        array = ts.open(spec, read=True, open=True).result()
    except (ValueError, OSError) as error:
        raise complain(error) from error

    def read(index: Index) -> np.ndarray:
        try:
            return array[index].read().result()
        except (ValueError, OSError) as error:
            raise complain(error) from error

    return Tensor(tuple(array.shape), np.dtype(array.dtype.numpy_dtype), read)


def _read_orbax(path: Path) -> dict[str, Tensor]:
    folder = path / "state"
    tree = read_json(folder / "_METADATA").get("tree_metadata")
    if not isinstance(tree, dict):
        raise UserError(f"{folder / '_METADATA'} is damaged: it has no 'tree_metadata'.")
    in_one = (folder / "manifest.ocdbt").exists()
    tensors = {}
    for entry in tree.values():
        try:
            keys = [str(part["key"]) for part in entry["key_metadata"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / '_METADATA'} is damaged ({error!r}).") from error
        if keys[0] != "target":
            continue
        place = ".".join(keys)
        store = {"driver": "ocdbt", "base": f"file://{folder.absolute()}/", "path": f"{place}/"}
        spec = {"driver": "zarr", "kvstore": store}
        open_array = functools.partial(_store, spec) if in_one else _zarr
        tensors["/".join(keys[1:])] = open_array(folder / place)
    return tensors


# ------------------------------------------------------------------------------- one form for all


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scanned arrays as one for each layer, and joined heads: what an unrolled model has.

    T5X's scalable models name a stack "encoder/encoder/...", keep the layers on axis 1 and the
    heads apart: query [embed, layers, heads, head_dim], out [heads, layers, head_dim, embed].
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        # Decoder-only models of T5X keep the table in the decoder.
        name = name.replace("decoder/token_embedder/", "token_embedder/")
        match = re.fullmatch(r"(encoder|decoder)/\1/(.*)", name)
        if match is None:
            out[name] = _two_axes(name, tensor)
            continue
        layers = tensor.shape[1]
        for i in range(layers):
            inner = f"{match[1]}/layers_{i}/{match[2]}"
            out[inner] = _two_axes(inner, _layer(tensor, i))
    return out


def _layer(tensor: Tensor, i: int) -> Tensor:
    shape = (tensor.shape[0], *tensor.shape[2:])

    def read(index: Index) -> np.ndarray:
        return tensor.read((index[0], slice(i, i + 1), *index[1:]))[:, 0]

    return Tensor(shape, tensor.dtype, read)


def _two_axes(name: str, tensor: Tensor) -> Tensor:
    """[embed, heads, head_dim] -> [embed, heads * head_dim], and out's the other way round."""
    if len(tensor.shape) != 3:
        return tensor
    a, b, c = tensor.shape
    shape = (a * b, c) if "/out/" in name else (a, b * c)
    whole = tuple(slice(0, size) for size in tensor.shape)
    return Tensor(shape, tensor.dtype, lambda index: tensor.read(whole).reshape(shape)[index])


# ------------------------------------------------------------------------------- a model of it


def parameters(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    config: TransformerConfig,
    path: Path,
    dtype: np.dtype | None = None,
) -> dict[str, Tensor]:
    """The parameters of a model with these shapes; UserError if the checkpoint's are others."""
    names = unrolled_shapes(shapes)
    rules = [Rule(name, name) for name in names]
    return as_parameters(tensors, rules, shapes, config, dtype=dtype, where=str(path))


def guess_config(tensors: Mapping[str, Tensor], path: Path) -> TransformerConfig:
    """The model that a T5X checkpoint is of, as far as its shapes say.

    What they don't say is as in T5: a gated MLP is GELU's, any other ReLU's; the maximal distance
    is 128. Raises UserError for trees that aren't a T5's.
    """

    def shape(name: str) -> Shape:
        if name not in tensors:
            raise UserError(f"{path} is no T5: it has no {name}; give --config for another model.")
        return tensors[name].shape

    def layers(stack: str) -> int:
        found = {m[1] for n in tensors if (m := re.match(rf"{stack}/layers_(\d+)/", n))}
        return len(found)

    vocab_size, embed_dim = shape("token_embedder/embedding")
    heads, buckets = shape("decoder/relpos_bias/rel_embedding")
    joined = shape("decoder/layers_0/self_attention/query/kernel")[1]
    gated = "decoder/layers_0/mlp/wi_0/kernel" in tensors
    return TransformerConfig(
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        num_heads=heads,
        head_dim=joined // heads,
        mlp_dim=shape(f"decoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[1],
        num_encoder_layers=layers("encoder"),
        num_decoder_layers=layers("decoder"),
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        relative_buckets=buckets,
        tied_embeddings="decoder/logits_dense/kernel" not in tensors,
    )
