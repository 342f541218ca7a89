import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from waiting import wait_until

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.training.checkpoints import (
    CheckpointConfig,
    Checkpoints,
    _cause,
    restore_params,
)
from t5x_lite.training.retention import steps_to_keep

REPOSITORY = Path(__file__).parents[2]


def mesh_of(data: int, tensor: int):
    return jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def sharding_of(mesh, leaf):
    return NamedSharding(mesh, P("data", "tensor") if leaf.ndim == 2 else P())


def make_state(mesh, seed=0, width=8):
    """Float32 and bfloat16 parameters, int32 counters, and state classes that hold no arrays."""
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {"wo": {"kernel": jnp.asarray(rng.normal(size=(8, width)), jnp.float32)}},
        "decoder": {"norm": {"scale": jnp.asarray(rng.normal(size=8), jnp.bfloat16)}},
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.masked(optax.trace(0.9), {"encoder": True, "decoder": False}),
    )
    # Not zeros: a restore that skips a leaf must show.
    opt_state = jax.tree.map(lambda x: (x + 3).astype(x.dtype), optimizer.init(params))
    state = {"params": params, "opt_state": opt_state, "step": jnp.int32(seed)}
    return jax.tree.map(lambda x: jax.device_put(x, sharding_of(mesh, x)), state)


def abstract(tree, mesh):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(mesh, x)), tree
    )


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save(checkpoints, step, state, **arguments):
    return checkpoints.save(step, state, **{"data_position": None, "description": {}} | arguments)


@pytest.fixture(scope="module")
def mesh():
    return mesh_of(4, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory, mesh):
    """A run with steps 3 and 6, for tests that only read."""
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder, CheckpointConfig(period=3)) as checkpoints:
        for step in (3, 6):
            save(
                checkpoints,
                step,
                make_state(mesh, step),
                data_position=np.arange(12).reshape(4, 3) + 2**40 + step,
                description={"vocabulary": "c0ffee", "gin": "a = 1\nb = 'x'\n"},
            )
    return folder


def test_restore_on_another_mesh_is_bitwise(run, mesh):
    other = mesh_of(2, 2)  # half of the devices, too
    wanted = abstract(make_state(mesh), other)
    checkpoints = Checkpoints(run)
    state, position, description = checkpoints.restore(checkpoints.latest_step(), wanted)
    assert_same(state, make_state(mesh, 6))
    for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding == spec.sharding
    kernel = state["params"]["encoder"]["wo"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 4)}
    assert position.dtype == np.int64
    np.testing.assert_array_equal(position, np.arange(12).reshape(4, 3) + 2**40 + 6)
    assert description == {"vocabulary": "c0ffee", "gin": "a = 1\nb = 'x'\n"}


def test_special_floats_survive(tmp_path, mesh):
    state = make_state(mesh)
    odd = np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45, 3.4e38, 1.0, -np.inf], np.float32)
    for name, dtype in (("f", jnp.float32), ("b", jnp.bfloat16), ("i", jnp.int32)):
        raw = odd.view(np.int32) if dtype == jnp.int32 else odd.astype(dtype)
        state["params"][name] = jax.device_put(raw, NamedSharding(mesh, P("data")))
    with Checkpoints(tmp_path, CheckpointConfig(require_finite=False)) as checkpoints:
        save(checkpoints, 1, state)
        checkpoints.wait()
        assert_same(checkpoints.restore(1, abstract(state, mesh))[0], state)


def test_description_records_what_wrote_it(run):
    description = Checkpoints(run).description(3)
    assert description["step"] == 3
    assert description["versions"]["jax"] == jax.__version__
    assert set(description["versions"]) == {"t5x_lite", "jax", "flax", "optax", "orbax-checkpoint"}
    arrays = description["arrays"]
    assert arrays["params/encoder/wo/kernel"] == "float32[8,8]"
    assert arrays["params/decoder/norm/scale"] == "bfloat16[8]"
    assert arrays["step"] == "int32[]"
    assert arrays["opt_state/1/mu/encoder/wo/kernel"] == "float32[8,8]"
    file = run / "checkpoints" / "3" / "description" / "data.json"
    assert json.loads(file.read_text()) == description


