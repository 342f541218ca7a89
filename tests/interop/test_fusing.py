"""Fused projections compute what separate ones do, and their parameters go both ways."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.interop import fusing, pretrained, runs
from t5x_lite.interop.tensors import Tensor
from t5x_lite.models.layers import Attention
from t5x_lite.models.model import Model
from t5x_lite.parallel.rules import logical_rules, partition_spec
from t5x_lite.training import adafactor
from t5x_lite.training import checkpoint_layout as layout
from t5x_lite.training.state import abstract_params

# Grouped heads, biases, norms of queries and keys, and a gated MLP.
PLAIN = dataclasses.replace(
    tiny.T5,
    num_kv_heads=2,
    use_bias=True,
    qk_norm=True,
    num_encoder_layers=1,
    num_decoder_layers=1,
    vocab_size=64,
)
FUSED = dataclasses.replace(PLAIN, fused_projections=True)
BATCH = {
    "encoder_input_tokens": jnp.arange(3, 19, dtype=jnp.int32).reshape(2, 8),
    "decoder_input_tokens": jnp.arange(5, 17, dtype=jnp.int32).reshape(2, 6),
    "decoder_target_tokens": jnp.arange(6, 18, dtype=jnp.int32).reshape(2, 6),
}


@functools.cache
def parameters(config=PLAIN):
    """Every one drawn, biases and scales, too."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, Model(config).abstract_params())


def value_and_grads(config, params):
    def loss(params):
        logits, _ = Model(config).apply(params, BATCH)
        return jnp.sum(jnp.sin(logits)), logits  # any function of them

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return logits, grads


def test_values_and_gradients_are_those_of_separate_projections():
    plain = parameters()
    fused = fusing.fuse(plain, PLAIN)
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)  # noqa: E731
    assert shapes(fused) == shapes(Model(FUSED).abstract_params())
    names = layout.by_name(fused)
    assert not [n for n in names if "/key/" in n or "/value/" in n or "wi_0" in n]
    jax.tree.map(np.testing.assert_array_equal, fusing.unfuse(fused, FUSED), plain)

    wanted, wanted_grads = value_and_grads(PLAIN, plain)
    logits, grads = value_and_grads(FUSED, fused)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    wanted_grads = layout.by_name(fusing.fuse(wanted_grads, PLAIN))
    for name, found in layout.by_name(grads).items():
        scale = np.abs(wanted_grads[name]).max()
        np.testing.assert_allclose(found, wanted_grads[name], atol=1e-4 * scale, err_msg=name)


def test_the_encoders_keys_and_values_for_decoding_are_the_same():
    cache = lambda config: jax.jit(Model(config).start_decoding, static_argnums=2)  # noqa: E731
    wanted = cache(PLAIN)(parameters(), BATCH, 4)["layers"]["cross"]
    found = cache(FUSED)(fusing.fuse(parameters(), PLAIN), BATCH, 4)["layers"]["cross"]
    check = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(check, found, wanted)


