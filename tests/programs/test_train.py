"""The training program as a whole: resuming, meshes, numbers of processes, interruption."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.programs.train import train
from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints
from t5x_lite.training.optimizers import Adafactor, AdamW, Muon
from t5x_lite.training.schedules import constant


def arrays_of(model_dir, step):
    """Every leaf of a checkpoint, by name."""
    checkpoints = Checkpoints(model_dir)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    specs = checkpoints.description(step)["arrays"]
    abstract = {}
    for name, spec in specs.items():
        dtype, _, shape = spec.removesuffix("]").partition("[")
        shape = tuple(int(n) for n in shape.split(",") if n)
        abstract[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=one)
    nested = {}
    for name, leaf in abstract.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    state, position, _ = checkpoints.restore(step, nested)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves} | {"position": position}


RUNS = {
    "t5, adamw, dropout, packed": {"model": tiny.dropout(tiny.T5)},
    "t5, adafactor, micro-batches, unpacked": {
        "optimizer": Adafactor(schedule=constant(rate=1e-2)),
        "num_microbatches": 2,
        "pack": False,
        "batch_size": 16,
    },
    "lm, muon, fsdp": {
        "model": tiny.LM,
        "task": tiny.task(tl.CausalLM()),
        "lengths": {"targets": 48},
        "optimizer": Muon(schedule=constant(rate=1e-3)),
        "mesh": MeshConfig(data=2, fsdp=2, tensor=2),
    },
}


# One of them always, all with the slow tests: tests/reliability/test_resume.py crosses optimizers,
# objectives and meshes, in short.
@pytest.mark.parametrize(
    "name",
    [next(iter(RUNS)), *(pytest.param(name, marks=pytest.mark.slow) for name in list(RUNS)[1:])],
)
def test_a_continued_run_equals_an_uninterrupted_one_bit_for_bit(name, tmp_path):
    """20 steps = 10 + 10, in every logged loss and every leaf."""
    changes = RUNS[name] | {"checkpoint": CheckpointConfig(period=10)}
    straight, twice = tmp_path / "straight", tmp_path / "twice"
    train(**tiny.arguments(straight, total_steps=20, **changes))
    train(**tiny.arguments(twice, total_steps=10, **changes))
    train(**tiny.arguments(twice, total_steps=20, **changes))
    for metric in ("loss", "grad_norm", "accuracy", "learning_rate"):
        losses = tiny.logged(straight, metric)
        assert len(losses) == 20
        assert tiny.logged(twice, metric) == losses
    expected, found = arrays_of(straight, 20), arrays_of(twice, 20)
    assert expected.keys() == found.keys()
    for leaf, value in expected.items():
        np.testing.assert_array_equal(found[leaf], value, err_msg=leaf)
    assert tiny.logged(straight)[20] < tiny.logged(straight)[1]


MESHES = {
    "8x1x1": MeshConfig(data=8),
    "1x8x1": MeshConfig(data=1, fsdp=8),
    "2x2x2": MeshConfig(data=2, fsdp=2, tensor=2),
    "1x2x4": MeshConfig(data=1, fsdp=2, tensor=4),
}


def losses_on(devices, mesh, steps=20):
    """The losses of a run written with the library's parts, as a notebook would."""
    from t5x_lite.parallel.rules import use_mesh
    from t5x_lite.training.setup import set_up
    from t5x_lite.training.state import abstract_state, init_state

    setup = set_up(tiny.T5, tiny.task(), tiny.LENGTHS, 8, mesh, devices=devices)
    optimizer = AdamW(schedule=constant(rate=3e-3))
    transform = optimizer.build(setup.model.abstract_params(), setup.model.logical_axes())
    abstract = abstract_state(setup.model, transform, setup.mesh, setup.rules)
    state = init_state(setup.model, transform, abstract, seed=0)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    step = jax.jit(
        tl.make_train_step(setup.model, transform, optimizer.schedule),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    loader = tl.BatchLoader(
        setup.task, lengths=tiny.LENGTHS, batch_size=8, seed=0, architecture="encoder_decoder"
    )
    losses = []
    with use_mesh(setup.mesh, setup.rules):
        for batch in (next(loader) for _ in range(steps)):
            state, metrics = step(state, setup.place(batch.features))
            losses.append(float(metrics["loss"]))
    for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert x.sharding.is_equivalent_to(s, x.ndim)
    return losses


@pytest.fixture(scope="module")
def one_device_losses():
    return losses_on(jax.devices()[:1], MeshConfig())


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_computes_the_same(name, one_device_losses):
    losses = losses_on(jax.devices(), MESHES[name])
    assert abs(losses[0] - one_device_losses[0]) < 1e-5
    assert abs(losses[19] - one_device_losses[19]) < 1e-4


@pytest.mark.parametrize("normalizer", ["num_real_target_tokens", "average_per_sequence"])
def test_micro_batches_change_neither_loss_nor_gradients(normalizer):
    """T5X multiplies both by their number, with these normalisers."""
    optimizer = AdamW(schedule=constant(rate=0.0001))
    model = tl.Model(dataclasses.replace(tiny.T5, num_encoder_layers=1, num_decoder_layers=1))
    transform = optimizer.build(model.abstract_params(), model.logical_axes())
    params = jax.jit(model.init)(jax.random.key(0))
    zero = jax.numpy.int32(0)
    state = tl.TrainState(zero, params, jax.jit(transform.init)(params), zero)
    loader = tl.BatchLoader(
        tiny.task(), lengths=tiny.LENGTHS, batch_size=8, seed=0, architecture="encoder_decoder"
    )
    batch = next(loader).features
    batch["decoder_loss_weights"][:3, 5:] = 0  # rows of unequal weight
    results = []
    for count in (1, 4):
        step = tl.make_train_step(
            model,
            transform,
            optimizer.schedule,
            loss=tl.Loss(normalizer=normalizer),
            num_microbatches=count,
        )
        _, metrics = jax.jit(step)(state, batch)
        results.append([float(metrics[m]) for m in ("loss", "grad_norm", "accuracy", "z_loss")])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_a_finished_run_says_so_and_trains_no_more(tmp_path, capsys):
    first = train(**tiny.arguments(tmp_path / "run"))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    second = train(**tiny.arguments(tmp_path / "run"))
    assert "is finished: step 6 of 6" in capsys.readouterr().out
    assert first == second and first["step"] == 6
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_folder_of_another_run_is_refused(tmp_path):
    train(**tiny.arguments(tmp_path / "run", total_steps=1))
    wider = dataclasses.replace(tiny.T5, mlp_dim=128)
    with pytest.raises(UserError, match="holds another run: model.mlp_dim was 64, now 128"):
        train(**tiny.arguments(tmp_path / "run", model=wider))
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"no run's folder \(no run.json, but thesis.tex\)"):
        train(**tiny.arguments(tmp_path / "else"))


