"""BERT and XLNet of Hugging Face compute here what they computed there, and go back bit for bit."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import model_of
from safetensors.numpy import load_file, save_file

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.interop import huggingface, pretrained
from t5x_lite.interop.weight_maps import their_tensors
from t5x_lite.models.heads import LOGITS
from t5x_lite.training import checkpoint_layout as layout
from t5x_lite.training.head_losses import HeadLoss, head_of

GOLDEN = Path(__file__).parent.parent / "golden" / "encoders"
NAMES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir())
COMPARED = ("logits", "pair_logits", "pooled", "encoded", *LOGITS.values())


def features(golden) -> dict:
    names = [name for name in golden if name.startswith("encoder_")]
    return {name: jnp.asarray(golden[name], jnp.int32) for name in names}


def outputs(model, params, batch) -> dict:
    found, _ = model.encoded(params, batch)
    if {"masked_lm", "lm"} & set(model.config.encoder_heads):
        head = model.head(params)
        found["logits"] = found["hidden"] @ head.kernel.T / head.scale + head.bias
    return found


def losses(found, batch) -> list:
    """As they took them: of the tokens predicted, and of the pairs with a label; or of a head."""
    if head_of(batch):
        normalizer, batch = HeadLoss().prepare(batch)
        each, _ = HeadLoss().losses(found, batch, num_labels=0)
        return [jnp.sum(each * batch["loss_weights"]) / normalizer]
    if "logits" not in found:
        pooled = found["pooled"][jnp.array([0, 1, 3])]
        return [jnp.square(found["encoded"][:, 6]).sum() + pooled.sum()]
    targets = batch["encoder_target_tokens"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(found["logits"]), targets[..., None], -1)
    taken = [-jnp.where(targets > 0, chosen[..., 0], 0).sum() / (targets > 0).sum()]
    if "pair_logits" in found:
        labels = batch["encoder_pair_label"][:, 0]
        chances = jax.nn.log_softmax(found["pair_logits"])
        each = jnp.where(labels == 2, chances[:, 0], chances[:, 1])
        taken.append(-jnp.where(labels > 0, each, 0).sum() / (labels > 0).sum())
    return taken


def assert_close(found, golden, name) -> None:
    """Where there is text; a row padded on the left has padding where others have their first."""
    real = golden["encoder_segment_ids"] > 0
    if name in ("pooled", "pair_logits", "class_logits"):
        real = real[:, 0]
    elif name == "logits" and "encoder_order" in golden:
        real = golden["encoder_order"] > 1  # the others have no turn
    scale = np.abs(golden[name][real]).max()
    assert np.abs(found - golden[name])[real].max() < 2e-5 * scale, name


@pytest.mark.parametrize("name", NAMES)
def test_outputs_losses_and_gradients_are_theirs(name):
    model, params, golden = model_of("encoders", name)
    batch = features(golden)

    def loss(params):
        found = outputs(model, params, batch)
        each = losses(found, batch)
        return sum(each), (found, each)

    # Masked LM alone, and a head, have nothing of their own for gradients.
    if not any(key.startswith("grads/") for key in golden) or name == "bert_masked":
        (_, (found, each)), grads = jax.jit(loss)(params), None
    else:
        (_, (found, each)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    compared = [key for key in COMPARED if key in golden]
    assert compared and len(each) == len(golden["losses"])
    for key in compared:
        assert_close(np.asarray(found[key]), golden, key)
    np.testing.assert_allclose(each, golden["losses"], rtol=1e-5)

    if grads is None:
        return
    named = {k: np.asarray(v) for k, v in layout.by_name(grads).items()}
    rules = huggingface.family_for(model.config).rules(model.config)
    theirs = dict(their_tensors(rules, named.__getitem__, True, model.config))
    keys = [key for key in golden if key.startswith("grads/")]
    assert len(keys) >= 18
    for key in keys:
        got, wanted = theirs[key.removeprefix("grads/")], golden[key]
        # A key's bias shifts all of a query's scores alike: its gradient is 0 but for rounding.
        scale = 1.0 if key.endswith("key.bias") else np.abs(wanted).max()
        assert np.abs(got - wanted).max() < 5e-5 * scale, key


def test_xlnet_reads_a_text_without_an_order():
    """Logits as `Model.apply` gives them, of the content stream."""
    model, params, golden = model_of("encoders", "xlnet")
    batch = features(golden)
    content = {k: v for k, v in batch.items() if k not in ("encoder_order", "encoder_types")}
    logits = np.asarray(jax.jit(model.apply)(params, content)[0])
    real = golden["encoder_segment_ids"] > 0
    worst = np.abs(logits - golden["content_logits"])[real].max()
    assert worst < 2e-5 * np.abs(golden["content_logits"]).max()


@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_is_bit_for_bit(name, tmp_path):
    model, params, _ = model_of("encoders", name)
    tl.save_pretrained(tmp_path / "out", model, params)
    ours = load_file(tmp_path / "out/model.safetensors")
    theirs = load_file(GOLDEN / name / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and ours[key].tobytes() == value.tobytes(), key
    again = huggingface.read(tmp_path / "out").config
    assert again == dataclasses.replace(model.config, dtype="auto")
    assert huggingface.read_config(tmp_path / "out/config.json") == again


def test_a_run_and_back_with_word_pieces(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra hf isn't installed")
    folder = tmp_path / "published"
    shutil.copytree(GOLDEN / "bert", folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc", "##a", "##b"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    source = pretrained.open_source(folder)
    vocabulary = source.vocabulary()
    assert vocabulary.encode("abb C").tolist() == [5, 9, 9, 7]
    pretrained.convert(source, tmp_path / "run", "t5x_lite")
    assert (tmp_path / "run/vocab.txt").exists()
    run = pretrained.open_source(tmp_path / "run")
    assert run.config == source.config and run.vocabulary().fingerprint == vocabulary.fingerprint
    pretrained.convert(run, tmp_path / "back", "huggingface", vocabulary=vocabulary)
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "back", folder))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)
    spec = json.loads((tmp_path / "back/tokenizer.json").read_text())
    assert [next(iter(p.values()))["id"] for p in spec["post_processor"]["single"]] == [
        "[CLS]", "A", "[SEP]",
    ]  # fmt: skip
    settings = json.loads((tmp_path / "back/tokenizer_config.json").read_text())
    assert settings["mask_token"] == "[MASK]" and settings["unk_token"] == "[UNK]"
    assert not (tmp_path / "back/generation_config.json").exists()


def test_files_of_the_first_years(tmp_path):
    """Norms with TensorFlow's names, copies of tied tensors, a buffer."""
    _, params, _ = model_of("encoders", "bert")
    tensors = load_file(GOLDEN / "bert/model.safetensors")
    old = {}
    for name, value in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[name.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    old["bert.embeddings.position_ids"] = np.arange(32)[None]
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].copy()
    old["cls.predictions.decoder.bias"] = old["cls.predictions.bias"].copy()
    save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((GOLDEN / "bert/config.json").read_bytes())
    _, again, _ = tl.from_pretrained(tmp_path, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_an_encoder_starts_from_a_part_of_another_model():
    """BERT's body under other heads, and T5's encoder alone."""
    _, params, _ = model_of("encoders", "bert")
    config = huggingface.read(GOLDEN / "bert").config
    mine = dataclasses.replace(config, encoder_heads=("pooler",), scan_layers=False)
    abstract = tl.Model(mine).abstract_params()
    with pytest.raises(UserError, match="encoder_heads is"):
        pretrained.restore_params(GOLDEN / "bert", abstract, model=mine)
    found = pretrained.restore_params(
        GOLDEN / "bert", abstract, "^(token_embedder|type_embedder|encoder)/", model=mine
    )
    assert "heads" not in found
    kernel = found["encoder"]["layers_1"]["mlp"]["wi"]["kernel"]
    np.testing.assert_array_equal(kernel, params["encoder"]["layers"]["mlp"]["wi"]["kernel"][1])

    folder = GOLDEN.parent / "huggingface/t5_1_1"
    t5 = huggingface.read(folder).config
    mine = dataclasses.replace(t5, architecture="encoder_only", num_decoder_layers=0)
    abstract = tl.Model(mine).abstract_params()
    found = pretrained.restore_params(folder, abstract, ".", model=mine)
    assert jax.tree.structure(found) == jax.tree.structure(abstract)
    wide = tl.Model(dataclasses.replace(mine, mlp_dim=25)).abstract_params()
    with pytest.raises(UserError, match=r"wi_0/kernel is \[2, 20, 25\] here and \[2, 20, 24\]"):
        pretrained.restore_params(folder, wide, "encoder", model=mine)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "positions are a table"),
        ("bert", {"is_decoder": True}, "a BERT only encodes"),
        ("bert", {"embedding_size": 5}, "embedding_size = 5"),
        ("bert", {"num_attention_heads": 3}, "hidden_size = 20 isn't a multiple of 3"),
        ("xlnet", {"attn_type": "uni"}, "attention goes both ways"),
        ("xlnet", {"clamp_len": 400}, "distances aren't clamped"),
        ("xlnet", {"untie_r": False}, "each layer has its own biases"),
    ],
)
def test_what_would_compute_something_else_is_refused(name, change, said, tmp_path):
    values = json.loads((GOLDEN / name / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=said):
        huggingface.read_config(tmp_path / "config.json")
