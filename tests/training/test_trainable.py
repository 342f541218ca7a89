"""Which parameters are trained: choosing them, a step that leaves the rest alone, warm starts."""

import dataclasses
import types

import jax
import numpy as np
import optax
import pytest
import tiny

from t5x_lite.data.objectives.lm import CausalLM
from t5x_lite.errors import UserError
from t5x_lite.interop import pretrained, runs
from t5x_lite.interop.tensors import Tensor
from t5x_lite.models.adapters import LoRA, SoftPrompt, base_of
from t5x_lite.models.model import Model
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.training import checkpoint_layout as layout
from t5x_lite.training.build import build, fresh_state, started_from
from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints
from t5x_lite.training.optimizers import AdamW, parameter_names
from t5x_lite.training.schedules import constant
from t5x_lite.training.setup import set_up
from t5x_lite.training.trainable import Trainable, joined, layer_factors, part

LM = dataclasses.replace(tiny.LM, num_decoder_layers=1, mlp_dim=48)
ADAPTED = dataclasses.replace(LM, adapters=(LoRA(r"(query|wo)/kernel$", rank=2), SoftPrompt(2)))
LENGTHS = {"targets": 8}
OWN = {"soft_prompt", "decoder/decoder_norm/scale"} | {
    f"lora/decoder/layers/{name}/kernel/lora_{i}"
    for name in ("mlp/wo", "self_attention/query")
    for i in "ab"
}


def setting(config, **options):
    """A set-up on 8 devices and its training."""
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    setup = set_up(config, tiny.task(CausalLM()), LENGTHS, 8, mesh, pack=False)
    optimizer = AdamW(schedule=constant(rate=0.05), weight_decay=0.1)
    return setup, build(setup, optimizer, **options)


