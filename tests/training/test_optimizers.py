import dataclasses
import logging
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.model import Model
from t5x_lite.training import adafactor, losses, muon, schedules
from t5x_lite.training import optimizers as o

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
RATE = schedules.constant(0.01)
ALL = (o.AdamW, o.Adafactor, o.Lion, o.Muon, o.RmsScaledAdamW)
EVERYTHING = ((".*", True),)


def train(optimizer, params, gradients, logical_axes=None):
    """Yields (params, opt_state) after each step, multiplied by the rate as in the train step."""
    transform = optimizer.build(params, logical_axes)
    state = transform.init(params)
    update = jax.jit(transform.update)
    for step, grads in enumerate(gradients):
        grads = grads(params) if callable(grads) else grads
        updates, state = update(grads, state, params)
        rate = optimizer.schedule(step)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)  # noqa: B023
        yield params, state


def random_tree(shapes, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)  # noqa: E731
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


def flat(tree):
    return dict(zip(o.parameter_names(tree), jax.tree.leaves(tree), strict=True))


def adafactor_state(opt_state):
    is_state = lambda x: isinstance(x, adafactor.AdafactorState)  # noqa: E731
    return next(x for x in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(x))


# -- Adafactor against T5X ----------------------------------------------------------------------

UNIT_VARIANTS = {
    "t5x_default": {},
    "momentum": {"beta1": 0.9},
    "no_clip": {"clipping_threshold": None},
    # T5X subtracts 0.01 * parameter, here the rate multiplies it.
    "weight_decay": {"weight_decay": 0.01 / 0.01, "decay_patterns": EVERYTHING},
    "no_param_scale": {"multiply_by_parameter_scale": False},
    "global_norm_clip": {"clip_norm": 1.0},
    "step_offset": {"decay_rate": 0.5},
}


@pytest.mark.parametrize("variant", UNIT_VARIANTS)
def test_adafactor_is_t5x_s(variant):
    golden = np.load(FOLDER / "adafactor_unit.npz")
    names = ("kernel", "small", "scale")
    params = {k: jnp.asarray(golden[f"params_0/{k}"]) for k in names}
    grads = [{k: jnp.asarray(golden[f"grads_{i}/{k}"]) for k in names} for i in (1, 2, 3)]
    steps = list(train(o.Adafactor(RATE, **UNIT_VARIANTS[variant]), params, grads))
    for step in (1, 3):
        for name, value in steps[step - 1][0].items():
            key = f"{variant}/params_{step}/{name}"
            if key not in golden:
                key, value = f"{key}[:8,:8]", value[:8, :8]
            np.testing.assert_allclose(value, golden[key], rtol=0, atol=2.5e-7, err_msg=key)
    if variant == "t5x_default":
        state = adafactor_state(steps[-1][1])
        for slot in ("v_row", "v_col", "v", "m"):
            for name in names:
                value = getattr(state, slot)[name]
                np.testing.assert_allclose(value, golden[f"{variant}/state_3/{name}/{slot}"], 1e-6)


@pytest.fixture(scope="module")
def tiny():
    """The golden files' model: parameters, their axes, and the gradient of T5X's loss."""
    forward = np.load(FOLDER / "tiny_forward.npz")
    prefix = "padded/batch/"
    batch = {k.removeprefix(prefix): jnp.asarray(forward[k]) for k in forward if prefix in k}
    config = dict(vocab_size=128, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=64)
    layers = dict(num_encoder_layers=2, num_decoder_layers=2, scan_layers=False)
    model = Model(TransformerConfig(**config, **layers, dtype="float32"))

    @jax.jit
    @jax.grad
    def gradient(params):
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        logits, _ = model.apply(params, batch)
        return losses.cross_entropy(logits, targets, weights, z_loss=1e-4)[0]

    stored, shapes = np.load(FOLDER / "tiny_params.npz"), model.abstract_params()
    params = [jnp.asarray(stored[name]) for name in o.parameter_names(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), params), model.logical_axes(), gradient