def test_no_data_position(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 0, make_state(mesh))
        checkpoints.wait()
        assert checkpoints.restore(0, abstract(make_state(mesh), mesh))[1] is None


def test_asynchronous_save_and_donation(tmp_path, mesh):
    """What is saved is the state at the call, though its buffers are reused straight after."""
    sharding = NamedSharding(mesh, P("data"))
    make = jax.jit(
        lambda: {str(i): jnp.full((512, 1024), i, jnp.float32) for i in range(8)},
        out_shardings=sharding,
    )
    step = jax.jit(lambda tree: jax.tree.map(lambda x: -x - 1, tree), donate_argnums=0)
    state = {"params": step(step(make()))}
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    with Checkpoints(tmp_path, CheckpointConfig(period=1)) as checkpoints:
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
        )
        save(checkpoints, 1, state)
        for _ in range(3):
            state = {"params": step(state["params"])}
        jax.block_until_ready(state)
        checkpoints.wait()
        assert_same(checkpoints.restore(1, wanted)[0], expected)
        assert not np.array_equal(state["params"]["0"], expected["params"]["0"])


def test_synchronous_save_is_committed_on_return(tmp_path, mesh):
    with Checkpoints(tmp_path, CheckpointConfig(asynchronous=False)) as checkpoints:
        assert save(checkpoints, 1, make_state(mesh))
        assert checkpoints.steps() == [1]


def test_reading_creates_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.steps() == []
    assert checkpoints.latest_step() is None
    checkpoints.close()
    assert not (tmp_path / "none").exists()


# When.


def test_periods_count_absolute_steps():
    checkpoints = Checkpoints("unused", CheckpointConfig(period=5))
    assert [step for step in range(3, 22) if checkpoints.should_save(step)] == [5, 10, 15, 20]
    assert checkpoints.should_save(21, last=True)


def test_config_by_gin():
    gin.clear_config()
    gin.parse_config("t5x_lite.CheckpointConfig.period = 7")
    assert config.call("CheckpointConfig", keep_every=2).period == 7
    assert CheckpointConfig(keep_every=2).period == CheckpointConfig().period != 7
    gin.clear_config()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"period": 0}, "period is 0; it must be at least 1"),
        ({"keep_latest": 0}, "keep_latest is 0"),
        ({"best_mode": "lowest"}, "'lowest'; it must be 'min' or 'max'"),
    ],
)
def test_bad_config(arguments, message):
    with pytest.raises(UserError, match=message):
        CheckpointConfig(**arguments)


# What is kept.


@pytest.mark.parametrize(
    "config, kept",
    [
        (CheckpointConfig(keep_latest=2), [50, 60]),
        (CheckpointConfig(keep_latest=None), [0, 10, 20, 30, 40, 50, 60]),
        (CheckpointConfig(keep_latest=1, keep_every=20), [0, 20, 40, 60]),
        (CheckpointConfig(keep_latest=1, keep_best="loss"), [30, 60]),
        (CheckpointConfig(keep_latest=1, keep_best="loss", keep_best_count=2), [10, 30, 60]),
        (CheckpointConfig(keep_latest=1, keep_best="loss", best_mode="max"), [0, 60]),
        (
            CheckpointConfig(keep_latest=2, keep_every=40, keep_best="loss", keep_best_count=2),
            [0, 10, 30, 40, 50, 60],
        ),
    ],
)
def test_steps_to_keep(config, kept):
    losses = {0: 9.0, 10: 2.0, 20: 3.0, 30: 1.0, 40: float("nan"), 50: None, 60: 5.0}
    metrics = {s: None if loss is None else {"loss": loss} for s, loss in losses.items()}
    assert sorted(steps_to_keep(metrics, config)) == kept


