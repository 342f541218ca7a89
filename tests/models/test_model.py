"""Properties of the models that no golden file shows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t5x_lite.errors import UserError
from t5x_lite.models.model import Model
from t5x_lite.models.transformer import stack_layers, unstack_layers

LM = dataclasses.replace(tiny.LM, vocab_size=64, embed_dim=16, mlp_dim=32)
T5 = dataclasses.replace(tiny.T5, vocab_size=64, embed_dim=16, mlp_dim=32)
VARIANTS = {
    "t5": T5,
    "t5 with biases and layer norm": dataclasses.replace(T5, use_bias=True, norm="layer"),
    "lm": LM,
    "lm, relative, qk norm, caps": dataclasses.replace(
        LM, positions="relative", qk_norm=True, attention_soft_cap=5.0, logits_soft_cap=3.0
    ),
    "lm, learned positions, unrolled": dataclasses.replace(
        LM, positions="learned", max_positions=32, scan_layers=False
    ),
}
LENGTH = 7


# Compiled: op by op, a model takes longer to compile than to run a hundred times.
@functools.partial(jax.jit, static_argnums=0)
def init(model, key):
    return model.init(key)


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(model, params, batch, rng=None, train=False):
    return model.apply(params, batch, rng=rng, train=train)[0]


decode = jax.jit(lambda model, *args, **kwargs: model.decode(*args, **kwargs), static_argnums=0)


def make_batch(config, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda: jnp.asarray(rng.integers(2, 64, (2, LENGTH)), jnp.int32)  # noqa: E731
    targets = draw()
    inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    batch = {"decoder_target_tokens": targets, "decoder_input_tokens": inputs}
    return batch | ({"encoder_input_tokens": draw()} if config.has_encoder else {})


@pytest.mark.parametrize("name", VARIANTS)
def test_scanned_and_unrolled_are_the_same_function_of_the_same_parameters(name):
    config = VARIANTS[name]
    scanned = Model(dataclasses.replace(config, scan_layers=True))
    unrolled = Model(dataclasses.replace(config, scan_layers=False))
    params, batch = init(scanned, jax.random.key(0)), make_batch(config)
    flat = unstack_layers(params)
    assert jax.tree.structure(flat) == jax.tree.structure(unrolled.abstract_params())
    np.testing.assert_allclose(
        apply(scanned, params, batch), apply(unrolled, flat, batch), atol=2e-5
    )
    jax.tree.map(np.testing.assert_array_equal, stack_layers(flat), params)


@pytest.mark.parametrize("name", VARIANTS)
def test_step_by_step_decoding_equals_teacher_forcing(name):
    """Also with prompts of unequal length, padded on the left."""
    config = VARIANTS[name]
    model, batch = Model(config), make_batch(config)
    params = init(model, jax.random.key(1))
    expected = apply(model, params, batch)
    tokens = jnp.pad(batch["decoder_input_tokens"], ((0, 0), (2, 0)))
    # The second row's padding is as long; that of a real batch differs row by row.
    valid = jnp.arange(LENGTH + 2)[None].repeat(2, 0) >= 2
    start = jax.jit(model.start_decoding, static_argnums=2)
    cache = start(params, batch, LENGTH + 2)
    logits, cache = decode(model, params, cache, tokens[:, :5], valid=valid[:, :5])
    pieces = [logits[:, 2:]]
    for i in range(5, LENGTH + 2):
        logits, cache = decode(model, params, cache, tokens[:, i : i + 1])
        pieces.append(logits)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), expected, atol=2e-5)


def test_causal_model_does_not_see_the_future():
    model, batch = Model(LM), make_batch(LM)
    params = init(model, jax.random.key(0))
    changed = batch | {"decoder_input_tokens": batch["decoder_input_tokens"].at[:, 4].set(3)}
    before = apply(model, params, batch)
    after = apply(model, params, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_prefix_sees_itself_both_ways_and_nothing_later():
    model, batch = Model(LM), make_batch(LM)
    params = init(model, jax.random.key(0))
    prefix = jnp.asarray([[1, 1, 1, 0, 0, 0, 0]] * 2, jnp.int32)
    batch |= {"decoder_causal_attention": prefix}

    def first_logits(place):
        tokens = batch["decoder_input_tokens"].at[:, place].set(3)
        return apply(model, params, batch | {"decoder_input_tokens": tokens})[:, 0]

    before = apply(model, params, batch)[:, 0]
    assert np.abs(before - first_logits(2)).max() > 1e-4
    np.testing.assert_array_equal(before, first_logits(3))


def test_packed_examples_do_not_see_each_other():
    model = Model(LM)
    params = init(model, jax.random.key(0))
    one = make_batch(LM)
    two = {k: jnp.concatenate([v, v[::-1]], axis=1) for k, v in one.items()}
    ones = jnp.ones((2, LENGTH), jnp.int32)
    position = jnp.arange(LENGTH)[None].repeat(2, 0)
    two["decoder_segment_ids"] = jnp.concatenate([ones, 2 * ones], axis=1)
    two["decoder_positions"] = jnp.concatenate([position, position], axis=1)
    alone = apply(model, params, one)
    packed = apply(model, params, two)
    np.testing.assert_allclose(packed[:, :LENGTH], alone, atol=2e-5)
    np.testing.assert_allclose(packed[:, LENGTH:], alone[::-1], atol=2e-5)


def test_grouped_query_attention_is_repeated_heads():
    batch = make_batch(LM)
    grouped = Model(LM)
    params = init(grouped, jax.random.key(0))
    full = Model(dataclasses.replace(LM, num_kv_heads=4))

    def repeat(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/key/" not in name and "/value/" not in name:
            return x
        heads = x.reshape(*x.shape[:-1], 2, 8)
        return jnp.repeat(heads, 2, axis=-2).reshape(*x.shape[:-1], 32)

    repeated = jax.tree_util.tree_map_with_path(repeat, params)
    np.testing.assert_allclose(
        apply(grouped, params, batch), apply(full, repeated, batch), atol=2e-5
    )


@functools.cache
def gradient(remat, scan):
    batch = make_batch(T5)
    model = Model(dataclasses.replace(T5, remat=remat, scan_layers=scan))
    params = init(model, jax.random.key(0))
    loss = lambda p: jnp.square(model.apply(p, batch, train=True)[0]).mean()  # noqa: E731
    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("remat, scan", [("full", True), ("dots_no_batch", True), ("dots", False)])
def test_remat_changes_no_gradient(remat, scan):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        gradient(remat, scan),
        gradient("none", scan),
    )


@pytest.mark.parametrize("attention", ["xla", "blockwise"])
def test_attentions_output_has_one_name_and_is_kept_once(attention):
    """Named by the kernel and again where it is used, it would be kept twice."""
    config = dataclasses.replace(
        LM, attention=attention, num_heads=3, num_kv_heads=None, head_dim=8
    )
    # Long enough for another form than "xla".
    batch = {name: jnp.tile(x, (1, 3)) for name, x in make_batch(config).items()}
    model = Model(config)
    loss = lambda p: jnp.sum(model.apply(p, batch, train=True)[0])  # noqa: E731
    jaxpr = jax.make_jaxpr(jax.grad(loss))(model.abstract_params())
    whole = 3 * 8 * batch["decoder_target_tokens"].size

    def named(jaxpr):
        for e in jaxpr.eqns:
            if e.primitive.name == "name" and e.params["name"] == "attention_output":
                yield e.outvars[0].aval.size
            for value in e.params.values():
                for inner in value if isinstance(value, (tuple, list)) else [value]:
                    inner = getattr(inner, "jaxpr", inner)
                    yield from named(inner) if hasattr(inner, "eqns") else ()

    assert list(named(jaxpr)).count(whole) == 1


def test_dropout_is_a_function_of_its_key_and_only_in_training():
    config = dataclasses.replace(T5, dropout_rate=0.5)
    model, batch = Model(config), make_batch(config)
    params = init(model, jax.random.key(0))
    one, same, other = (
        apply(model, params, batch, rng=jax.random.key(k), train=True) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_array_equal(
        apply(model, params, batch, rng=jax.random.key(1)), apply(model, params, batch)
    )


def test_logical_axes_fit_the_parameters():
    for config in VARIANTS.values():
        model = Model(config)
        shapes, axes = model.abstract_params(), model.logical_axes()
        flat = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
        for leaf, names in zip(jax.tree.leaves(shapes), flat, strict=True):
            assert len(leaf.shape) == len(names)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"positions": "ropes"}, "Did you mean 'rope'"),
        ({"mlp_activations": ("gelu", "lineal")}, "Did you mean 'linear'"),
        ({"num_kv_heads": 3}, "not a multiple of num_kv_heads = 3"),
        ({"num_encoder_layers": 2}, "decoder_only none"),
        ({"head_dim": 7}, "head_dim = 7 is odd"),
        ({"dropout_rate": 1.0}, "in [0, 1)"),
        ({"embed_dim": 0}, "embed_dim = 0"),
        ({"full_attention_every": 2}, "a window for the other layers"),
        ({"local_rope_theta": 10.0}, "local_rope_theta = 10.0"),
        ({"relative_bias_per_layer": True}, "expected 'relative'"),
        ({"attention_scalar": 0.0}, "attention_scalar = 0.0"),
    ],
)
def test_contradictions_are_named(change, words):
    with pytest.raises(UserError, match=".*") as error:
        dataclasses.replace(LM, **change)
    assert words in str(error.value)
