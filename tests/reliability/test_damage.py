"""Damaged checkpoints, full disks, states that aren't finite."""

import contextlib
import errno
import json
import logging
import os
import random
import resource
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite import evidence
from t5x_lite.errors import Unreadable, UserError
from t5x_lite.parallel.mesh import MeshConfig, make_mesh
from t5x_lite.training import put_aside, verification
from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints, SaveError, restore_params
from t5x_lite.training.recovery import restore_newest, save_surely

MESH = make_mesh(MeshConfig(data=4, fsdp=2))
POSITION = np.arange(12).reshape(4, 3) + 2**40


ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()


def placed(x, spec=ROWS):
    return jax.device_put(x, NamedSharding(MESH, spec if x.ndim else WHOLE))


def state(seed: int, rows: int = 512):
    rng = np.random.default_rng(seed)
    values = {"w": rng.normal(size=(rows, 64)).astype(np.float32), "b": np.ones(8, np.float32)}
    moments = jax.tree.map(lambda x: (x * 0.1).astype(jnp.bfloat16), values)
    tree = {"params": values, "opt_state": {"mu": moments}, "step": np.int32(seed)}
    return jax.tree.map(placed, tree)


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
)


def save(checkpoints, step, **changes):
    return checkpoints.save(
        step, state(step), data_position=POSITION, description={"note": step}, **changes
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            assert save(checkpoints, step, metrics={"loss": 1.0 / step})
    return folder


@pytest.fixture
def run(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "run")
    return tmp_path / "run"


def same(left, right):
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def files_of(run, step):
    return sorted(f for f in (run / "checkpoints" / str(step)).rglob("*") if f.is_file())


def values_file(run, step):
    return max(files_of(run, step), key=lambda f: f.stat().st_size)


def flip(file, places):
    data = bytearray(file.read_bytes())
    for place in places:
        data[place % len(data)] ^= 1 << (place % 8)
    file.write_bytes(data)


# ------------------------------------------------------------------------------------ checksums


@given(
    shape=st.sampled_from([(), (1,), (7,), (3, 5), (2, 3, 4)]),
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint8", "bool"]),
    place=st.integers(0, 10**6),
    bit=st.integers(0, 31),
)
@settings(deadline=None, max_examples=60)
def test_any_change_of_one_element_changes_the_checksum(shape, dtype, place, bit):
    size, width = int(np.prod(shape)), jnp.dtype(dtype).itemsize
    raw = np.random.default_rng(0).integers(0, 2, size * width).astype(np.uint8)
    changed = raw.copy()
    if dtype == "bool":
        changed[place % size] ^= 1
    else:
        changed[(place % size) * width + (bit // 8) % width] ^= 1 << (bit % 8)
    first, second = (x.view(jnp.dtype(dtype)).reshape(shape) for x in (raw, changed))
    sums, _ = verification.checksums({"a": first, "b": second, "c": first})
    assert sums["a"] == sums["c"] != sums["b"]


def test_the_checksum_does_not_depend_on_the_mesh_but_on_the_order():
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    expected = verification.checksums({"x": x})[0]
    for spec in (PartitionSpec("data"), PartitionSpec("fsdp", "data"), PartitionSpec()):
        assert verification.checksums({"x": placed(x, spec)})[0] == expected
    assert verification.checksums({"x": x[::-1]})[0] != expected


# ------------------------------------------------------------------------------------ damage


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_to_a_file_nothing_wrong_is_restored(run, seed):
    """Bit flips, cuts, deletions and zeros in any file of the newest checkpoint."""
    rng = random.Random(seed)
    kind = ("flip", "truncate", "delete", "zeros")[seed % 4]
    file = values_file(run, 3) if seed % 3 == 0 else rng.choice(files_of(run, 3))
    size = file.stat().st_size
    if kind == "flip":
        flip(file, [rng.randrange(max(size, 1)) for _ in range(rng.choice((1, 8)))] if size else [])
    elif kind == "truncate":
        os.truncate(file, rng.randrange(size) if size else 0)
    elif kind == "delete":
        file.unlink()
    else:
        file.write_bytes(bytes(size))
    checkpoints = Checkpoints(run)
    found = restore_newest(checkpoints, ABSTRACT)
    assert found.step in (2, 3) and same(found.state, state(found.step))
    assert (found.position == POSITION).all() and found.description == {"note": found.step}
    kept = list((run / "checkpoints").glob("damaged/*"))
    assert len(kept) == (found.step == 2)
    with checkpoints:  # and the run can be saved on
        assert save(checkpoints, 4)
        checkpoints.wait()
    assert restore_newest(Checkpoints(run), ABSTRACT).step == 4
    assert list((run / "checkpoints").glob("damaged/*")) == kept


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_wrong_is_named(run, caplog):
    flip(values_file(run, 3), [5000])
    shutil.rmtree(run / "checkpoints" / "2" / "state")
    assert restore_newest(Checkpoints(run), ABSTRACT).step == 1
    text = caplog.text
    assert f"{run}/checkpoints/3 " in text and "checkpoints/damaged/3; going on" in text
    assert "lacks parts" in text and "checkpoints/damaged/2" in text
    assert sorted(p.name for p in (run / "checkpoints" / "damaged").iterdir()) == ["2", "3"]


def test_values_that_changed_on_the_way_are_named(run):
    """As a codec, a network or a disk that lies would change them: files are whole."""
    file = run / "checkpoints" / "3" / "description" / "data.json"
    record = json.loads(file.read_text())
    record.pop("crc32")
    record["checksums"]["params/w"] ^= 1
    file.write_text(json.dumps(verification.seal(record)))
    with pytest.raises(verification.Damaged, match=r"damaged: params/w \(of 5 arrays\)"):
        Checkpoints(run).restore(3, ABSTRACT)
    with pytest.raises(verification.Damaged, match=r"damaged: params/w \(of 2 arrays\)"):
        restore_params(run, ABSTRACT["params"])
    record["note"] = "changed without a new seal"
    file.write_text(json.dumps(verification.seal(record) | {"step": 7}))
    with pytest.raises(verification.Damaged, match="data.json isn't what was saved"):
        Checkpoints(run).restore(3, ABSTRACT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_a_sound_checkpoint_there_is_no_silent_new_start(run):
    for step in (1, 2, 3):
        values_file(run, step).write_bytes(b"")
    for _ in range(2):  # nothing is moved, so the second start is told the same
        with pytest.raises(UserError, match="no sound checkpoint is left in .*checkpoints/3 .* mv"):
            restore_newest(Checkpoints(run), ABSTRACT)
        assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["1", "2", "3"]


@pytest.mark.parametrize("left", ["without parts", "set aside"])
def test_where_checkpoints_were_no_run_begins_at_step_0_by_itself(run, left):
    folder = run / "checkpoints"
    for name in ("1", "2"):
        shutil.rmtree(folder / name)
    if left == "without parts":
        shutil.rmtree(folder / "3" / "state")
    else:
        (folder / "damaged").mkdir()
        (folder / "3").rename(folder / "damaged" / "3")
    before = sorted(str(p) for p in folder.rglob("*"))
    with pytest.raises(UserError, match=f"no sound checkpoint is left in {folder}"):
        restore_newest(Checkpoints(run), ABSTRACT)
    assert sorted(str(p) for p in folder.rglob("*")) == before
    folder.rename(run / "checkpoints.damaged")  # as the message says
    assert restore_newest(Checkpoints(run), ABSTRACT) is None


@contextlib.contextmanager
def failing_opens(match, number, times=10**9):
    """Opening a file under checkpoints/ whose path has ``match`` fails with this error."""
    left = [times]

    def hook(event, arguments):
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        path = os.fsdecode(arguments[0])
        if left[0] > 0 and match in path and "checkpoints/" in path:
            left[0] -= 1
            raise OSError(number, os.strerror(number), path)

    sys.addaudithook(hook)  # it stays, and does nothing more
    try:
        yield left
    finally:
        left[0] = 0


FILES = ["3/_CHECKPOINT_METADATA", "2/metrics/metrics", "3/description/data.json"]


@pytest.mark.parametrize("match", FILES)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_an_error_of_the_disk_that_passes_costs_nothing(run, monkeypatch, match, number):
    monkeypatch.setattr(evidence.time, "sleep", lambda _: None)
    with failing_opens(match, number, times=2) as left:
        assert restore_newest(Checkpoints(run), ABSTRACT).step == 3
        assert left[0] == 0
    assert not (run / "checkpoints" / "damaged").exists()


@pytest.mark.parametrize("match", [*FILES, "_CHECKPOINT_METADATA", "_METADATA", "description"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_an_error_of_the_disk_that_stays_moves_nothing(run, monkeypatch, match, number):
    monkeypatch.setattr(evidence.time, "sleep", lambda _: None)
    before = sorted(str(p) for p in run.rglob("*"))
    with failing_opens(match, number), pytest.raises(Unreadable) as raised:
        restore_newest(Checkpoints(run), ABSTRACT)
    text = str(raised.value)
    assert match in text and errno.errorcode[number] in text and "\n" not in text
    assert sorted(str(p) for p in run.rglob("*")) == before
    assert restore_newest(Checkpoints(run), ABSTRACT).step == 3


def test_values_that_cannot_be_read_now_move_nothing(run, monkeypatch):
    monkeypatch.setattr(evidence.time, "sleep", lambda _: None)
    file = values_file(run, 3)
    file.rename(run / "kept")
    file.symlink_to(file)  # ELOOP: what opening it gives, whoever asks
    with pytest.raises(Unreadable, match=f"{file} can't be read now: .*ELOOP"):
        restore_newest(Checkpoints(run), ABSTRACT)
    file.unlink()
    (run / "kept").rename(file)
    assert restore_newest(Checkpoints(run), ABSTRACT).step == 3


def test_the_disk_behind_an_error_of_tensorstore():
    said = "UNKNOWN: Error reading local file \"x\": Failed to open [os_error_code='%s']"
    assert evidence.system_error(ValueError(said % "5")) is not None
    assert evidence.system_error(ValueError(said % "ESTALE")) is not None
    assert evidence.system_error(ValueError(said % "2")) is None
    assert evidence.system_error(ValueError(said % "ENOENT")) is None
    assert evidence.system_error(ValueError("CRC-32C mismatch")) is None
    wrapped = ValueError("loading failed")
    wrapped.__cause__ = OSError(errno.ESTALE, "Stale file handle")
    assert evidence.system_error(wrapped) is wrapped.__cause__


def test_what_a_kill_in_retention_leaves_is_no_damage(run, caplog):
    checkpoints = Checkpoints(run)
    put_aside.note_leaving(checkpoints.folder, [1, 2])
    shutil.rmtree(run / "checkpoints" / "1" / "state")  # and killed here, before 2
    assert restore_newest(checkpoints, ABSTRACT).step == 3
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "3"]
    assert [r.message for r in caplog.records if r.name.startswith("t5x_lite")] == []


def test_a_checkpoint_of_another_model_is_not_taken_for_a_damaged_one(run):
    other = {**ABSTRACT, "step": jax.ShapeDtypeStruct((), np.float32, sharding=MESH_WHOLE)}
    with pytest.raises(UserError, match="doesn't fit this model"):
        restore_newest(Checkpoints(run), other)
    assert Checkpoints(run).steps() == [1, 2, 3]


MESH_WHOLE = NamedSharding(MESH, PartitionSpec())


# ------------------------------------------------------------------------------------ saving


@contextlib.contextmanager
def no_room(bytes_left: int = 1000):
    """Files of this process can't grow beyond some bytes: the nearest to a full disk there is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_costs_a_warning_and_nothing_else(run, caplog, asynchronous):
    with Checkpoints(run, CheckpointConfig(asynchronous=asynchronous, keep_latest=3)) as saving:
        with no_room():
            started = save(saving, 4)
            assert started or not asynchronous
            with pytest.raises(SaveError, match="step 4 couldn't be saved"):
                saving.wait()
        assert [r for r in caplog.records if r.name == "absl" and r.exc_info] == []
        assert "step 4 NOT SAVED" in caplog.text and "step 3 as the last good" in caplog.text
        assert Checkpoints(run).steps() == [1, 2, 3]
        assert same(Checkpoints(run).restore(3, ABSTRACT)[0], state(3))
        assert save(saving, 5)  # the next period's attempt
        saving.wait()
    assert Checkpoints(run).steps() == [2, 3, 5]
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["2", "3", "5"]


def test_the_last_save_is_tried_again(run):
    room = contextlib.ExitStack()
    with Checkpoints(run) as checkpoints:
        room.enter_context(no_room())
        waited = []

        def sleep(seconds):
            waited.append(seconds)
            if len(waited) == 2:
                room.close()

        save_surely(lambda: save(checkpoints, 4), checkpoints, sleep)
        assert waited == [1, 3] and Checkpoints(run).steps()[-1] == 4
        with no_room(), pytest.raises(SaveError):
            save_surely(lambda: save(checkpoints, 5), checkpoints, lambda _: None)


def test_a_state_that_is_not_finite_is_not_saved(run):
    broken = state(4)
    broken["opt_state"]["mu"]["w"] = broken["opt_state"]["mu"]["w"].at[3, 5].set(jnp.nan)
    with Checkpoints(run) as checkpoints:
        with pytest.raises(FloatingPointError, match="step 4 is not saved: opt_state/mu/w"):
            checkpoints.save(4, broken, data_position=None, description={})
        assert Checkpoints(run).steps() == [1, 2, 3]


def test_reading_is_tried_again_when_a_store_has_a_bad_moment(run, monkeypatch, caplog):
    from orbax.checkpoint import v1 as ocp

    from t5x_lite import retry

    load, calls = ocp.load_checkpointables, []

    def unreliable(*args, **kwargs):
        calls.append(args)
        if len(calls) < 3:
            raise ValueError("UNAVAILABLE: connection lost")
        return load(*args, **kwargs)

    monkeypatch.setattr(ocp, "load_checkpointables", unreliable)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert restore_newest(Checkpoints(run), ABSTRACT).step == 3
    assert len(calls) == 3
