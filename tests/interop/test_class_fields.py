"""Fields of a config.json mean what the class of its model_type makes of them, or are refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.interop import huggingface
from t5x_lite.interop.class_fields import CLASS_FIELDS, NEEDED, SPELLINGS
from t5x_lite.interop.fields import HARMLESS

GOLDEN = Path(__file__).parent.parent / "golden" / "huggingface"


def edited(tmp_path, name, **changes) -> Path:
    """A copy of a golden folder with other fields; ``...`` takes one out."""
    folder = tmp_path / name
    if not folder.exists():
        shutil.copytree(GOLDEN / name, folder)
    values = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    kept = {k: v for k, v in values.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        huggingface.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_model_type_has_its_table():
    assert set(CLASS_FIELDS) == set(huggingface._BY_TYPE)
    for kind, table in CLASS_FIELDS.items():
        assert set(SPELLINGS.get(kind, {}).values()) <= set(table)
        assert not set(SPELLINGS.get(kind, {})) & set(table)
        assert [name for name, value in table.items() if value is NEEDED]
        used = {"architectures", "id2label", "initializer_range", "is_decoder", "n_positions"}
        assert not (set(table) - used) & HARMLESS


@pytest.mark.parametrize(
    "name, changes, said",
    [
        ("llama", {"use_sliding_window": True}, "use_sliding_window = True isn't supported"),
        ("llama", {"sliding_window": 3}, "a llama doesn't read: sliding_window = 3"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types = ['sliding_attention"),
        ("llama", {"is_causal": False}, "is_causal = False"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("llama", {"hidden_activation": "relu"}, "hidden_activation = 'relu'"),
        ("llama", {"tie_word_embeddings": "false"}, "is 'false', expected true or false"),
        ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings is null"),
        ("llama", {"hidden_act": "relu2"}, "hidden_act = 'relu2' isn't known"),
        ("llama", {"hidden_act": "mish"}, "hidden_act = 'mish' isn't known"),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "are one thing in two spellings",
        ),
        (
            "llama",
            {"rope_parameters": {"type": "linear", "rope_type": "default", "factor": 2.0}},
            "has type 'linear' and rope_type 'default'",
        ),
        ("llama", {"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta is '1e4', expected a n"),
        ("mistral_window", {"use_sliding_window": False}, "a mistral doesn't read it, and has a"),
        ("mistral_window", {"sliding_window": 0}, "sliding_window is 0, expected a number from 1"),
        ("mistral_window", {"attention_bias": True}, "attention_bias = True"),
        ("mixtral", {"layer_types": ["full_attention"] * 2}, "layer_types = ['full_attention'"),
        ("mixtral", {"num_experts": 4}, "num_experts = 4 and num_local_experts = 5 are one field"),
        ("qwen3_moe", {"layer_types": ["sliding_attention"] * 2}, "a qwen3_moe doesn't read it"),
        ("gemma", {"hidden_activation": "relu"}, "a gemma reads hidden_act, which is another"),
        ("gemma", {"sliding_window": 3}, "sliding_window = 3"),
        ("gemma2", {"sliding_window_pattern": 3, "layer_types": ...}, "it is 2 here"),
        ("gemma2", {"hidden_act": "relu"}, "a gemma2 reads hidden_activation, which is another"),
        ("gemma2", {"sliding_window": 0}, "sliding_window is 0, expected 1 or more"),
        (
            "gemma3",
            {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2.0}},
            "says type, which a Gemma 3 of transformers 5 passes over",
        ),
        ("gpt2", {"hidden_size": 24}, "hidden_size = 24 and n_embd = 20 are one field"),
        ("gpt2", {"position_embedding_type": "rope"}, "position_embedding_type = 'rope'"),
        ("t5_1_1", {"dense_act_fn": "quick_gelu"}, "dense_act_fn = 'quick_gelu' isn't known"),
        ("t5_1_1", {"is_gated_act": None}, "is_gated_act is null"),
        ("t5_1_1", {"relative_attention_num_buckets": 2}, "relative_buckets = 2 with relative_max"),
        ("t5_1_1", {"num_hidden_layers": 5}, "num_hidden_layers = 5"),
        ("t5_1_1", {"scale_decoder_outputs": True}, "scales the decoder's output and has a head"),
    ],
)
def test_what_another_class_or_version_would_read_is_refused_by_name(tmp_path, name, changes, said):
    assert said in refusal(edited(tmp_path, name, **changes))


@pytest.mark.parametrize(
    "name, changes",
    [
        ("llama", {"use_sliding_window": False, "max_window_layers": 28, "sliding_window": None}),
        ("llama", {"layer_types": ["full_attention"] * 2, "attn_pdrop": 0.1}),
        ("mistral", {"use_sliding_window": False, "attention_bias": False}),
        ("mistral_window", {"use_sliding_window": True}),
        ("qwen2", {"use_mrope": False}),
        ("qwen3_moe", {"max_window_layers": 48, "num_local_experts": ..., "num_experts": 6}),
        ("gemma", {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu"}),
        ("gemma2", {"hidden_act": "gelu_new", "sliding_window_pattern": 3}),
        ("gpt2", {"n_embd": ..., "hidden_size": 20, "n_ctx": 7}),
        ("t5_1_1", {"hidden_size": 20}),
    ],
)
def test_what_says_nothing_else_changes_nothing(tmp_path, name, changes):
    wanted = huggingface.read(GOLDEN / name).config
    assert huggingface.read(edited(tmp_path, name, **changes)).config == wanted


@pytest.mark.parametrize(
    "name, changes, field, value",
    [
        ("t5_1_1", {"dense_act_fn": "gelu"}, "mlp_activations", ("gelu_exact", "linear")),
        ("t5_1_1", {"dense_act_fn": "relu"}, "mlp_activations", ("relu", "linear")),
        ("t5_1_1", {"dense_act_fn": ...}, "mlp_activations", ("gelu", "linear")),
        ("t5_1_1", {"feed_forward_proj": "relu"}, "mlp_activations", ("gelu", "linear")),
        ("mt5", {"feed_forward_proj": ..., "dense_act_fn": ..., "is_gated_act": ...},
         "mlp_activations", ("gelu", "linear")),
        ("llama", {"hidden_act": "gelu_python"}, "mlp_activations", ("gelu_exact", "linear")),
        ("llama", {"hidden_act": "gelu_fast"}, "mlp_activations", ("gelu", "linear")),
        ("llama", {"hidden_act": "linear"}, "mlp_activations", ("linear", "linear")),
        ("gemma", {"hidden_act": "gelu"}, "mlp_activations", ("gelu", "linear")),
        ("gemma2", {"hidden_activation": "gelu"}, "mlp_activations", ("gelu_exact", "linear")),
        ("mixtral", {"rms_norm_eps": ...}, "norm_epsilon", 1e-5),
        ("llama", {"rms_norm_eps": ...}, "norm_epsilon", 1e-6),
        ("mixtral", {"rope_parameters": ...}, "rope_theta", 1e6),
        ("mixtral", {"sliding_window": ...}, "attention_window", None),
        ("mistral", {"sliding_window": ...}, "attention_window", 4096),
        ("gemma2", {"layer_types": ...}, "full_attention_every", 2),
        ("gemma2", {"attn_logit_softcapping": ...}, "attention_soft_cap", 50.0),
        ("gemma2", {"attn_logit_softcapping": None}, "attention_soft_cap", None),
        ("gemma3", {"layer_types": ..., "_sliding_window_pattern": ...}, "full_attention_every", 3),
        ("gemma3", {"sliding_window_pattern": 4}, "full_attention_every", 3),
    ],
)  # fmt: skip
def test_a_field_decides_as_its_class_says(tmp_path, name, changes, field, value):
    assert getattr(huggingface.read(edited(tmp_path, name, **changes)).config, field) == value


EDITS = json.loads((GOLDEN.parent / "config_edits.json").read_text())


@pytest.mark.parametrize("name", sorted(EDITS))
def test_edits_compute_what_transformers_computes_or_are_refused(tmp_path, name):
    """Edits that change the logits of transformers: the same here, or a refusal."""
    rng = np.random.default_rng(3)
    x, y = (jnp.asarray(rng.integers(8, 61, (2, size)), jnp.int32) for size in (15, 11))
    for drop, fields, outcome, wanted in EDITS[name]:
        folder = edited(tmp_path, name, **dict.fromkeys(drop, ...) | fields)
        try:
            model, params, _ = tl.from_pretrained(folder, dtype="float32", scan_layers=False)
        except UserError:
            assert outcome == "refused", (drop, fields)
            continue
        batch = {"encoder_input_tokens": x, "decoder_input_tokens": y}
        if not model.config.has_encoder:
            batch = {"decoder_input_tokens": x}
        batch["decoder_target_tokens"] = jnp.ones_like(batch["decoder_input_tokens"])
        with jax.disable_jit():
            found = np.asarray(model.apply(params, batch)[0])[:, -1, :8].ravel()
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


def test_a_gemma_without_windows_is_written_with_a_number_for_them(tmp_path):
    """transformers asks for it before it looks whether a layer has one."""
    folder = edited(tmp_path, "gemma2", layer_types=["full_attention"] * 3)
    model, params, _ = tl.from_pretrained(folder)
    assert model.config.attention_window is None
    tl.save_pretrained(tmp_path / "out", model, params)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["sliding_window"] == model.config.max_positions
    assert huggingface.read(tmp_path / "out").config == huggingface.read(folder).config


def test_gemma_3_takes_no_pattern_from_its_private_field(tmp_path):
    changes = {"layer_types": ..., "sliding_window_pattern": ..., "_sliding_window_pattern": 3}
    said = refusal(edited(tmp_path, "gemma3", **changes))
    assert "_sliding_window_pattern = 3 isn't supported: it is 6 here" in said


@pytest.mark.parametrize("name, scaled", [("t5_1_0", True), ("mt5", False)])
def test_tied_t5_is_read_with_and_without_a_copy_of_its_table(tmp_path, name, scaled):
    """transformers 5 leaves the copy out, and says scale_decoder_outputs, which mT5 ignores."""
    folder = edited(tmp_path, name, tie_word_embeddings=True, scale_decoder_outputs=True)
    weights = load_file(folder / "model.safetensors")
    results = []
    for head in (None, weights["shared.weight"]):
        weights.pop("lm_head.weight", None)
        if head is not None:
            weights["lm_head.weight"] = head.copy()
        save_file(weights, folder / "model.safetensors")
        model, params, _ = tl.from_pretrained(folder, dtype="float32")
        assert model.config.tied_embeddings and model.config.scale_tied_logits == scaled
        results.append(params)
        # And back: who doesn't scale gets the copy, which version 4 asks for.
        back = tmp_path / f"back_{head is None}"
        tl.save_pretrained(back, model, params)
        assert ("lm_head.weight" in load_file(back / "model.safetensors")) != scaled
        again, params, _ = tl.from_pretrained(back, dtype="float32")
        assert again.config == model.config
        jax.tree.map(np.testing.assert_array_equal, params, results[0])


@pytest.mark.parametrize(
    "changes, kind",
    [
        ({}, "mistral"),
        ({"attention_window": 4}, "mistral"),
        ({"use_bias": "qkv"}, "qwen2"),
        ({"qk_norm": True}, "qwen3"),
        ({"num_experts": 4}, "mixtral"),
    ],
)
def test_a_width_that_is_no_multiple_of_its_heads_is_no_llama(tmp_path, changes, kind):
    """LlamaConfig refuses it; the classes that are written here don't."""
    config = tl.TransformerConfig(
        architecture="decoder_only", vocab_size=32, embed_dim=20, num_heads=3, head_dim=8,
        mlp_dim=8, num_decoder_layers=1, positions="rope", mlp_activations=("silu", "linear"),
        scale_attention=True, **changes,
    )  # fmt: skip
    model = tl.Model(config)
    tl.save_pretrained(tmp_path / "out", model, model.init(jax.random.key(0)))
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["model_type"], written["head_dim"]) == (kind, 8)
    again = huggingface.read(tmp_path / "out").config
    assert dataclasses.replace(
        again, init_std=None, max_positions=2048, load_balance_loss=0.01
    ) == (dataclasses.replace(config, num_kv_heads=3, scale_tied_logits=False))
    biased = tl.Model(dataclasses.replace(config, use_bias=True, qk_norm=False, num_experts=0,
                                          attention_window=None))  # fmt: skip
    with pytest.raises(UserError, match="Llama has no embed_dim = 20"):
        tl.save_pretrained(tmp_path / "no", biased, biased.abstract_params())
    assert not (tmp_path / "no").exists()
