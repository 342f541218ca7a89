"""Files that nobody would write: each is read, or refused in one line; nothing else happens.

FUZZ_EXAMPLES sets how many inputs of each kind are tried (default 60).
"""

import json
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_lite import config
from t5x_lite.data import vocabulary
from t5x_lite.data.sentencepiece_training import train_sentencepiece
from t5x_lite.data.tables import JsonLines
from t5x_lite.errors import UserError
from t5x_lite.training.checkpoints import Checkpoints
from t5x_lite.training.recovery import restore_newest
from t5x_lite.training.trackers import read_json_lines

many = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=20_000,  # ms: a hang is a failure
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MEMORY = 1 << 30  # bytes that the process may grow while a test tries all its inputs


@pytest.fixture(autouse=True)
def no_blow_up():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def assert_read_or_refused(read):
    """Calls `read`; a UserError must be one line, any other error is a failure."""
    try:
        return read()
    except UserError as error:
        message = str(error).partition("\n  In call to")[0]  # gin says where
        assert message.strip() and "\n" not in message, message
        return None


# ------------------------------------------------------------------------------------ gin

NAMES = ["train", "TransformerConfig", "AdamW", "Task", "TextFiles", "cosine", "nothing", "TASK"]
token = st.sampled_from(
    [*NAMES, "model_dir", "embed_dim", ".", "/", "=", "@", "%", "(", ")", "[", "]", "{", "}", ",",
     ":", "'", '"', '"""', "1", "-1e400", "None", "0x", "\\", "\n", "\n  ", "\t", "#", "include ",
     "import ", "from ", "a.gin", "os", "é", "\x00", "lambda: 0", "__import__('os')"]
)  # fmt: skip


@many
@given(st.lists(token, max_size=30).map("".join) | st.text(max_size=200))
def test_gin_text(tmp_path, text):
    file = tmp_path / "a.gin"
    file.write_text(text, encoding="utf-8", errors="replace")
    with config.fresh():
        assert_read_or_refused(lambda: config.parse([str(file)], root="train"))
        assert_read_or_refused(lambda: config.parse([], [text.replace("\n", " ")], root="train"))


@many
@given(st.binary(max_size=300))
def test_gin_files_of_any_bytes(tmp_path, data):
    (tmp_path / "a.gin").write_bytes(data)
    with config.fresh():
        assert_read_or_refused(lambda: config.parse([str(tmp_path / "a.gin")], root="train"))


# ------------------------------------------------------------------------------------ JSON lines

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
json_line = (
    st.dictionaries(st.sampled_from(["text", "step", "x"]), values).map(json.dumps)
    | st.text(max_size=30)
    | st.integers(2, 3000).map(lambda n: "[" * n)
).map(lambda s: s.encode("utf-8", "surrogatepass"))
lines = st.lists(json_line | st.binary(max_size=30), max_size=8).map(b"\n".join)


@many
@given(lines)
def test_json_lines_as_training_data(tmp_path, data):
    (tmp_path / "a.jsonl").write_bytes(data)

    def read():
        source = JsonLines(str(tmp_path / "a.jsonl"), held_out=0.0, max_bad_records=2)
        return [source[i] for i in range(len(source))]

    for record in assert_read_or_refused(read) or []:
        assert isinstance(record["text"], str)


@many
@given(lines)
def test_json_lines_of_a_run(tmp_path, data):
    (tmp_path / "metrics.jsonl").write_bytes(data + b"\n")
    for record in read_json_lines(tmp_path / "metrics.jsonl"):
        assert isinstance(record["step"], int)


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        state = {"params": {"w": jnp.arange(64.0)}, "step": jnp.int32(1)}
        for step in (1, 2):
            checkpoints.save(step, state, data_position=np.ones((2, 2)), description={"a": 1})
    return folder


def changed(value, draw):
    """A JSON value with one of its parts replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: changed(value[key], draw)}
    return draw(values)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@many
@given(
    name=st.sampled_from(
        ["description/data.json", "_CHECKPOINT_METADATA", "state/_METADATA", "state/_sharding"]
    ),
    data=st.data(),
)
def test_checkpoint_manifests(saved, tmp_path, name, data):
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(saved, run)
    file = run / "checkpoints" / "2" / name
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(st.binary(max_size=100)))
    else:
        file.write_text(json.dumps(changed(json.loads(file.read_text()), data.draw)))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        "params": {"w": jax.ShapeDtypeStruct((64,), jnp.float32, sharding=sharding)},
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding),
    }
    restored = assert_read_or_refused(lambda: restore_newest(Checkpoints(run), wanted))
    if restored is not None:
        np.testing.assert_array_equal(restored.state["params"]["w"], np.arange(64.0))


# ------------------------------------------------------------------------------------ vocabularies


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    texts = [f"the quick brown fox {i} jumps over the lazy dog {i * 7}" for i in range(200)]
    train_sentencepiece(texts, path, 450, extra_ids=10)
    return path.read_bytes()


@many
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 10**6),
    noise=st.none() | st.binary(max_size=200),
)
def test_sentencepiece_files(model_file, tmp_path, flips, cut, noise):
    data = bytearray(model_file if noise is None else noise)
    for place, value in flips if data else []:
        data[place % len(data)] = value
    (tmp_path / "a.model").write_bytes(data[: cut % len(data)] if cut and data else data)

    def read():
        vocabulary_ = vocabulary.SentencePieceVocabulary(tmp_path / "a.model")
        ids = vocabulary_.encode("the fox é 漢 <extra_id_0>")
        assert ((ids >= 0) & (ids < vocabulary_.size)).all()
        vocabulary_.decode([*ids, 0, 1, 2, vocabulary_.size + 5])
        return vocabulary_.byte_lengths

    assert_read_or_refused(read)