def test_starting_from_another_runs_parameters(tmp_path, capsys):
    train(**tiny.arguments(tmp_path / "a", total_steps=2))
    train(
        **tiny.arguments(
            tmp_path / "b",
            total_steps=1,
            seed=5,
            optimizer=AdamW(schedule=constant(rate=1e-8)),
            initial_checkpoint=str(tmp_path / "a"),
            initial_params="^encoder/",
        )
    )
    a, b = arrays_of(tmp_path / "a", 2), arrays_of(tmp_path / "b", 1)
    same = [np.allclose(a[n], b[n], atol=1e-6) for n in a if n.startswith("['params']['encoder']")]
    assert all(same) and len(same) > 5
    assert not np.allclose(*(x["['params']['token_embedder']['embedding']"] for x in (a, b)))


def test_a_loss_that_is_not_finite_changes_nothing_and_ends_the_run(tmp_path, capsys):
    class Explodes:
        """A schedule that breaks the parameters after two steps."""

        def __call__(self, step):
            return jax.numpy.where(step < 2, 1e-3, jax.numpy.inf)

    with pytest.raises(FloatingPointError, match="not finite in the 3 steps up to step"):
        train(
            **tiny.arguments(
                tmp_path / "run",
                total_steps=20,
                optimizer=AdamW(schedule=Explodes()),
                max_bad_steps=3,
            )
        )
    assert Checkpoints(tmp_path / "run").steps() == []


def test_what_is_written_beside_a_run(tmp_path):
    train(**tiny.arguments(tmp_path / "run", total_steps=2, eval_period=1))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"run.json", "config.gin", "parameters.txt", "metrics.jsonl", "tensorboard"}
    expected |= {
        "hyperparameters.json",
        "summary.json",
        "report.html",
        "checkpoints",
        "vocabulary.json",
    }
    assert names == expected
    table = (tmp_path / "run" / "parameters.txt").read_text()
    assert "encoder/layers/mlp/wi_0/kernel" in table and "embed, mlp" in table
    lines = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evals = [line for line in lines if "eval/loss" in line]
    assert [line["step"] for line in evals] == [0, 1, 2]
    assert evals[0]["eval/unigram_loss"] < evals[0]["eval/loss"]
    assert {"eval/perplexity", "eval/accuracy", "eval/bits_per_byte"} <= evals[0].keys()


def test_a_mixture_reports_each_of_its_tasks(tmp_path):
    tasks = [dataclasses.replace(tiny.task(), name=name) for name in ("much", "little")]
    mixture = tl.Mixture("both", tasks, rates=[3, 1])
    train(**tiny.arguments(tmp_path / "run", task=mixture, total_steps=2))
    lines = [json.loads(s) for s in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for line in lines for name, value in line.items()}
    assert last["eval/much/loss"] > 0 and last["eval/little/target_tokens"] > 0
    assert last["drawn/much"] + last["drawn/little"] == pytest.approx(1)
    assert last["drawn/much"] > 0.5
    assert 0 <= last["padding_share"] < 1
