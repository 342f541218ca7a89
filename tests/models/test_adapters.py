"""LoRA and soft prompts: what a model with them computes, against models without."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.models import adapters
from t5x_lite.models.adapters import LoRA, SoftPrompt
from t5x_lite.models.model import Model
from t5x_lite.parallel.rules import logical_rules
from t5x_lite.training.state import abstract_params

SMALL = dict(vocab_size=64, num_decoder_layers=1, positions="rope", scale_embeddings=True)
T5 = dataclasses.replace(tiny.T5, num_encoder_layers=1, fused_projections=True, **SMALL)
LM = dataclasses.replace(tiny.LM, **SMALL)
# In the layers, merged before them, and of a matrix with two axes behind its first.
LORAS = (LoRA(rank=2), LoRA(r"wi|wo/kernel|token_embedder|logits", rank=3, rank_stabilized=True))
IDS = jnp.arange(3, 15, dtype=jnp.int32).reshape(2, 6)
START = jnp.zeros((2, 1), jnp.int32)
BATCH = {
    "decoder_input_tokens": jnp.concatenate([START, IDS[:, :-1]], axis=1),
    "decoder_target_tokens": IDS,
    "encoder_input_tokens": IDS[::-1] + 20,
}


def adapted(config, *found):
    return Model(dataclasses.replace(config, adapters=found))


@functools.cache
def drawn(model):
    """Parameters, all of them drawn: LoRA's B, too."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, model.abstract_params())


def logits(model, params, batch=BATCH):
    return jax.jit(lambda p, b: model.apply(p, b)[0])(params, batch)


@pytest.mark.parametrize("config", [T5, LM], ids=["t5", "lm"])
def test_a_model_with_adapters_computes_what_one_without_does(config):
    """With changed matrices, and, where the prompt is rows of the table, their ids in front."""
    model = adapted(config, *LORAS, SoftPrompt(length=3))
    params, ids = dict(drawn(model)), jnp.array([30, 31, 32])
    base = adapters.merged(model.config, params)
    params["soft_prompt"] = base["token_embedder"]["embedding"][ids]
    found = logits(model, params)
    side = "encoder" if config.has_encoder else "decoder"
    longer = dict(BATCH)
    for name in (n for n in BATCH if n.startswith(side)):
        longer[name] = jnp.concatenate([jnp.tile(ids, (2, 1)), BATCH[name]], axis=1)
    wanted = logits(Model(config), base, longer)[:, -found.shape[1] :]
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert float(jnp.std(wanted)) > 0.1

    @jax.jit
    def decoded(params):
        """The last token by the model for single steps; keys for it are made elsewhere."""
        cache = model.start_decoding(params, BATCH, IDS.shape[1])
        _, cache = model.decode(params, cache, BATCH["decoder_input_tokens"][:, :5])
        stepper, params, cache = model.for_steps(params, cache)
        assert "lora" not in params
        return stepper.decode(params, cache, BATCH["decoder_input_tokens"][:, 5:])[0]

    np.testing.assert_allclose(found[:, 5:], decoded(params), atol=2e-5)


def test_fresh_adapters_change_no_matrix_and_begin_at_embeddings():
    model = adapted(LM, *LORAS, SoftPrompt(length=5))
    params = jax.jit(model.init)(jax.random.key(1))
    _, merged = model.merged(params)
    jax.tree.map(np.testing.assert_array_equal, adapters.base_of(merged), adapters.base_of(params))
    a = params["lora"]["decoder"]["layers"]["mlp"]["wo"]["kernel"]["lora_a"]
    assert a.shape == (1, 64, 3) and 0.1 < float(jnp.abs(a).max()) <= 1 / 8
    assert len(np.unique(a)) > 150
    table = np.asarray(params["token_embedder"]["embedding"])
    prompt = np.asarray(params["soft_prompt"])
    rows = [int(np.flatnonzero((table == row).all(axis=1))[0]) for row in prompt]
    assert len(set(rows)) == 5 and min(rows) >= 3
    again = adapters.with_fresh_prompt(model.config, params, jax.random.key(2))
    assert not np.array_equal(again["soft_prompt"], prompt)


def test_a_change_is_the_scaled_product_for_every_layer_and_expert():
    config = dataclasses.replace(LM, num_experts=4)
    model = adapted(config, LoRA(r"moe/wi_0", rank=2, alpha=6.0))
    params = drawn(model)
    base = params["decoder"]["layers"]["moe"]["wi_0"]["kernel"]
    lora = params["lora"]["decoder"]["layers"]["moe"]["wi_0"]["kernel"]
    wanted = base + 3.0 * np.einsum("lein,leno->leio", lora["lora_a"], lora["lora_b"])
    merged = model.merged(params)[1]["decoder"]["layers"]["moe"]["wi_0"]["kernel"]
    np.testing.assert_allclose(merged, wanted, rtol=1e-5)


def test_adapters_lie_on_a_mesh_as_what_they_change():
    mesh = tl.make_mesh(tl.MeshConfig(data=1, fsdp=4, tensor=2))
    shapes = abstract_params(adapted(T5, *LORAS, SoftPrompt(4)), mesh, logical_rules())
    layer = shapes["lora"]["encoder"]["layers"]
    spec = lambda leaf: tuple(leaf.sharding.spec)  # noqa: E731
    kernel = shapes["encoder"]["layers"]["attention"]["qkv"]["kernel"]
    assert spec(kernel) == (None, "fsdp", "tensor")
    pair = layer["attention"]["qkv"]["kernel"]
    assert spec(pair["lora_a"]) == (None, "fsdp", None)
    assert spec(pair["lora_b"]) == (None, None, "tensor")
    assert layer["mlp"]["wi_fused"]["kernel"]["lora_b"].shape == (1, 3, 2, 64)
    assert spec(shapes["soft_prompt"]) == (None, "fsdp")


def test_a_configuration_survives_json_and_gin_forms():
    config = adapted(LM, *LORAS, SoftPrompt(length=3)).config
    recorded = dataclasses.asdict(config)
    assert tl.TransformerConfig(**recorded) == config and hash(config)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LoRA("("), "no regular expression"),
        (lambda: LoRA(rank=0), "rank of 1"),
        (lambda: SoftPrompt(0), "1 or more"),
        (lambda: adapted(LM, "lora"), "expected @LoRA"),
        (lambda: adapted(LM, SoftPrompt(1), SoftPrompt(2)), "2 soft prompts"),
        (lambda: adapted(LM, LoRA("nothing")).abstract_params(), "matches no parameter"),
        (lambda: adapted(LM, LoRA("norm/scale")).abstract_params(), "is no matrix"),
        (
            lambda: Model(dataclasses.replace(LM, positions="relative", adapters=(SoftPrompt(1),))),
            "positions = 'relative'",
        ),
        (
            lambda: adapters.prompted(
                adapted(LM, SoftPrompt(1)).config, BATCH | {"decoder_segment_ids": IDS}
            ),
            "PACK = False",
        ),
    ],
)
def test_what_cannot_be_is_said(make, said):
    with pytest.raises(UserError, match=said):
        make()