@given(
    losses=st.dictionaries(st.integers(0, 50), st.none() | st.integers(0, 3), min_size=1),
    latest=st.integers(1, 4),
    every=st.none() | st.integers(1, 9),
    count=st.integers(1, 3),
)
def test_steps_to_keep_one_save_at_a_time(losses, latest, every, count):
    """Dropping after every save leaves what dropping once at the end would."""
    config = CheckpointConfig(
        keep_latest=latest, keep_every=every, keep_best="loss", keep_best_count=count
    )
    everything = {s: None if v is None else {"loss": float(v)} for s, v in losses.items()}
    there = {}
    for step in sorted(everything):
        there[step] = everything[step]
        keep = steps_to_keep(there, config)
        assert step in keep
        there = {s: m for s, m in there.items() if s in keep}
    assert set(there) == steps_to_keep(everything, config)


def test_files_that_survive_latest_every_best_and_a_restart(tmp_path, mesh):
    config = CheckpointConfig(keep_latest=2, keep_every=20, keep_best="loss", keep_best_count=1)
    losses = {5: 3.0, 10: 1.0, 15: None, 20: 2.0, 25: 4.0, 30: None}
    state = make_state(mesh)
    for steps in ((5, 10, 15), (20, 25, 30)):  # the second run must know the first one's metrics
        with Checkpoints(tmp_path, config) as checkpoints:
            for step in steps:
                metrics = None if losses[step] is None else {"loss": np.float32(losses[step])}
                save(checkpoints, step, state, metrics=metrics)
    assert Checkpoints(tmp_path).steps() == [10, 20, 25, 30]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "20", "25", "30"]


def test_best_by_a_metric_that_is_not_there(tmp_path, mesh, caplog):
    with Checkpoints(tmp_path, CheckpointConfig(keep_best="los")) as checkpoints:
        assert save(checkpoints, 1, make_state(mesh), metrics={"loss": 1.0})
    assert "Did you mean 'loss'?" in caplog.text


# What is there already.


def test_saving_the_same_step_again(tmp_path, mesh):
    wanted = abstract(make_state(mesh), mesh)
    with Checkpoints(tmp_path) as checkpoints:
        assert save(checkpoints, 4, make_state(mesh, 1))
        assert not save(checkpoints, 4, make_state(mesh, 1))
        assert not save(checkpoints, 4, make_state(mesh, 1), force=True)  # still being written
    with Checkpoints(tmp_path) as checkpoints:
        assert not save(checkpoints, 4, make_state(mesh, 2))
        assert_same(checkpoints.restore(4, wanted)[0], make_state(mesh, 1))
        assert not save(checkpoints, 4, make_state(mesh, 2), force=True)  # just restored
    with Checkpoints(tmp_path) as checkpoints:
        assert save(checkpoints, 4, make_state(mesh, 3), force=True)
        checkpoints.wait()
        assert_same(checkpoints.restore(4, wanted)[0], make_state(mesh, 3))


def test_saving_before_a_newer_step(run, mesh):
    with (
        Checkpoints(run) as checkpoints,
        pytest.raises(UserError, match="Saving step 4 .* already holds step 6: continue from"),
    ):
        save(checkpoints, 4, make_state(mesh))


# Torn checkpoints.


