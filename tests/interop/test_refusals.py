"""Folders that can't be read, and models that can't be written: one line that names the thing."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.interop import huggingface, pretrained
from t5x_lite.models.model import Model

GOLDEN = Path(__file__).parent.parent / "golden" / "huggingface"


@pytest.fixture
def copy(tmp_path):
    return lambda name: Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def refusal(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(folder, **changes) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def header(file) -> tuple[dict, bytes]:
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write(file, head: dict, body: bytes) -> None:
    text = json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


# ------------------------------------------------------------------------------------- weights


def test_a_missing_shard(copy):
    folder = copy("t5_1_1")
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing" in refusal(tl.from_pretrained, folder)


def test_a_shard_that_is_another(copy):
    folder = copy("t5_1_1")
    shutil.copyfile(
        folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors"
    )
    assert "fetch it again" in refusal(tl.from_pretrained, folder)


def test_an_index_that_leads_elsewhere(copy):
    folder = copy("t5_1_1")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["shared.weight"] = "../../secret.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "isn't a file beside it" in refusal(tl.from_pretrained, folder)


@pytest.mark.parametrize("size", [2**40, 2**63, 3])
def test_a_lying_header_size(copy, size):
    file = copy("llama") / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(struct.pack("<Q", size) + data[8:])
    assert str(file) in refusal(tl.from_pretrained, file.parent)


def test_a_header_that_lies_about_a_tensor(copy):
    file = copy("llama") / "model.safetensors"
    head, body = header(file)
    head["model.norm.weight"]["shape"] = [2**40]
    write(file, head, body)
    assert "damaged" in refusal(tl.from_pretrained, file.parent)


def test_a_truncated_file(copy):
    file = copy("llama") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "damaged" in refusal(tl.from_pretrained, file.parent)


def test_tensors_of_another_shape_too_many_and_too_few(copy):
    folder = copy("llama")
    file = folder / "model.safetensors"
    edit(folder, intermediate_size=30)
    said = refusal(tl.from_pretrained, folder)
    assert "float32[28,20], the configuration makes it float32[30,20]" in said
    edit(folder, intermediate_size=28)
    head, body = header(file)
    head["extra.weight"] = head.pop("model.norm.weight")
    write(file, head, body)
    said = refusal(tl.from_pretrained, folder)
    assert "missing model.norm.weight; unexpected extra.weight" in said


def test_a_quantized_file(copy):
    file = copy("llama") / "model.safetensors"
    head, body = header(file)
    size = np.prod(head["model.norm.weight"]["shape"])
    head["model.norm.weight"] |= {"dtype": "F8_E4M3", "shape": [int(size) * 4]}
    write(file, head, body)
    assert "is F8_E4M3, expected one of" in refusal(tl.from_pretrained, file.parent)


@pytest.mark.parametrize("tensor", ["lm_head.weight", "model.layers.0.mlp.up_proj.weight"])
def test_integers_are_no_weights(copy, tensor):
    file = copy("llama") / "model.safetensors"
    head, body = header(file)
    head[tensor]["dtype"] = "I32"
    write(file, head, body)
    said = refusal(tl.from_pretrained, file.parent)
    assert f"{tensor} in {file.parent} is int32[" in said and "expected floating point" in said


def test_copies_are_taken_only_if_they_are_copies(copy):
    folder = copy("t5_1_0")
    file = folder / "model.safetensors"
    head, body = header(file)
    table = head["shared.weight"]
    start, end = table["data_offsets"]
    same = {"dtype": "F32", "shape": table["shape"]}
    end_of_file = len(body)
    offsets = [end_of_file, end_of_file + end - start]
    head["encoder.embed_tokens.weight"] = same | {"data_offsets": offsets}
    write(file, head, body + body[start:end])
    tl.from_pretrained(folder)
    write(file, head, body + bytes(end - start))
    assert "differ, though config.json ties them" in refusal(tl.from_pretrained, folder)


def test_neither_weights_nor_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "holds neither model.safetensors nor" in refusal(tl.from_pretrained, tmp_path)
    assert "doesn't exist" in refusal(tl.from_pretrained, tmp_path / "none")
    (tmp_path / "config.json").unlink()
    assert "neither a finished checkpoint" in refusal(tl.from_pretrained, tmp_path)


# --------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("llama", {"hidden_size": ...}, "has no 'hidden_size'"),
        ("t5_1_1", {"d_kv": ...}, "has no 'd_kv'"),
        ("gpt2", {"n_embd": "20"}, "n_embd is '20', expected a number"),
        ("llama", {"hidden_size": -4}, "expected a number"),
        ("llama", {"model_type": "lama"}, "Did you mean 'llama'"),
        ("llama", {"model_type": None}, "model_type is None"),
        ("llama", {"model_type": ["llama"]}, "model_type is ['llama'], expected one of"),
        ("gemma3", {"model_type": "gemma3"}, "its text alone is a model of type gemma3_text"),
        ("gemma2", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, "so-manieth"),
        ("gemma2", {"use_bidirectional_attention": True}, "a decoder looks back only"),
        ("gemma2", {"hidden_activation": "quick_gelu"}, "hidden_activation = 'quick_gelu' isn't"),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "transformers leaves it out of Gemma 3"),
        ("gemma3", {"rope_parameters": {"rope_type": "linear"}}, "expected an object with"),
        ("mixtral", {"num_experts_per_tok": 1}, "its probability here, not 1"),
        ("mixtral", {"router_jitter_noise": 0.1}, "there is no such noise"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "all layers have experts, or none has"),
        ("qwen3_moe", {"num_local_experts": 7}, "experts.6"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ("llama", {"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu' isn't known"),
        ("llama", {"attention_bias": True}, "attention_bias = True alone isn't supported"),
        ("qwen3", {"attention_bias": True}, "attention_bias = True alone isn't supported"),
        ("mistral", {"sliding_window": "wide"}, "sliding_window is 'wide', expected a number"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "sliding_window is None, expected"),
        ("qwen3", {"layer_types": ["sliding_attention", "full_attention"]}, "of all layers or"),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 4,
                "max_window_layers": 1,
                "layer_types": None,
            },
            "of all layers or of none",
        ),
        ("qwen3", {"layer_types": ["linear_attention"] * 2}, "linear_attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "all layers are scaled alike"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "type 'yarn'"),
        (
            "llama3",
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "with factor isn't",
        ),
        (
            "llama3",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 1.0,
                    "original_max_position_embeddings": 16,
                }
            },
            "low_freq_factor 4.0 is above high_freq_factor 1.0",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": float("inf")}},
            "factor is inf, expected a number above 0",
        ),
        (
            "t5_1_1",
            {"feed_forward_proj": "gated-tanh", "dense_act_fn": ...},
            "gated-tanh' isn't known",
        ),
        ("t5_1_1", {"dense_act_fn": "tanh"}, "dense_act_fn = 'tanh' isn't known"),
    ],
)
def test_configurations_that_mean_something_else(copy, name, changes, said):
    folder = copy(name)
    edit(folder, **changes)
    assert said in refusal(tl.from_pretrained, folder)


def test_broken_json(copy):
    folder = copy("llama")
    (folder / "config.json").write_text("{")
    assert "is no JSON" in refusal(tl.from_pretrained, folder)
    (folder / "config.json").write_text("[1]")
    assert "holds list, expected a JSON object" in refusal(tl.from_pretrained, folder)


def test_fields_of_other_versions_are_read(copy):
    """transformers 4 wrote rope_theta, 5 rope_parameters; nulls are as good as none."""
    folder = copy("llama")
    edit(folder, rope_parameters=..., rope_theta=5000.0, rope_scaling=None, foo=None)
    assert huggingface.read(folder).config.rope_theta == 5000.0


def test_what_a_file_does_not_say_is_what_its_class_has_as_the_default(copy):
    folder = copy("mistral")
    edit(folder, sliding_window=...)
    assert huggingface.read(folder).config.attention_window == 4096
    folder = copy("qwen3")
    edit(folder, layer_types=None, use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert huggingface.read(folder).config.attention_window == 4


# ------------------------------------------------------------------------------------- writing

LM = tl.TransformerConfig(
    architecture="decoder_only", vocab_size=32, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=8,
    num_decoder_layers=1, positions="rope", mlp_activations=("silu", "linear"),
    scale_attention=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"positions": "relative"}, "decoder_only with relative positions"),
        ({"norm": "layer"}, "Llama has no norm = 'layer'"),
        ({"tied_embeddings": True}, "Llama has no scale_tied_logits = True"),
        ({"mlp_activations": ("silu",)}, "Llama has no mlp_activations = ('silu',)"),
        ({"logits_soft_cap": 30.0}, "Llama has no logits_soft_cap = 30.0"),
        ({"qk_norm": True, "use_bias": True}, "Llama has no use_bias = True"),
        ({"attention_window": 4, "use_bias": True}, "Llama has no use_bias = True"),
        ({"norm_placement": "both"}, "Gemma has no norm_scale_from_one = False"),
        ({"num_experts": 4, "experts_per_token": 1}, "Llama has no experts_per_token = 1"),
        ({"num_experts": 4, "moe_every": 2, "scan_layers": False}, "Llama has no moe_every = 2"),
    ],
)
def test_models_that_hugging_face_has_no_class_for(tmp_path, changes, said):
    model = Model(dataclasses.replace(LM, **changes))
    assert said in refusal(tl.save_pretrained, tmp_path / "out", model, model.abstract_params())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
    import jax

    model = Model(LM)
    params = model.init(jax.random.key(0))
    (tmp_path / "out").mkdir()
    assert "exists already" in refusal(tl.save_pretrained, tmp_path / "out", model, params)
    monkeypatch.setattr(huggingface, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tl.save_pretrained(tmp_path / "new", model, params)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_vocabulary_larger_than_the_embedding(tmp_path):
    model = Model(LM)
    said = refusal(
        tl.save_pretrained, tmp_path / "out", model, model.abstract_params(), tl.ByteVocabulary()
    )
    assert "the vocabulary has 384 ids and the embedding only 32 rows" in said


def test_settings_that_would_change_the_model(copy):
    with pytest.raises(UserError, match="norm_epsilon is what the weights"):
        tl.from_pretrained(copy("llama"), norm_epsilon=1e-3)


def test_a_run_with_other_settings(copy):
    folder = copy("llama")
    model = huggingface.read(folder).config
    other = dataclasses.replace(model, rope_theta=7.0, scale_attention=False)
    import jax

    abstract = jax.tree.map(lambda x: x, Model(other).abstract_params())
    with pytest.raises(UserError, match="scale_attention is False here and True there; rope_theta"):
        pretrained.restore_params(folder, abstract, model=other)