def batches(setup, count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        ids = rng.integers(3, 60, (8, 8)).astype(np.int32)
        features = {"decoder_input_tokens": np.roll(ids, 1, 1), "decoder_target_tokens": ids}
        yield setup.place(features | {"decoder_loss_weights": np.ones_like(ids)})


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A base's checkpoint, four steps of adapters on it, and a checkpoint after two of them."""
    folder = tmp_path_factory.mktemp("runs")
    base = Model(LM).abstract_params()
    rng = np.random.default_rng(1)
    values = {n: rng.normal(0, 0.2, x.shape).astype(np.float32)
              for n, x in layout.by_name(base).items()}  # fmt: skip
    tensors = {n: Tensor(v.shape, v.dtype, lambda i, v=v: v[i]) for n, v in values.items()}
    runs.write(folder / "base", tensors, LM, {})
    setup, training = setting(ADAPTED, trainable=Trainable("decoder_norm"))
    state = fresh_state(training, setup.model, 0)
    found = pretrained.restore_params(
        folder / "base", training.abstract.params, model=ADAPTED, start=True
    )
    first = started_from(state, found, training, setup.model, 0)
    kept = jax.tree.map(np.asarray, first.params)
    state, losses = first, []
    with use_mesh(setup.mesh, setup.rules):
        for i, batch in enumerate(batches(setup, 4)):
            if i == 2:
                with Checkpoints(folder / "adapted", CheckpointConfig()) as checkpoints:
                    checkpoints.save(2, state.to_dict(), data_position=None, description={
                        "model": dataclasses.asdict(ADAPTED)})  # fmt: skip
            state, metrics = training.step(state, batch)
            losses.append(float(metrics["loss"]))
    return types.SimpleNamespace(
        folder=folder, setup=setup, training=training, base=layout.nested(values), first=kept,
        last=state, losses=losses,
    )  # fmt: skip


def test_a_warm_start_fills_the_base_and_leaves_fresh_adapters(run):
    assert_same(base_of(run.first), run.base)
    for name, leaf in layout.by_name(run.first["lora"]).items():
        assert bool(np.any(leaf)) == name.endswith("lora_a")
    table, prompt = run.base["token_embedder"]["embedding"], run.first["soft_prompt"]
    assert all((table == row).all(axis=1).any() for row in prompt)  # of these embeddings


def test_only_what_is_trained_changes_and_has_a_state(run):
    assert run.training.trained == OWN
    before, after = (layout.by_name(tree) for tree in (run.first, run.last.params))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == OWN
    moments = [n for n in layout.by_name(run.last.opt_state) if "/mu/" in n]
    assert {name.split("/mu/")[1] for name in moments} == OWN
    assert all(np.isfinite(run.losses)) and len(set(run.losses)) == 4


def test_it_continues_as_if_nothing_had_happened(run):
    with Checkpoints(run.folder / "adapted", CheckpointConfig()) as checkpoints:
        restored, _, _ = checkpoints.restore(2, run.training.abstract.to_dict())
    state = type(run.training.abstract)(**restored)
    with use_mesh(run.setup.mesh, run.setup.rules):
        for batch in list(batches(run.setup, 4))[2:]:
            state, _ = run.training.step(state, batch)
    assert_same(state.params, run.last.params)
    assert_same(state.opt_state, run.last.opt_state)


def test_a_run_with_adapters_starts_others(run):
    """The same adapters go on; a model without them, or with others, gets them merged."""
    path, model = run.folder / "adapted", run.setup.model
    plain = base_of(run.training.abstract.params)
    with pytest.raises(UserError, match="missing: lora"):
        pretrained.restore_params(run.folder / "base", run.training.abstract.params, model=ADAPTED)
    same = pretrained.restore_params(path, run.training.abstract.params, model=ADAPTED, start=True)
    assert same.keys() == run.first.keys()
    with pytest.raises(UserError, match="soft_prompt"):
        pretrained.restore_params(path, plain, model=LM, start=True)
    kernel = pretrained.open_source(path).parameters(
        {n: x.shape for n, x in layout.by_name(Model(
            dataclasses.replace(LM, adapters=(SoftPrompt(2),))).abstract_params()).items()}
    )["decoder/layers/mlp/wo/kernel"].all()  # fmt: skip
    wanted = model.merged(same)[1]["decoder"]["layers"]["mlp"]["wo"]["kernel"]
    np.testing.assert_allclose(kernel, wanted, atol=1e-6)


def products(jaxpr, found=None):
    """Shapes of all results of dot_general in a program."""
    found = set() if found is None else found
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.add(equation.outvars[0].aval.shape)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                products(inner, found)
    return found


def test_no_gradient_of_what_is_frozen_is_formed():
    """An MLP's matrices are the only arrays of their shape here."""
    formed = {}
    for config in (LM, ADAPTED):
        setup, training = setting(config)
        program = jax.make_jaxpr(training.step)(training.abstract, setup.abstract_batch())
        formed[config] = products(program.jaxpr)
    assert {(48, 32), (32, 48)} & formed[LM]
    assert not {(48, 32), (32, 48)} & formed[ADAPTED]
    assert {(48, 2), (2, 48)} & formed[ADAPTED]


# ------------------------------------------------------------------------------------- choosing


def test_parts_of_a_tree_are_put_back():
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    assert part(tree, {"a/c"}) == {"a": {"c": 2}}
    assert joined(tree, {"a": {"c": 5}}) == {"a": {"b": 1, "c": 5}, "d": 3}


def test_names_are_chosen_by_patterns_and_adapters():
    plain, with_lora = Model(LM).abstract_params(), Model(ADAPTED).abstract_params()
    every = set(parameter_names(plain))
    assert Trainable().names(plain) == every
    assert Trainable(frozen="^token_embedder").names(plain) == every - {"token_embedder/embedding"}
    assert Trainable("norm", frozen="mlp").names(plain) == {
        n for n in every if "norm" in n and "mlp" not in n
    }
    adapters = OWN - {"decoder/decoder_norm/scale"}
    assert Trainable().names(with_lora) == adapters
    assert Trainable("decoder_norm", "soft").names(with_lora) == OWN - {"soft_prompt"}
    for wrong, said in [
        (dict(trainable="("), "no regular expression"),
        (dict(frozen="nothing"), "train.frozen = 'nothing' matches no parameter"),
        (dict(frozen=".*"), "nothing to train"),
    ]:
        with pytest.raises(UserError, match=said):
            Trainable(**wrong).names(plain)
    with pytest.raises(UserError, match="layer_decay"):
        Trainable(layer_decay=1.5)


@pytest.mark.parametrize("scan", [True, False])
def test_rates_decay_layer_by_layer_from_the_top(scan):
    config = dataclasses.replace(tiny.T5, scan_layers=scan)
    factors = layout.by_name(layer_factors(Model(config), 0.5))

    def of(stack, layer, name):
        if scan:
            return float(np.ravel(factors[f"{stack}/layers/{name}"])[layer])
        return float(factors[f"{stack}/layers_{layer}/{name}"])

    assert float(factors["decoder/logits_dense/kernel"]) == 1.0
    assert float(factors["decoder/decoder_norm/scale"]) == 1.0
    assert [of("decoder", i, "mlp/wo/kernel") for i in range(2)] == [0.25, 0.5]
    assert [of("encoder", i, "mlp/wo/kernel") for i in range(2)] == [0.0625, 0.125]
    assert float(factors["encoder/encoder_norm/scale"]) == 0.25
    assert float(factors["encoder/relpos_bias/rel_embedding"]) == 0.0625
    assert float(factors["token_embedder/embedding"]) == 0.5**5
    as_it_is = types.SimpleNamespace(build=lambda params, axes: optax.identity())
    transform, _ = Trainable(layer_decay=0.5).transform(as_it_is, Model(config))
    twos = jax.tree.map(lambda x: np.full(x.shape, 2.0), Model(config).abstract_params())
    updates, _ = transform.update(twos, transform.init(twos), twos)
    for name, update in layout.by_name(updates).items():
        np.testing.assert_array_equal(update, np.broadcast_to(2 * factors[name], update.shape))