@pytest.mark.parametrize("min_size", [128, 16])
def test_adafactor_trains_the_tiny_model_as_t5x_does(tiny, min_size):
    name = {128: "adafactor_default_steps", 16: "adafactor_factored16_steps"}[min_size]
    golden = np.load(FOLDER / f"{name}.npz")
    params, axes, gradient = tiny
    optimizer = o.Adafactor(schedules.t5_inverse_square_root(), min_dim_size_to_factor=min_size)
    steps = list(train(optimizer, params, [gradient] * 3, axes))
    # Adafactor divides gradients by their magnitude, so what float32 rounds differently grows: one
    # ulp in the parameters moves them by 2e-4 three steps later. (Their steps are 1e-2.)
    for i, (params, _) in enumerate(steps, start=1):
        for name, value in flat(params).items():
            key, atol = f"params_after_{i}/{name}", (2e-6, 1e-5, 5e-4)[i - 1]
            np.testing.assert_allclose(value, golden[key], rtol=0, atol=atol, err_msg=key)
    state = adafactor_state(steps[-1][1])
    for slot in ("v_row", "v_col", "v", "m"):
        for name, value in flat(getattr(state, slot)).items():
            expected = golden[f"state_after_3/param_states/{name}/{slot}"]
            atol = 1e-2 * np.abs(expected).max()
            np.testing.assert_allclose(value, expected, rtol=0, atol=atol, err_msg=name)


def test_adafactor_factors_by_axes():
    dims = lambda shape, axes, **kw: adafactor.factored_dims(shape, axes, **kw).matrix  # noqa: E731
    assert dims((256, 512), ("embed", "mlp")) == (0, 1)
    assert dims((512, 256), ("mlp", "embed")) == (1, 0)  # the smaller comes first
    assert dims((256, 256), ("joined_kv", "embed")) == (0, 1)
    assert dims((3, 256, 512), ("layers", "embed", "mlp")) == (1, 2)
    assert dims((256, 127), ("embed", "mlp")) is None  # too small
    assert dims((256, 256), ("heads", "relpos_buckets")) is None
    assert dims((256, 256), ("layers", "norm")) is None
    assert dims((384, 256), None) == (1, 0)  # the two largest
    assert dims((256, 2, 384), None) == (0, 2)
    assert dims((256, 16, 128), ("embed", "heads", "kv")) == (2, 0)  # two columns: by size
    assert adafactor.factored_dims((3, 4, 5), ("layers", "experts", "mlp")).batch == (0, 1)
    assert (
        dims((256, 256), ("embed", "conv"), rules=adafactor.FACTOR_RULES | {"conv": "none"}) is None
    )
    with pytest.raises(UserError, match="axis 'mpl' has no Adafactor rule.*Did you mean 'mlp'"):
        dims((256, 256), ("embed", "mpl"))
    with pytest.raises(UserError, match="expected 'row', 'column'"):
        o.Adafactor(RATE, factor_rules={"conv": "columns"}).build({"kernel": jnp.ones((2, 2))})


# -- all optimizers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_a_scanned_stack_trains_like_its_layers(kind):
    names = ("a", "b", "c")
    shapes = {"mlp": {"kernel": (16, 24)}, "norm": {"scale": (16,)}}
    axes = {"mlp": {"kernel": ("embed", "mlp")}, "norm": {"scale": ("norm",)}}
    layers = {n: random_tree(shapes, i, scale=10.0**-i) for i, n in enumerate(names)}
    grads = [
        {n: random_tree(shapes, 10 * step + i, scale=5.0**i) for i, n in enumerate(names)}
        for step in range(3)
    ]
    stack = lambda tree: {"layers": jax.tree.map(lambda *x: jnp.stack(x), *tree.values())}  # noqa: E731
    stacked_axes = jax.tree.map(
        lambda a: ("layers", *a), axes, is_leaf=lambda x: isinstance(x, tuple)
    )
    optimizer = kind(RATE, weight_decay=0.1)
    if kind is o.Adafactor:
        optimizer = dataclasses.replace(optimizer, min_dim_size_to_factor=8)
    *_, (unrolled, _) = train(optimizer, layers, grads, dict.fromkeys(names, axes))
    *_, (scanned, _) = train(
        optimizer, stack(layers), [stack(g) for g in grads], {"layers": stacked_axes}
    )
    for name, expected in flat(stack(unrolled)).items():
        assert np.all(expected != flat(stack(layers))[name])
        np.testing.assert_allclose(flat(scanned)[name], expected, rtol=2e-5, atol=1e-7)


@pytest.fixture(scope="module")
def every_kind_of_parameter():
    """Shapes and axes of a small model with biases, learned positions and both stacks scanned."""
    sizes = dict(vocab_size=32, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=16)
    layers = dict(num_decoder_layers=2, num_encoder_layers=2, scan_layers=True)
    flavour = dict(use_bias=True, positions="learned", norm="layer")
    model = Model(TransformerConfig(**sizes, **layers, **flavour))
    return model.abstract_params(), model.logical_axes()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("mu_dtype", [None, "bfloat16"])
