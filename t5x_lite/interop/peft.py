"""LoRAs of a run as an adapter that Hugging Face's PEFT loads beside the model they are of.

https://huggingface.co/docs/peft/developer_guides/checkpoint: adapter_config.json, and in
adapter_model.safetensors two tensors for each matrix, lora_A [rank, in] and lora_B [out, rank].
"""

import dataclasses
import os
import re
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.interop import fusing, huggingface, runs
from t5x_lite.interop.safetensors_files import SINGLE, Writer
from t5x_lite.interop.tensors import Tensor
from t5x_lite.models import adapters
from t5x_lite.models.config import TransformerConfig
from t5x_lite.training import checkpoint_layout as layout

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LAYER = re.compile(r"\blayers_(\d+)/")


class Pair(NamedTuple):
    """Of one matrix [in, out] of ours: A [in, rank], B [rank, out], and whose they are."""

    a: np.ndarray
    b: np.ndarray
    lora: adapters.LoRA


def write(path: str | os.PathLike, source: str | os.PathLike, dtype: Any = "float32") -> None:
    """Writes the adapter of a run or a checkpoint of this package as a new folder.

    Raises:
      UserError: the folder exists; the run has no LoRA, or more was trained than that; a matrix
        that isn't a matrix of its own in Hugging Face's model.
    """
    checkpoint = runs.Checkpoint(layout.find_checkpoint(layout.absolute(os.fspath(source))))
    config, loras = checkpoint.recorded, checkpoint.lora()
    if not loras:
        raise UserError(f"{source} has no LoRA: its model's adapters are {config.adapters!r}.")
    _require_nothing_else(checkpoint, config)
    found = _by_module(config, loras)
    dtype = np.dtype(dtype)
    tensors = {}
    for module, pair in found.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = pair.a.T
        tensors[f"base_model.model.{module}.lora_B.weight"] = pair.b.T
    with huggingface.new_folder(path) as folder:
        writer = Writer(folder, {n: (t.shape, dtype) for n, t in tensors.items()}, 2**62)
        for name, value in tensors.items():
            writer.write(name, np.ascontiguousarray(value, dtype))
        writer.close()
        (folder / SINGLE).rename(folder / WEIGHTS)
        huggingface.write_json(folder / CONFIG, _settings(config, found))


def _require_nothing_else(checkpoint: runs.Checkpoint, config: TransformerConfig) -> None:
    text = checkpoint.description.get("run", {}).get("config") or ""
    also = re.search(r"^train\.trainable = (?!None$)(.*)$", text, re.MULTILINE)
    if also or adapters.prompt_length(config):
        what = f"train.trainable = {also[1]}" if also else "a soft prompt"
        raise UserError(
            f"{checkpoint.path} was trained with {what}, which is no part of an adapter of PEFT: "
            f"export the whole model (--format=huggingface)."
        )


def _by_module(config: TransformerConfig, loras: dict) -> dict[str, Pair]:
    """The pairs by the name of their module in Hugging Face's model."""
    stored: dict[str, tuple[Tensor, Tensor, adapters.LoRA]] = {}
    for name, (a, b, _) in loras.items():
        lora = adapters.lora_for(config, name)
        # What is fused here shares its A there.
        for plain, part in fusing.unfuse_tensors({name: b}, config).items():
            stored[plain] = (a, part, lora)
    family, found, left = huggingface.family_for(_plain(config)), {}, set(stored)
    for rule in (r for rules in family.rules(config) for r in rules.for_layers(config)):
        name = rule.ours[0]
        layer = _LAYER.search(name)
        if layer and name not in stored:
            name = _LAYER.sub("layers/", name)
        if name not in stored or len(rule.ours) > 1 or not rule.transpose or rule.split:
            continue
        a, b, lora = stored[name]
        place = int(layer[1]) if layer and name != rule.ours[0] else ...
        found[rule.theirs.removesuffix(".weight")] = Pair(a.all()[place], b.all()[place], lora)
        left.discard(name)
    if left:
        raise UserError(
            f"{sorted(left)[0]} is no matrix of its own in {type(family).__name__}'s model: export "
            f"the whole model (--format=huggingface), or leave it out of LoRA.pattern."
        )
    return found


def _plain(config: TransformerConfig) -> TransformerConfig:
    return dataclasses.replace(config, adapters=(), fused_projections=False)


def _settings(config: TransformerConfig, found: dict[str, Pair]) -> dict[str, Any]:
    first = next(iter(found.values())).lora
    others = {module: pair.lora for module, pair in found.items() if pair.lora != first}
    if any(lora.rank_stabilized != first.rank_stabilized for lora in others.values()):
        raise UserError("an adapter of PEFT is rank-stabilized or isn't: LoRAs here are both.")
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if config.has_encoder else "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "rank_pattern": {module: lora.rank for module, lora in others.items()},
        "alpha_pattern": {module: lora.alpha for module, lora in others.items()},
        "use_rslora": first.rank_stabilized,
        "target_modules": list(found),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
