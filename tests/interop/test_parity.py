"""Models of Hugging Face read here compute what they computed there, and go back bit for bit."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import model_of
from safetensors.numpy import load_file

import t5x_lite as tl
from t5x_lite.interop import huggingface
from t5x_lite.interop.weight_maps import their_tensors
from t5x_lite.training import checkpoint_layout as layout

GOLDEN = Path(__file__).parent.parent / "golden" / "huggingface"
NAMES = sorted(p.name for p in GOLDEN.iterdir() if (p / "config.json").exists())
# Gradients and decoding of these; the others differ from one of them in a setting or two.
FULLY = ["t5_1_0", "t5_1_1", "umt5", "llama_biases", "llama3", "mistral_window", "qwen2", "qwen3"]
FULLY += ["gpt2", "gemma2", "gemma3", "mixtral", "qwen3_moe"]
SLOWLY = {"gradients": ("umt5", "qwen3_moe"), "decoding": ("gemma2", "qwen3_moe")}


def fully(what: str) -> list:
    """Those of which others have most that is to be compiled are marked slow."""
    slow = pytest.mark.slow
    return [pytest.param(n, marks=slow if n in SLOWLY[what] else ()) for n in FULLY]


def features(golden) -> dict:
    names = [n for n in golden if n.startswith(("encoder_", "decoder_"))]
    return {name: jnp.asarray(golden[name], jnp.int32) for name in names}


def their_weights(folder) -> dict[str, np.ndarray]:
    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def assert_close(logits, golden) -> None:
    real = golden["decoder_target_tokens"] > 0
    scale = np.abs(golden["logits"][real]).max()
    assert np.abs(logits - golden["logits"])[real].max() < 2e-5 * scale


@pytest.mark.parametrize("name", [n for n in NAMES if n not in FULLY or n in SLOWLY["gradients"]])
def test_logits_are_theirs(name):
    model, params, golden = model_of("huggingface", name)
    assert_close(jax.jit(model.apply)(params, features(golden))[0], golden)


@pytest.mark.parametrize("name", fully("gradients"))
def test_logits_loss_and_gradients_are_theirs(name):
    model, params, golden = model_of("huggingface", name)
    batch = features(golden)
    real = golden["decoder_target_tokens"] > 0

    def loss(params):
        logits, _ = model.apply(params, batch)
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch["decoder_target_tokens"][..., None], -1
        )[..., 0]
        return -jnp.where(real, chosen, 0).sum() / real.sum(), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert_close(logits, golden)
    np.testing.assert_allclose(value, golden["loss"], rtol=2e-6)

    named = {k: np.asarray(v) for k, v in layout.by_name(grads).items()}
    rules = huggingface.family_for(model.config).rules(model.config)
    found = dict(their_tensors(rules, named.__getitem__, True, model.config))
    keys = [key for key in golden if key.startswith("grads/")]
    assert len(keys) >= 6
    for key in keys:
        got, wanted = found[key.removeprefix("grads/")], golden[key]
        assert np.abs(got - wanted).max() < 5e-5 * np.abs(wanted).max(), key


@pytest.mark.parametrize("name", fully("decoding"))
def test_greedy_continuations_are_theirs(name):
    model, params, golden = model_of("huggingface", name)
    prompts = golden.get("prompts")
    batch = {}
    if prompts is None:
        batch = {"encoder_input_tokens": jnp.asarray(golden["encoder_input_tokens"], jnp.int32)}
    found = tl.generate(model, params, batch, prompts=prompts, max_new_tokens=64, eos_id=-1)
    np.testing.assert_array_equal(found.tokens[:, 0], golden["greedy"])


@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_is_bit_for_bit(name, tmp_path):
    model, params, _ = model_of("huggingface", name)
    tl.save_pretrained(tmp_path / "out", model, params)
    ours, theirs = their_weights(tmp_path / "out"), their_weights(GOLDEN / name)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        assert ours[key].tobytes() == value.tobytes(), key
    again = huggingface.read(tmp_path / "out").config
    expected = model.config
    if not expected.has_encoder:
        assert dataclasses.replace(again, init_std=expected.init_std) == dataclasses.replace(
            expected, dtype="auto"
        )
    else:
        assert again == dataclasses.replace(expected, dtype="auto")


def test_unrolled_layers_read_the_same_weights():
    model, params, golden = model_of("huggingface", "t5_1_1")
    unrolled, layers, _ = tl.from_pretrained(GOLDEN / "t5_1_1", scan_layers=False, dtype="float32")
    stacked = layout.by_name(params)
    for name, value in layout.by_name(layers).items():
        if "layers_" in name:
            i = int(name.split("layers_")[1].split("/")[0])
            np.testing.assert_array_equal(value, stacked[name.replace(f"layers_{i}", "layers")][i])
        else:
            np.testing.assert_array_equal(value, stacked[name])


def test_layers_that_differ_are_the_same_unrolled_and_with_drawn_masks():
    golden = model_of("huggingface", "gemma3")[2]
    settings = dict(scan_layers=False, attention="xla", dtype="float32")
    model, params, _ = tl.from_pretrained(GOLDEN / "gemma3", **settings)
    assert [model.config.has_window(i) for i in range(4)] == [True, True, False, True]
    assert_close(jax.jit(model.apply)(params, features(golden))[0], golden)


def test_each_device_reads_its_own_part():
    mesh = tl.make_mesh(tl.MeshConfig(fsdp=2, tensor=2, data=2))
    from t5x_lite.parallel.rules import logical_rules

    _, whole, _ = model_of("huggingface", "gpt2")
    # 4 heads over tensor=2; the vocabulary of 61 isn't split
    rules = logical_rules() | {"vocab": None}
    _, parts, _ = tl.from_pretrained(GOLDEN / "gpt2", mesh=mesh, rules=rules, dtype="float32")
    kernel = parts["decoder"]["layers"]["self_attention"]["query"]["kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) > 1
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_half_precision_files(tmp_path):
    model, params, _ = model_of("huggingface", "llama")
    tl.save_pretrained(tmp_path / "half", model, params, dtype="bfloat16")
    _, again, _ = tl.from_pretrained(tmp_path / "half")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, again, rounded)
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