def test_state_leaves_can_be_sharded_like_parameters(every_kind_of_parameter, kind, mu_dtype):
    params, axes = every_kind_of_parameter
    optimizer = kind(RATE, weight_decay=0.1, mu_dtype=mu_dtype)
    if kind is o.Adafactor:
        optimizer = dataclasses.replace(optimizer, min_dim_size_to_factor=8, beta1=0.9)
    transform = optimizer.build(params, axes)
    state = jax.eval_shape(transform.init, params)
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    allowed = shapes | {(), (1,)} | {s[:i] + s[i + 1 :] for s in shapes for i in range(len(s))}
    assert {leaf.shape for leaf in jax.tree.leaves(state)} <= allowed
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape in shapes}
    assert (jnp.dtype("bfloat16") in dtypes) == (mu_dtype is not None)
    # What comes out of a step can go into the next: no dtype or shape drifts.
    updates, after = jax.eval_shape(transform.update, params, state, params)
    assert after == state
    assert updates == params


@pytest.mark.parametrize("kind", ALL)
def test_a_minimum_is_found(kind):
    target = random_tree({"kernel": (8, 8), "scale": (8,)}, 0)
    params = random_tree({"kernel": (8, 8), "scale": (8,)}, 1)
    distance = lambda p: sum(jnp.sum((p[k] - target[k]) ** 2) for k in p)  # noqa: E731
    optimizer = kind(schedules.linear(0.3, total_steps=150), weight_decay=0.0)
    *_, (found, _) = train(optimizer, params, [jax.jit(jax.grad(distance))] * 150)
    assert distance(found) < 0.02 * distance(params)


