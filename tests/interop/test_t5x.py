"""Checkpoints that T5X wrote: read, and refused when they are damaged."""

import gzip
import json
import shutil
import zipfile

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import tensorstore as ts
from golden_files import FOLDER, TINY, load, tiny_model

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.interop import pretrained, t5x
from t5x_lite.models.transformer import unstack_layers
from t5x_lite.training import checkpoint_layout as layout

NATIVE, ORBAX = "t5x_ckpt_tiny", "t5x_ckpt_tiny_orbax"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5x")
    with zipfile.ZipFile(FOLDER / "t5x_checkpoints.zip") as file:
        file.extractall(folder)
    return folder


@pytest.fixture
def copy(golden, tmp_path):
    """A checkpoint to be damaged."""
    return lambda name: shutil.copytree(golden / name / "checkpoint_0", tmp_path / name)


@pytest.mark.parametrize("name", [NATIVE, ORBAX])
def test_what_t5x_wrote_is_read(golden, name):
    model, params, vocabulary = tl.from_pretrained(golden / name, dtype="float32")
    assert vocabulary is None
    assert model.config == TINY  # as guessed from the shapes
    jax.tree.map(np.testing.assert_array_equal, params, tiny_model()[1])


def test_its_logits_are_the_golden_ones(golden):
    model, params, _ = tl.from_pretrained(golden / NATIVE, dtype="float32")
    forward = load("tiny_forward.npz")
    batch = {
        name.removeprefix("padded/batch/"): jnp.asarray(value)
        for name, value in forward.items()
        if name.startswith("padded/batch/")
    }
    logits, _ = jax.jit(model.apply)(params, batch)
    wanted = forward["padded/logits"]
    assert np.abs(logits - wanted).max() < 2e-5 * np.abs(wanted).max()


def write(folder, named, *, chunks=None, compressor=None, dtype="float32"):
    """T5X's own layout, by hand; ``chunks``: how many parts of the first axis."""
    folder.mkdir(parents=True)
    tree = {}
    for name, value in named.items():
        value = np.asarray(value).astype(dtype)
        stored = f"target.{name.replace('/', '.')}"
        shape = list(value.shape)
        size = [-(-shape[0] // (chunks or 1)), *shape[1:]]
        metadata = {"shape": shape, "chunks": size, "compressor": compressor}
        spec = {
            "driver": "zarr",
            "dtype": np.dtype(dtype).name,
            "kvstore": {"driver": "gfile", "path": f"{stored}/"},
            "metadata": metadata,
        }
        array = ts.open(
            {**spec, "kvstore": {"driver": "file", "path": f"{folder / stored}/"}}, create=True
        ).result()
        array.write(value).result()
        node = tree
        *parents, last = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = spec
    root = {"version": 3, "optimizer": {"target": tree, "state": {"step": 0}}}
    (folder / "checkpoint").write_bytes(msgpack.packb(root))
    return folder


def unrolled() -> dict[str, np.ndarray]:
    return {n: np.asarray(v) for n, v in layout.by_name(unstack_layers(tiny_model()[1])).items()}


@pytest.mark.parametrize(
    "compressor", [None, {"id": "gzip", "level": 1}, {"id": "zstd", "level": 1}]
)
def test_chunks_of_several_devices(tmp_path, compressor):
    write(tmp_path / "checkpoint_7", unrolled(), chunks=5, compressor=compressor)
    _, params, _ = tl.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, tiny_model()[1])


def test_half_precision(tmp_path):
    write(tmp_path / "checkpoint_7", unrolled(), dtype=jnp.bfloat16)
    assert pretrained.open_source(tmp_path).dtype == jnp.bfloat16
    _, params, _ = tl.from_pretrained(tmp_path)
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tiny_model()[1])
    jax.tree.map(np.testing.assert_array_equal, params, rounded)