def test_torn_checkpoints_are_skipped_with_a_warning(tmp_path, run, mesh, caplog):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints"
    (folder / "9").mkdir()
    (folder / "9" / "rubble").write_text("x")
    shutil.copytree(folder / "6", folder / "12.orbax-checkpoint-tmp")
    shutil.copytree(folder / "6", folder / "15")  # interrupted in mid-copy
    shutil.rmtree(folder / "15" / "description")
    (folder / "notes.txt").write_text("not a checkpoint, no warning")
    with Checkpoints(tmp_path) as checkpoints:
        with caplog.at_level(logging.WARNING):
            assert checkpoints.latest_step() == 6
            assert checkpoints.steps() == [3, 6]
        warned = [record.getMessage() for record in caplog.records]
        assert len(warned) == 3  # each once
        for name, message in zip(("12.orbax-checkpoint-tmp", "15", "9"), warned, strict=True):
            assert message.startswith(f"Skipping {folder / name}: ")
        # The same steps can be saved over them, and what Orbax left is cleared away.
        for step in (9, 12):
            assert save(checkpoints, step, make_state(mesh, step))
        checkpoints.wait()
        assert checkpoints.steps() == [6, 9, 12]
        for step in (9, 12):
            state = checkpoints.restore(step, abstract(make_state(mesh), mesh))[0]
            assert_same(state, make_state(mesh, step))
    assert not (folder / "12.orbax-checkpoint-tmp").exists()
    assert not (folder / "9" / "rubble").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_files_are_one_clear_error(tmp_path, run, mesh):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    for file in (tmp_path / "checkpoints" / "6" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(UserError, match="checkpoints/6 can't be read .* older one") as caught:
        Checkpoints(tmp_path).restore(6, abstract(make_state(mesh), mesh))
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()  # Orbax's abandoned event loop complains; here, not in a test that comes later


# Errors.


def test_mismatch_names_the_parameters(run, mesh):
    checkpoints = Checkpoints(run)
    wanted = abstract(make_state(mesh, width=4), mesh)
    del wanted["params"]["decoder"]
    wanted["params"]["extra"] = wanted["step"]
    with pytest.raises(UserError) as caught:
        checkpoints.restore(6, wanted)
    message = str(caught.value)
    assert "\n" not in message
    assert "missing: params/extra; unexpected: params/decoder/norm/scale; " in message
    assert "params/encoder/wo/kernel is float32[8,8], expected float32[8,4]" in message
    assert "opt_state/1/mu/encoder/wo/kernel is" in message
    assert "and 1 more" in message


def test_mismatch_is_found_before_any_array_is_read(tmp_path, run, mesh):
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    for file in (tmp_path / "checkpoints" / "6" / "state").rglob("*"):
        if file.is_file():
            file.unlink()
    wanted = abstract(make_state(mesh), mesh)
    wanted["step"] = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    with pytest.raises(UserError, match=r"step is int32\[\], expected float32\[\]"):
        Checkpoints(tmp_path).restore(6, wanted)


def test_step_not_there(run, tmp_path, mesh):
    with pytest.raises(UserError, match=r"No checkpoint of step 5 in .*: it holds 3, 6\."):
        Checkpoints(run).restore(5, {})
    with pytest.raises(UserError, match="it holds no finished checkpoint"):
        Checkpoints(tmp_path).restore(5, {})


def test_shardings_are_required(run, mesh):
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_state(mesh))
    with pytest.raises(UserError, match="has no sharding"):
        Checkpoints(run).restore(6, wanted)


# Parameters only.


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/6"])
def test_restore_params(run, mesh, inside):
    params = make_state(mesh, 6)["params"]
    assert_same(restore_params(run / inside, abstract(params, mesh_of(2, 4))), params)


def test_restore_params_by_regex_and_into_another_dtype(run, mesh):
    params = make_state(mesh, 3)["params"]
    wanted = abstract(params, mesh)
    scale = wanted["decoder"]["norm"]["scale"]
    wanted["decoder"]["norm"]["scale"] = jax.ShapeDtypeStruct(
        scale.shape, jnp.float32, sharding=scale.sharding
    )
    wanted["encoder"] = {"new": scale}  # no business of this pattern
    got = restore_params(run / "checkpoints" / "3", wanted, include="^decoder/")
    assert_same(
        got,
        {"decoder": {"norm": {"scale": params["decoder"]["norm"]["scale"].astype(jnp.float32)}}},
    )


