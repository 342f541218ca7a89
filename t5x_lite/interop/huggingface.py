"""Folders of Hugging Face: config.json, safetensors and tokenizer files, read and written."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.data.chat import ChatTemplate
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.interop import fusing, safetensors_files, swapped_rows, tokenizer_files
from t5x_lite.interop.bert import Bert
from t5x_lite.interop.family import Family
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.gemma import Gemma
from t5x_lite.interop.gpt2 import Gpt2
from t5x_lite.interop.llama import Llama
from t5x_lite.interop.safetensors_files import SHARD_BYTES, Writer, read_json
from t5x_lite.interop.t5 import T5
from t5x_lite.interop.tensors import Tensor, Tensors, equal, require_finite
from t5x_lite.interop.weight_maps import Shape, as_parameters, their_shapes, their_tensors
from t5x_lite.interop.xlnet import XLNet
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.model import Model
from t5x_lite.training.checkpoint_layout import by_name

FAMILIES: tuple[Family, ...] = (T5(), Llama(), Gpt2(), Gemma(), Bert(), XLNet())
_BY_TYPE = {kind: family for family in FAMILIES for kind in family.model_types}
# Known, and refused with the reason.
_UNSUPPORTED = {
    "gemma3": "it sees images; its text alone is a model of type gemma3_text",
}


class Folder(NamedTuple):
    """A folder whose configuration is understood and whose tensors are the ones it needs."""

    path: Path
    family: Family
    config: TransformerConfig
    tensors: Tensors

    def parameters(
        self, shapes: Mapping[str, Shape], dtype: np.dtype | None = None
    ) -> dict[str, Tensor]:
        """The parameters by name, ready to be read. ``shapes``: scanned or unrolled."""
        return as_parameters(
            self.tensors,
            self.family.rules(self.config),
            shapes,
            self.config,
            dtype=dtype,
            ignored=self.family.ignored(self.config),
            where=str(self.path),
        )


def is_folder(path: str | os.PathLike) -> bool:
    return (Path(path) / "config.json").is_file()


def read_config(file: str | os.PathLike, tensors: Tensors | None = None) -> TransformerConfig:
    """The model that a config.json describes; ``tensors``: of its folder, None: the usual ones."""
    return _read_config(Path(file), tensors)[1]


def _read_config(file: Path, tensors: Tensors | None) -> tuple[Family, TransformerConfig]:
    values = read_json(file)
    kind = values.get("model_type")
    if isinstance(kind, str) and kind in _UNSUPPORTED:
        raise UserError(f"{file}: model_type {kind!r} isn't supported: {_UNSUPPORTED[kind]}.")
    if not isinstance(kind, str) or kind not in _BY_TYPE:
        hint = did_you_mean(str(kind), _BY_TYPE)
        known = ", ".join(_BY_TYPE)
        raise UserError(f"{file}: model_type is {kind!r}, expected one of {known}.{hint}")
    family = _BY_TYPE[kind]
    names = ("lm_head.weight",) if tensors is None else tuple(tensors)
    return family, TransformerConfig(**family.read(Fields(values, str(file)), names))


def read(path: str | os.PathLike) -> Folder:
    """Opens a folder: its config.json, and the headers of its weights.

    Raises:
      UserError: the configuration can't be expressed here, or a file is damaged or missing.
    """
    folder = Path(path)
    tensors = safetensors_files.read_folder(folder)
    kind = read_json(folder / "config.json").get("model_type")
    if isinstance(kind, str) and kind in _BY_TYPE:
        tensors = _BY_TYPE[kind].renamed(tensors)
    family, config = _read_config(folder / "config.json", tensors)
    return Folder(folder, family, config, _without_copies(tensors, family, config, folder))


def _without_copies(tensors: Tensors, family: Family, config, folder: Path) -> Tensors:
    """Drops tensors that repeat others, having seen that they do."""
    left = dict(tensors)
    for name, original in family.copies(config).items():
        if name not in left or original not in left:
            continue
        if not equal(left.pop(name), left[original]):
            raise UserError(
                f"{name} and {original} in {folder} differ, though config.json ties them: "
                f"set tie_word_embeddings to false if they are two."
            )
    return left


# ------------------------------------------------------------------------------------- writing


def family_for(config: TransformerConfig) -> Family:
    """The family that a model is exported as; UserError if there is none."""
    obstacles = []
    for family in FAMILIES:
        if (why := family.obstacle(config)) is None:
            return family
        if not why.startswith(("architecture", "positions")):
            obstacles.append(f"{type(family).__name__} has no {why}")
    said = "; ".join(obstacles) or f"{config.architecture} with {config.positions} positions"
    raise UserError(f"no model of Hugging Face computes what this one does: {said}.")


def write(
    path: str | os.PathLike,
    config: TransformerConfig,
    read_parameter: Callable[[str], np.ndarray],
    shapes: Mapping[str, Shape],
    *,
    vocabulary: Any = None,
    template: ChatTemplate | None = None,
    dtype: np.dtype | str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers opens, whole or not at all.

    Args:
      path: the folder, which must not exist.
      read_parameter: name -> value; called once for each.
      shapes: the parameters' shapes by name, scanned or unrolled.
      vocabulary: what the model reads, to be written as tokenizer files; None: none are.
      template: of conversations that it was trained on, to be written with these.
      dtype: of the weights: float32, bfloat16 or float16.

    Raises:
      UserError: the folder exists; no model there can hold this one; a vocabulary that has more
        ids than the embedding has rows.
    """
    config, read_parameter, shapes = fusing.plain_model(config, read_parameter, shapes)
    family = family_for(config)
    dtype = np.dtype(dtype)
    if row := tokenizer_files.swapped_row(vocabulary):
        read_parameter = swapped_rows.swapped_back(read_parameter, config, row)
    if vocabulary is not None:
        tokenizer_files.check_size(vocabulary.size, config.vocab_size, "the vocabulary")
    rules = family.rules(config) + family.repeated(config)
    specs = {n: (s, dtype) for n, s in their_shapes(rules, shapes, config).items()}
    stacked = any("/layers/" in name for name in shapes)
    with new_folder(path) as folder:
        writer = Writer(folder, specs, shard_bytes)
        for name, value in their_tensors(rules, read_parameter, stacked, config):
            with np.errstate(over="ignore"):
                value = np.ascontiguousarray(value, dtype)
            writer.write(name, require_finite(value, f"{name} as {dtype.name}"))
            del value  # a view of a parameter, as there
        writer.close()
        special = tokenizer_files.write(vocabulary, folder, config, template) if vocabulary else {}
        values = family.write(config) | special | {"torch_dtype": dtype.name}
        write_json(folder / "config.json", values)
        if vocabulary is None and config.architecture != "encoder_only":
            started = {"decoder_start_token_id": 0, "eos_token_id": 1} if config.has_encoder else {}
            write_json(folder / "generation_config.json", {"pad_token_id": 0, **started})


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to write into, which gets its name when it is whole.

    Raises UserError if there is something of this name already.
    """
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if os.path.lexists(path):
        raise UserError(f"{path} exists already: give another name.")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.mkdir(parents=True)
    try:
        yield beside
        if os.path.lexists(path):  # made by somebody else in the meantime
            raise UserError(f"{path} exists already: give another name.")
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def shapes_of(config: TransformerConfig) -> dict[str, Shape]:
    """The shapes of a model's parameters by name."""
    return {name: leaf.shape for name, leaf in by_name(Model(config).abstract_params()).items()}
