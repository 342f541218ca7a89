"""Hugging Face's weight files: a folder of safetensors, in one file or in shards with an index.

Format: https://huggingface.co/docs/safetensors. Reading maps the files; writing knows all sizes
before the first tensor, so tensors may come in any order and none is kept.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import jax.numpy as jnp
import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.interop.tensors import Index, Tensor, empty, finite

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder by name; nothing but headers is read.

    Raises:
      UserError: no safetensors; a shard that is missing, damaged, or holds not what the index
        says; a dtype that isn't floating point or plain integer.
    """
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    if not (folder / SINGLE).is_file():
        others = [p.name for p in sorted(folder.glob("*.bin"))[:1]]
        hint = " (convert PyTorch's .bin files with safetensors' own tools)" if others else ""
        raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}{hint}.")
    return _read_file(folder / SINGLE)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = read_json(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise UserError(f"{folder / INDEX} has no weight_map of tensors to files.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{folder / INDEX} names {name!r}, which isn't a file beside it.")
        if not (folder / name).is_file():
            raise UserError(f"the shard {folder / name} is missing; {INDEX} names it: fetch it.")
        found = _read_file(folder / name)
        expected = {tensor for tensor, place in places.items() if place == name}
        if odd := sorted(expected ^ found.keys()):
            what = "lacks" if odd[0] in expected else "has, and the index doesn't place there,"
            raise UserError(f"the shard {folder / name} {what} {odd[0]!r}: fetch it again.")
        tensors |= found
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        # Checks the header against the file's size before anything is allocated.
        with safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(size))
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged or no safetensors file: {reason}.") from error
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if (code := entry["dtype"]) not in DTYPES:
            raise UserError(f"{path}: {name!r} is {code}, expected one of {', '.join(DTYPES)}.")
        shape, start = tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]
        tensor = Tensor(shape, DTYPES[code], _reader(path, shape, DTYPES[code], start))
        tensors[name] = finite(tensor, f"{name} in {path}")
    return tensors


def _reader(path: Path, shape: tuple[int, ...], dtype: np.dtype, start: int):
    """Reads parts of the tensor that begins at the byte ``start``.

    Its part of the file is mapped and let go each time: pages that stay would look like memory in
    use, and on some systems count as it.
    """
    length = math.prod(shape) * dtype.itemsize

    def read(index: Index) -> np.ndarray:
        if not length:
            return np.empty(shape, dtype)[index]
        mapped = np.memmap(path, np.uint8, "r", start, length)
        part = mapped.view(dtype).reshape(shape)[index]
        out = empty(part.shape, dtype)
        out[...] = part
        return out

    return read


class Writer:
    """Writes tensors whose names, shapes and dtypes are known; each is given once, in any order.

    Several files and an index if they hold more than ``shard_bytes`` together. `close` checks that
    nothing was left out.
    """

    def __init__(
        self,
        folder: Path,
        specs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        shard_bytes: int = SHARD_BYTES,
    ):
        self._specs = dict(specs)
        self._left = set(self._specs)
        self._places: dict[str, tuple[BinaryIO, int]] = {}
        shards = self._shards(shard_bytes)
        self.files = [SINGLE]
        if len(shards) > 1:
            count = len(shards)
            self.files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
            weights = {name: f for f, s in zip(self.files, shards, strict=True) for name in s}
            total = sum(self._size(name) for name in self._specs)
            index = {"metadata": {"total_size": total}, "weight_map": weights}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        self._open = [
            self._begin(folder / file, names)
            for file, names in zip(self.files, shards, strict=True)
        ]

    def _size(self, name: str) -> int:
        shape, dtype = self._specs[name]
        return math.prod(shape) * np.dtype(dtype).itemsize

    def _shards(self, limit: int) -> list[list[str]]:
        shards: list[list[str]] = [[]]
        room = limit
        for name in self._specs:
            if shards[-1] and self._size(name) > room:
                shards.append([])
                room = limit
            shards[-1].append(name)
            room -= self._size(name)
        return shards

    def _begin(self, path: Path, names: list[str]) -> BinaryIO:
        header: dict = {"__metadata__": {"format": "pt"}}  # transformers asks for the format
        # Wider elements first, as the library does: every tensor is aligned.
        names = sorted(names, key=lambda n: (-np.dtype(self._specs[n][1]).itemsize, n))
        start = 0
        for name in names:
            shape, dtype = self._specs[name]
            end = start + self._size(name)
            code = _CODES[np.dtype(dtype)]
            header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file = open(path, "xb")  # noqa: SIM115
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
        for name in names:
            self._places[name] = (file, 8 + len(text) + header[name]["data_offsets"][0])
        return file

    def write(self, name: str, value: np.ndarray) -> None:
        shape, dtype = self._specs[name]
        assert name in self._left and value.shape == shape and value.dtype == dtype, name
        self._left.remove(name)
        file, offset = self._places[name]
        file.seek(offset)
        data = np.ascontiguousarray(value).view(np.uint8).reshape(-1) if value.size else b""
        file.write(memoryview(data))

    def close(self) -> None:
        for file in self._open:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        assert not self._left, f"not written: {sorted(self._left)[:3]}"


def read_json(path: Path) -> dict:
    """A JSON object; UserError if the file is missing or is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {' '.join(str(error).split())[:200]}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__}, expected a JSON object.")
    return found