@pytest.mark.parametrize("kind", ALL)
def test_zero_gradients_move_nothing_but_by_decay(kind):
    params = random_tree({"kernel": (8, 8), "scale": (8,)}, 0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    ((after, _),) = train(kind(RATE, weight_decay=0.5), params, [zeros])
    np.testing.assert_allclose(after["kernel"], params["kernel"] * (1 - 0.01 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(after["scale"], params["scale"])


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (
            o.AdamW(RATE, clip_norm=0.5, weight_decay=0.1),
            lambda mask: optax.adamw(0.01, 0.9, 0.95, weight_decay=0.1, mask=mask),
        ),
        (
            o.Lion(RATE, clip_norm=0.5, weight_decay=1.0),
            lambda mask: optax.lion(0.01, 0.9, 0.99, weight_decay=1.0, mask=mask),
        ),
    ],
)
def test_the_rate_multiplied_last_is_optax_s(ours, theirs):
    shapes = {"kernel": (5, 7), "scale": (7,)}
    params = random_tree(shapes, 0)
    grads = [random_tree(shapes, i) for i in (1, 2, 3)]
    *_, (got, _) = train(ours, params, grads)
    reference = optax.chain(
        optax.clip_by_global_norm(0.5), theirs({"kernel": True, "scale": False})
    )
    state = reference.init(params)
    for g in grads:
        updates, state = jax.jit(reference.update)(g, state, params)
        params = optax.apply_updates(params, updates)
    for name in shapes:
        np.testing.assert_allclose(got[name], params[name], rtol=1e-6, atol=1e-7)


def test_rms_scaled_adamw_by_hand():
    params = {"kernel": jnp.array([[3.0, -4.0]]), "scale": jnp.array([1e-6])}
    grads = {"kernel": jnp.array([[0.2, 0.1]]), "scale": jnp.array([-0.3])}
    optimizer = o.RmsScaledAdamW(RATE, clip_norm=None, eps=0.0, weight_decay=0.5)
    transform = optimizer.build(params)
    updates, _ = transform.update(grads, transform.init(params), params)
    rms = np.sqrt(12.5)  # Adam's first step is the gradient's sign
    np.testing.assert_allclose(updates["kernel"], [[rms + 1.5, rms - 2.0]], rtol=3e-5)
    np.testing.assert_allclose(updates["scale"], [-1e-3], rtol=3e-5)


# -- Muon -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 12), (6, 20), (20, 6), (3, 8, 10)])
def test_orthogonalize_keeps_singular_vectors(shape):
    x = random_tree({"x": shape}, 0)["x"]
    u, _, vt = np.linalg.svd(np.asarray(x), full_matrices=False)
    inside = u.mT @ np.asarray(muon.orthogonalize(x, steps=8)) @ vt.mT
    values = np.diagonal(inside, axis1=-2, axis2=-1)
    assert values.min() > 0.6 and values.max() < 1.3
    np.testing.assert_allclose(inside - values[..., None] * np.eye(values.shape[-1]), 0, atol=2e-5)


def test_muon_s_first_step_is_optax_s():
    shapes = {"kernel": (10, 16), "embedding": (12, 4)}
    params, grads = random_tree(shapes, 0), random_tree(shapes, 1)
    optimizer = o.Muon(RATE, clip_norm=None, weight_decay=0.0)
    ((got, _),) = train(optimizer, params, [grads])
    matrix = optax.contrib.muon(0.01, consistent_rms=0.2)
    expected, _ = jax.jit(matrix.update)(grads, matrix.init(params), params)
    np.testing.assert_allclose(got["kernel"] - params["kernel"], expected["kernel"], atol=2e-6)
    adam = optax.adam(0.01, 0.9, 0.95)
    expected, _ = jax.jit(adam.update)(grads, adam.init(params), params)
    np.testing.assert_allclose(
        got["embedding"] - params["embedding"], expected["embedding"], atol=2e-6
    )


def test_muon_takes_stacks_wherever_the_layers_are():
    tree = random_tree({"kernel": (6, 3, 9)}, 0)
    optimizer = o.Muon(RATE, weight_decay=0.0)
    ((inside, _),) = train(optimizer, tree, [tree], {"kernel": ("embed", "layers", "mlp")})
    first = {"kernel": tree["kernel"].swapaxes(0, 1)}
    ((leading, _),) = train(optimizer, first, [first], {"kernel": ("layers", "embed", "mlp")})
    np.testing.assert_allclose(inside["kernel"].swapaxes(0, 1), leading["kernel"], rtol=1e-5)


def test_muon_refuses_what_is_no_matrix():
    params = {"conv": {"kernel": jnp.ones((3, 4, 5))}}
    with pytest.raises(UserError, match="conv/kernel of shape .3, 4, 5. .* neither a matrix"):
        o.Muon(RATE).build(params)
    with pytest.raises(UserError, match="'lion' for conv/kernel, expected 'muon' or 'adamw'"):
        o.Muon(RATE, patterns=((".*", "lion"),)).build(params)


# -- patterns, configuration ----------------------------------------------------------------------


def test_patterns_cover_or_complain(caplog):
    params = {
        "enc": {"kernel": jnp.ones(2), "rel_embedding": jnp.ones(2)},
        "embedding": jnp.ones(2),
    }
    with caplog.at_level(logging.INFO):
        decays = o.match_parameters(params, o.DECAY_PATTERNS, "decay")
    assert decays == {"enc": {"kernel": True, "rel_embedding": False}, "embedding": True}
    (record,) = caplog.records
    assert "-> True: 2 parameters, e.g. embedding" in record.getMessage()
    with pytest.raises(UserError, match="^decay: no pattern matches embedding, enc/rel_embedding;"):
        o.match_parameters(params, [("kernel", True)], "decay")
    with pytest.raises(UserError, match="is no regular expression"):
        o.match_parameters(params, [("(", True)], "decay")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: o.AdamW(schedules.cosine), "AdamW.schedule is cosine, .*call a schedule: @cosine"),
        (lambda: o.Lion(1e-3), "Lion.schedule is 0.001, expected a function of the step"),
        (lambda: o.Muon(RATE, clip_norm=0.0), "Muon.clip_norm=0.0, expected a norm > 0"),
        (lambda: o.Adafactor(RATE, weight_decay=-1.0), "weight_decay=-1.0"),
        (lambda: o.AdamW(RATE, mu_dtype="bf16"), "AdamW.mu_dtype='bf16', expected e.g. 'bfloat16'"),
        (lambda: o.AdamW(RATE, mu_dtype="int32"), "AdamW.mu_dtype='int32'"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_configured_by_gin():
    gin.clear_config()
    try:
        gin.parse_config("""
            t5x_lite.Adafactor.schedule = @t5x_lite.t5_inverse_square_root()
            t5x_lite.Adafactor.beta1 = 0.9
            t5x_lite.AdamW.schedule = @t5x_lite.constant()
            t5x_lite.constant.rate = 0.25
            t5x_lite.AdamW.decay_patterns = ((r'.*', False),)
        """)
        assert config.call("Adafactor").beta1 == 0.9
        adamw = config.call("AdamW")
        assert repr(adamw.schedule) == "constant(rate=0.25, warmup_steps=0)"
        assert adamw.decay_patterns == ((".*", False),)
    finally:
        gin.clear_config()