def scalable(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As T5X's scalable models keep them: layers on axis 1, heads apart."""
    out = {}
    for name, value in named.items():
        if "layers/" not in name:
            out[name] = value
            continue
        stack, inner = name.split("/layers/")
        value = np.moveaxis(value, 0, 1)
        if inner.endswith(("query/kernel", "key/kernel", "value/kernel")):
            value = value.reshape(*value.shape[:2], 4, 8)
        elif inner.endswith("out/kernel"):
            value = np.moveaxis(value.reshape(4, 8, *value.shape[1:]), 1, 2)
        out[f"{stack}/{stack}/{inner}"] = value
    return out


def test_scanned_layers(tmp_path):
    named = {n: np.asarray(v) for n, v in layout.by_name(tiny_model()[1]).items()}
    write(tmp_path / "checkpoint_1", scalable(named), chunks=2)
    model, params, _ = tl.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, tiny_model()[1])
    assert model.config.num_encoder_layers == 2


def test_the_newest_step_is_taken(golden, tmp_path):
    for step in ("3", "20"):
        shutil.copytree(golden / NATIVE / "checkpoint_0", tmp_path / f"checkpoint_{step}")
    (tmp_path / "checkpoint_100.tmp-1234").mkdir()
    assert t5x.find(tmp_path).name == "checkpoint_20"


# ------------------------------------------------------------------------------------- damage


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        tl.from_pretrained(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


WI = "target.encoder.layers_1.mlp.wi_0.kernel"


@pytest.mark.parametrize("name", [NATIVE, ORBAX])
def test_damaged_files_are_named(copy, name):
    folder = copy(name)
    files = [folder / "checkpoint", folder / WI / "0.0", folder / WI / ".zarray"]
    if name == ORBAX:
        files = [folder / "state/_METADATA", folder / "state/manifest.ocdbt"]
    for file in files:
        file.chmod(0o644)
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        said = refusal(folder)
        assert "damaged" in said or "no JSON" in said
        # an Orbax store is one: what it says is which array, and where
        assert (file.name in said) or (WI in said) or ("target." in said), said
        file.write_bytes(data)


def test_a_missing_chunk_is_no_zeros(copy):
    folder = copy(NATIVE)
    (folder / WI / "0.0").unlink()
    said = refusal(folder)
    assert WI in said and "0.0 is missing" in said


def test_a_chunk_of_another_length(copy):
    folder = copy(NATIVE)
    (folder / WI / "0.0").chmod(0o644)
    (folder / WI / "0.0").write_bytes(gzip.compress(bytes(100)))
    assert WI in refusal(folder)


def test_versions_and_tensorflow(copy):
    folder = copy(NATIVE)
    file = folder / "checkpoint"
    file.chmod(0o644)
    root = msgpack.unpackb(file.read_bytes(), ext_hook=msgpack.ExtType, strict_map_key=False)
    file.write_bytes(msgpack.packb(root | {"version": 2}))
    assert "version 2, expected 3" in refusal(folder)
    file.write_bytes(b"model_checkpoint_path: 'model.ckpt-1'")
    assert "TensorFlow" in refusal(folder)
    file.write_bytes(msgpack.packb({"version": 3, "optimizer": {"target": {}}}))
    assert "no parameters" in refusal(folder)


def test_a_model_of_another_shape(golden):
    with pytest.raises(UserError, match="unexpected .*layers_1"):
        config = dict(num_decoder_layers=1)
        import dataclasses

        tl.from_pretrained(golden / NATIVE, config=dataclasses.replace(TINY, **config))


def test_a_run_starts_from_it_and_reads_parts_only(golden):
    model, params = tiny_model()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[1])
        ),
        params,
    )
    found = pretrained.restore_params(
        golden / NATIVE, abstract, "^encoder/.*mlp", model=model.config
    )
    assert found.keys() == {"encoder"}
    mlp = found["encoder"]["layers"]["mlp"]
    np.testing.assert_array_equal(
        mlp["wo"]["kernel"], params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    )
    assert mlp["wo"]["kernel"].devices() == {jax.devices()[1]}
    assert json.dumps(sorted(mlp)) == '["wi_0", "wi_1", "wo"]'