def test_each_part_is_drawn_as_if_alone():
    config = dataclasses.replace(FUSED, embed_dim=64, mlp_dim=256, vocab_size=16)
    found = jax.jit(Model(config).init)(jax.random.key(0))
    found = layout.by_name(fusing.unfuse(found, config))
    block = "encoder/layers"
    for name, std in {
        "attention/query": 1 / 8 / np.sqrt(8),  # 1 / sqrt(embed_dim), and T5's 1 / sqrt(head_dim)
        "attention/key": 1 / 8,
        "attention/value": 1 / 8,
        "mlp/wi_0": 1 / 8,
        "mlp/wi_1": 1 / 8,
    }.items():
        np.testing.assert_allclose(found[f"{block}/{name}/kernel"].std(), std, rtol=0.06)
    first, second = (found[f"{block}/mlp/wi_{i}/kernel"] for i in (0, 1))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_a_split_mesh_sends_no_more_for_fused_projections():
    """Each device has what belongs to its kv heads, so parts are told apart where they are."""
    mesh = tl.make_mesh(tl.MeshConfig(tensor=2, data=4))
    rules = logical_rules()

    def compiled(config):
        module, x = Attention(config), jnp.zeros((4, 8, config.embed_dim))
        init = lambda: module.init(jax.random.key(0), x, None, mask=None)["params"]  # noqa: E731
        boxes = jax.eval_shape(init)

        def place(box):
            spec = partition_spec(box.names, rules, mesh)
            return jax.ShapeDtypeStruct(
                box.value.shape, box.value.dtype, sharding=NamedSharding(mesh, spec)
            )

        placed = jax.tree.map(place, boxes, is_leaf=lambda leaf: hasattr(leaf, "names"))
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
        with tl.use_mesh(mesh, rules):
            call = lambda p, x: module.apply({"params": p}, x, None, mask=None)[0]  # noqa: E731
            text = jax.jit(call).lower(placed, x).compile().as_text()
        kinds = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
        return {kind: text.count(f" {kind}(") for kind in kinds}

    plain = compiled(dataclasses.replace(PLAIN, qk_norm=False))
    fused = compiled(dataclasses.replace(FUSED, qk_norm=False))
    assert fused == plain
    assert fused["all-reduce"] == 1


def test_adafactor_keeps_a_gate_apart_from_its_neighbour():
    axes = layout.by_name(Model(FUSED).abstract_params()).keys()
    assert "encoder/layers/mlp/wi_fused/kernel" in axes
    assert "gates" in adafactor.STACK_AXES
    names = Model(FUSED).logical_axes()["encoder"]["layers"]["mlp"]["wi_fused"]["kernel"]
    assert names == ("layers", "embed", "gates", "mlp")


# ------------------------------------------------------------------------------------- exchange


def placed(config):
    return abstract_params(Model(config), tl.make_mesh(tl.MeshConfig(data=8)), logical_rules())


GATED = dataclasses.replace(tiny.LM, embed_dim=16, vocab_size=32, scale_tied_logits=False)


@pytest.mark.parametrize("scan", [True, False])
def test_folders_of_hugging_face_are_read_and_written(scan, tmp_path):
    config = dataclasses.replace(GATED, scan_layers=scan)
    fused = dataclasses.replace(config, fused_projections=True)
    params = parameters(config)
    tl.save_pretrained(tmp_path / "plain", Model(config), params)
    tl.save_pretrained(tmp_path / "fused", Model(fused), fusing.fuse(params, config))
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "fused"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value)
    assert (tmp_path / "plain/config.json").read_text() == (
        tmp_path / "fused/config.json"
    ).read_text()
    model, found, _ = tl.from_pretrained(
        tmp_path / "plain", fused_projections=True, scan_layers=scan
    )
    assert model.config.fused_projections
    jax.tree.map(np.testing.assert_array_equal, found, fusing.fuse(params, config))


@pytest.mark.parametrize("stored", [False, True])
def test_a_checkpoint_of_either_form_starts_a_run_of_the_other(stored, tmp_path):
    fused = dataclasses.replace(GATED, fused_projections=True)
    plain_params = parameters(GATED)
    both = {False: (GATED, plain_params), True: (fused, fusing.fuse(plain_params, GATED))}
    config, params = both[stored]
    tensors = {
        name: Tensor(value.shape, value.dtype, value.__getitem__)
        for name, value in layout.by_name(params).items()
    }
    runs.write(tmp_path, tensors, config, {})
    wanted, expected = both[not stored]
    found = pretrained.restore_params(tmp_path, placed(wanted), model=wanted)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    if stored:
        tl.save_pretrained(tmp_path / "plain", Model(GATED), plain_params)
        source = pretrained.open_source(tmp_path)
        pretrained.convert(source, tmp_path / "converted", "huggingface")
        one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "converted"))
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value)
    wider = dataclasses.replace(both[not stored][0], mlp_dim=48)
    with pytest.raises(UserError, match="48"):
        pretrained.restore_params(tmp_path, placed(wider), model=wider)