def test_restore_params_errors(run, tmp_path, mesh):
    wanted = abstract(make_state(mesh)["params"], mesh)
    with pytest.raises(UserError, match="include='encodr' matches none .* encoder/wo/kernel"):
        restore_params(run, wanted, include="encodr")
    with pytest.raises(UserError, match=r"'\(' isn't a regular expression"):
        restore_params(run, wanted, include="(")
    del wanted["decoder"]
    with pytest.raises(UserError, match="unexpected: decoder/norm/scale"):
        restore_params(run, wanted)
    with pytest.raises(UserError, match="doesn't exist"):
        restore_params(tmp_path / "none", wanted)
    with pytest.raises(UserError, match="neither a finished checkpoint nor a run's folder"):
        restore_params(tmp_path, wanted)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="a run's folder without a finished checkpoint"):
        restore_params(tmp_path, wanted)


# Other processes.


def start(script: str, *arguments) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_kill_while_saving(tmp_path, mesh):
    """Whatever moment SIGKILL chooses, the newest whole checkpoint restores bit for bit."""
    writer = """
        import sys
        import numpy as np
        from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints
        import jax
        checkpoints = Checkpoints(sys.argv[1], CheckpointConfig(period=1))
        step = checkpoints.latest_step() or 0
        while True:
            step += 1
            state = {"params": {"w": jax.numpy.full((512, 512), step)}}
            checkpoints.save(step, state, data_position=np.full((2, 2), step), description={})
    """
    wanted = {
        "params": {
            "w": jax.ShapeDtypeStruct(
                (512, 512), jnp.int32, sharding=NamedSharding(mesh, P("data"))
            )
        }
    }
    previous = 0
    for delay in (0.0, 0.03, 0.07):
        process = start(writer, tmp_path)
        wait_until(
            lambda: process.poll() or any(s > previous for s in Checkpoints(tmp_path).steps())  # noqa: B023
        )
        assert process.poll() is None
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        checkpoints = Checkpoints(tmp_path)
        previous = checkpoints.latest_step()
        state, position, _ = checkpoints.restore(previous, wanted)
        assert (np.asarray(state["params"]["w"]) == previous).all()
        assert (position == previous).all()


@pytest.mark.slow
def test_two_processes(tmp_path):
    script = """
        import sys
        import jax
        import numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints
        jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        sharding = NamedSharding(mesh, P("data"))
        values = np.arange(32, dtype=np.float32).reshape(8, 4)
        w = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
        state = {"params": {"w": w}}
        position = np.arange(8).reshape(4, 2)
        with Checkpoints(sys.argv[1], CheckpointConfig(keep_latest=1)) as checkpoints:
            assert checkpoints.latest_step() is None
            for step in (5, 10):
                assert checkpoints.save(step, state, data_position=position, description={})
            checkpoints.wait()
            assert checkpoints.steps() == [10] and checkpoints.latest_step() == 10
            wanted = {"params": {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding)}}
            state, found, _ = checkpoints.restore(10, wanted)
        for shard in state["params"]["w"].addressable_shards:
            assert shard.data.shape == (2, 4)
            assert (np.asarray(shard.data) == values[shard.index]).all()
        assert (found == position).all()
        print("restored")
    """
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(script, tmp_path, port, index) for index in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert "restored" in output


def test_the_cause_of_a_failed_save_is_in_the_systems_words():
    """Whatever tensorstore puts before it: paths, specs in JSON with colons and quotes."""
    error = ValueError(
        "RESOURCE_EXHAUSTED: Error writing {'driver': 'zarr3', 'origin': [0,0]}}'] "
        "[os_error_code='28'] [source locations='a.cc:12']"
    )
    assert _cause(error) == "No space left on device (ENOSPC)"
    assert _cause(OSError(28, "No space left on device", "a")).endswith("device: 'a'")
    assert _cause(ValueError("two\nlines")) == "ValueError: two"
