"""Runs with LoRA exported: merged, and as adapters of PEFT."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from t5x_lite.errors import UserError
from t5x_lite.interop import pretrained, runs
from t5x_lite.interop.tensors import Tensor
from t5x_lite.models import adapters
from t5x_lite.models.adapters import LoRA, SoftPrompt
from t5x_lite.models.model import Model
from t5x_lite.training import checkpoint_layout as layout

SMALL = dict(vocab_size=64, mlp_activations=("gelu", "linear"))
FUSED_T5 = dataclasses.replace(tiny.T5, **SMALL, fused_projections=True)
LM = dataclasses.replace(tiny.LM, **SMALL, scale_tied_logits=False)
LORAS = (
    LoRA(r"attention/(query|value|qkv|kv)/", rank=4),
    LoRA(r"mlp/w|logits", rank=2, alpha=6.0),
)


def written(folder, config, note=None, only=""):
    """A checkpoint of this model, drawn, of the parameters that match; and the parameters."""
    rng = np.random.default_rng(0)
    shapes = layout.by_name(Model(config).abstract_params())
    values = {n: rng.normal(0, 0.2, x.shape).astype(np.float32) for n, x in shapes.items()}
    tensors = {n: Tensor(v.shape, v.dtype, lambda i, v=v: v[i]) 
               for n, v in values.items() if re.search(only, n)}  # fmt: skip
    runs.write(folder, tensors, config, note or {})
    return layout.nested(values)


def exported(folder, name, kind, config=None):
    pretrained.convert(pretrained.open_source(folder, config), folder.parent / name, kind)
    return folder.parent / name


@pytest.mark.parametrize("config", [FUSED_T5, LM], ids=["t5", "llama"])
def test_the_merged_export_is_the_base_and_the_adapter(config, tmp_path):
    with_lora = dataclasses.replace(config, adapters=LORAS)
    params = written(tmp_path / "run", with_lora)
    merged = load_file(exported(tmp_path / "run", "merged", "huggingface") / "model.safetensors")
    # The base alone, by what exports models without adapters.
    base_params = adapters.base_of(params)
    pretrained.save_pretrained(tmp_path / "base", Model(config), base_params)
    base = load_file(tmp_path / "base" / "model.safetensors")
    folder = exported(tmp_path / "run", "peft", "peft")
    adapter = load_file(folder / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"]  # fmt: skip
    assert settings["peft_type"] == "LORA" and not settings["use_rslora"]
    assert len(adapter) == 2 * len(settings["target_modules"]) > 0
    changed = set()
    for module in settings["target_modules"]:
        a, b = (adapter[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        rank = settings["rank_pattern"].get(module, settings["r"])
        alpha = settings["alpha_pattern"].get(module, settings["lora_alpha"])
        weight = base[f"{module}.weight"]
        assert a.shape == (rank, weight.shape[1]) and b.shape == (weight.shape[0], rank)
        np.testing.assert_allclose(
            merged[f"{module}.weight"], weight + alpha / rank * b @ a, atol=1e-5
        )
        changed.add(f"{module}.weight")
    for name in base.keys() - changed:
        np.testing.assert_array_equal(merged[name], base[name])
    names = {module.split(".")[-1] for module in settings["target_modules"]}
    if config.architecture == "decoder_only":
        assert names == {"q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
        assert settings["task_type"] == "CAUSAL_LM"
    else:
        assert "encoder.block.1.layer.0.SelfAttention.q" in settings["target_modules"]
        assert "decoder.block.0.layer.1.EncDecAttention.v" in settings["target_modules"]
        assert names == {"q", "k", "v", "wi_0", "wi_1", "wo", "lm_head"}  # fused: k, too
        assert settings["task_type"] == "SEQ_2_SEQ_LM"


def test_a_run_is_read_as_the_model_without_its_adapters(tmp_path):
    """Also as a run's folder of this package, and by from_pretrained."""
    config = dataclasses.replace(LM, adapters=LORAS)
    params = written(tmp_path / "run", config)
    model, found, _ = pretrained.from_pretrained(tmp_path / "run")
    assert model.config == LM
    wanted = layout.by_name(adapters.merged(config, params))
    for name, value in layout.by_name(found).items():
        np.testing.assert_allclose(value, wanted[name], atol=1e-6)
    again = exported(tmp_path / "run", "plain", "t5x_lite")
    assert runs.Checkpoint(layout.find_checkpoint(layout.absolute(again))).recorded == LM
    assert "adapters" not in (again / "model.gin").read_text()
    pretrained.save_pretrained(tmp_path / "hf", Model(config), params)
    kernel = load_file(tmp_path / "hf" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_allclose(kernel.T, wanted["decoder/layers/mlp/wi_1/kernel"][1], atol=1e-6)


def test_what_an_adapter_cannot_hold_is_said(tmp_path):
    def refusal(name, kind="peft", note=None, **changes):
        few = "wi_0|query|token_embedder|prompt" if kind == "peft" else ""
        written(tmp_path / name, dataclasses.replace(LM, **changes), note, few)
        with pytest.raises(UserError) as error:
            exported(tmp_path / name, f"{name}_out", kind)
        assert not (tmp_path / f"{name}_out").exists()
        return str(error.value)

    assert "has no LoRA" in refusal("none")
    assert "is no matrix of its own" in refusal("table", adapters=(LoRA("token_embedder"),))
    prompt = (*LORAS[:1], SoftPrompt(2))
    assert "a soft prompt" in refusal("prompt", adapters=prompt)
    assert "no adapters = (SoftPrompt" in refusal("hf", "huggingface", adapters=prompt)
    more = {"config": "train.seed = 0\ntrain.trainable = 'norm'\n"}
    assert "train.trainable = 'norm'" in refusal("more", note=more, adapters=LORAS)
    mixed = (LORAS[0], LoRA("mlp/w", rank_stabilized=True))
    assert "rank-stabilized" in refusal("mixed", adapters=mixed)
