"""`t5x_lite convert` there and back, and runs that start from other programs' weights."""

import json
import re
import shlex
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

import t5x_lite as tl
from t5x_lite import cli, config
from t5x_lite.interop import huggingface, pretrained, runs
from t5x_lite.models.model import Model
from t5x_lite.training import verification

GOLDEN = Path(__file__).parent.parent / "golden" / "huggingface"
GIN = f"""{tiny.GIN}
TEXT = "text.txt"
TOTAL_STEPS = 2
MODEL_DIR = "run"
train.num_samples = 0
train.initial_checkpoint = "start"
CheckpointConfig.export_every = 2
"""


@pytest.fixture(autouse=True)
def fresh():
    with config.fresh():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that started from a folder of Hugging Face, and that folder, "start"."""
    folder = tmp_path_factory.mktemp("convert")
    (folder / "text.txt").write_text("\n".join(d["text"] for d in tiny.documents()))
    (folder / "tiny.gin").write_text(GIN)
    with config.fresh(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bindings = ["TransformerConfig.vocab_size=384", "train.model=%MODEL"]
        config.parse(["models/t5_1_1_tiny.gin"], bindings, root="train.model")
        model = Model(config.evaluate("train.model"))
        params = jax.jit(model.init)(jax.random.key(3))
        tl.save_pretrained(folder / "start", model, params, tl.ByteVocabulary())
        config.clear()
        assert cli.main(["train", "--gin_file=tiny.gin"]) == 0
    return folder


def weights(folder) -> dict[str, np.ndarray]:
    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and one[k].tobytes() == other[k].tobytes() for k in one
    )


@pytest.mark.parametrize("name", ["t5_1_1", "gpt2", "qwen3", "mixtral"])
def test_there_and_back(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", f"--from={GOLDEN / name}", "--to=ours"]) == 0
    assert "(t5x_lite)" in capsys.readouterr().out
    assert cli.main(["convert", "--from=ours", "--to=theirs"]) == 0
    assert same(weights(tmp_path / "theirs"), weights(GOLDEN / name))
    # and what it wrote about the model is gin
    config.parse(["ours/model.gin"], ["train.model=%MODEL"], root="train.model")
    assert config.evaluate("train.model") == huggingface.read(GOLDEN / name).config


def test_a_run_starts_from_a_folder_of_hugging_face(folder):
    """Two steps of AdamW move a parameter by at most about the learning rate each."""
    before = weights(folder / "start")
    assert cli.main(["convert", f"--from={folder / 'run'}", f"--to={folder / 'after'}"]) == 0
    after = weights(folder / "after")
    moved = {k: np.abs(after[k] - before[k]).max() for k in before}
    assert 0 < max(moved.values()) < 0.01
    # exported in half precision it is rounded, once
    half = ["convert", f"--from={folder / 'run/checkpoints/2'}", f"--to={folder / 'half'}"]
    assert cli.main([*half, "--dtype=bfloat16"]) == 0
    for key, value in weights(folder / "half").items():
        np.testing.assert_array_equal(value, after[key].astype(value.dtype))
    # the vocabulary came from the run's configuration
    settings = json.loads((folder / "after/tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "ByT5Tokenizer"
    model, params, vocabulary = tl.from_pretrained(folder / "after")
    assert vocabulary == tl.ByteVocabulary()
    restored = tl.from_pretrained(folder / "run")[1]
    jax.tree.map(np.testing.assert_array_equal, params, restored)


def test_the_run_has_exported_itself(folder):
    """While it ran, a process of its own did what the command does now."""
    assert [p.name for p in (folder / "run/exports").iterdir()] == ["2"]
    assert cli.main(["convert", f"--from={folder / 'run'}", f"--to={folder / 'again'}"]) == 0
    for file in (folder / "again").iterdir():
        assert (folder / "run/exports/2" / file.name).read_bytes() == file.read_bytes()


def test_infer_reads_a_folder_of_hugging_face(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    tl.save_pretrained("exported", *tl.from_pretrained("run"))

    def predicted(checkpoint: str) -> dict:
        flags = ["infer", "--gin_file=run/config.gin", "--prompt=the quick<extra_id_0>"]
        assert cli.main([*flags, f"--checkpoint={checkpoint}"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    assert predicted("exported") == predicted("2")


def test_a_run_of_another_model_does_not_start(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    flags = ["train", "--gin_file=tiny.gin", "--gin.MODEL_DIR='other'"]
    assert cli.main([*flags, "--gin.TransformerConfig.norm_epsilon=0.1"]) == 2
    error = capsys.readouterr().err
    assert "norm_epsilon is 0.1 here and 1e-06 there" in error


def test_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = f"--from={GOLDEN / 'llama'}"
    (tmp_path / "there").mkdir()
    for flags, said in [
        ([source, "--to=there"], "there exists already"),
        (["--from=nowhere", "--to=new"], "nowhere doesn't exist"),
        ([source, "--to=new", "--vocabulary=bytes"], "has 384 ids and the embedding only 61 rows"),
        ([source, "--to=new", "--vocabulary=v.model"], "no such file"),
        ([source, "--to=new", "--config=models/t5_1_1_tiny.gin"], "has a config.json"),
        ([source, "--to=new", "--dtype=int8"], "int8"),
        ([source], "--to"),
    ]:
        assert cli.main(["convert", *flags]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_shards_and_an_index_when_it_is_large(tmp_path):
    folder = huggingface.read(GOLDEN / "gpt2")
    shapes = huggingface.shapes_of(folder.config)
    tensors = folder.parameters(shapes)
    huggingface.write(
        tmp_path / "out", folder.config, lambda n: tensors[n].all(), shapes, shard_bytes=12_000
    )
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(p.stat().st_size < 16_000 for p in (tmp_path / "out").glob("*.safetensors"))
    assert same(weights(tmp_path / "out"), weights(GOLDEN / "gpt2"))
    again = huggingface.read(tmp_path / "out")
    assert again.config == folder.config


def test_nothing_but_what_is_asked_for_is_read(monkeypatch):
    """A device that holds one layer reads one layer of the file, and one half of a matrix."""
    folder = huggingface.read(GOLDEN / "llama")
    read = []

    def counting(tensor):
        def part(index):
            found = tensor.read(index)
            read.append(found.size)
            return found

        return tensor._replace(read=part)

    folder = folder._replace(tensors={n: counting(t) for n, t in folder.tensors.items()})
    tensors = folder.parameters(huggingface.shapes_of(folder.config))
    wi = tensors["decoder/layers/mlp/wi_0/kernel"]  # [2, 20, 28]
    found = wi.read((slice(1, 2), slice(0, 20), slice(14, 28)))
    assert found.shape == (1, 20, 14) and sum(read) == 20 * 14
    theirs = weights(GOLDEN / "llama")["model.layers.1.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(found[0], theirs.T[:, 14:])


def test_an_export_lets_a_parameter_go_before_it_reads_the_next(tmp_path):
    folder = huggingface.read(GOLDEN / "t5_1_1")
    shapes = huggingface.shapes_of(folder.config)
    tensors, alive = folder.parameters(shapes), []

    def read(name):
        assert not [ref for ref in alive if ref() is not None]
        value = tensors[name].all().copy()  # which owns its memory, so that views keep it
        alive.append(weakref.ref(value))
        return value

    huggingface.write(tmp_path / "out", folder.config, read, shapes)
    assert len(alive) == len(shapes)


def test_nothing_of_a_file_stays_mapped():
    folder = huggingface.read(GOLDEN / "gpt2")
    values = {name: tensor.all() for name, tensor in folder.tensors.items()}
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert ".safetensors" not in maps.read_text()
    for name, value in values.items():
        np.testing.assert_array_equal(value, weights(GOLDEN / "gpt2")[name])
        assert value.ctypes.data % 64 == 0  # what JAX takes without a copy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_checksum_by_stretches_is_the_one_of_the_trainer(dtype, monkeypatch):
    monkeypatch.setattr(runs, "_STRETCH", 100)
    value = np.asarray(jax.random.normal(jax.random.key(0), (7, 9, 11)).astype(dtype))
    wanted, _ = verification.checksums({"x": jax.numpy.asarray(value)})
    assert runs.checksum(value) == (wanted["x"], True)
    value = value.copy()
    value[6, 8, 10] = np.inf
    assert runs.checksum(value)[1] is False


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, dtype):
    model, params, _ = tl.from_pretrained(GOLDEN / "llama")
    tl.save_pretrained(tmp_path / "bad", model, params, dtype=dtype)
    value = weights(tmp_path / "bad")["model.layers.1.mlp.up_proj.weight"]
    file = tmp_path / "bad/model.safetensors"
    bad = value.copy()
    bad[3, 5] = -np.inf
    data = file.read_bytes()
    assert data.count(value.tobytes()) == 1
    file.write_bytes(data.replace(value.tobytes(), bad.tobytes()))
    source = pretrained.open_source(tmp_path / "bad")
    said = (
        r"model\.layers\.1\.mlp\.up_proj\.weight in .*model\.safetensors isn't finite: -inf at \["
    )
    for kind in ("t5x_lite", "huggingface"):
        with pytest.raises(tl.UserError, match=said):
            pretrained.convert(source, tmp_path / "out", kind)
        assert not (tmp_path / "out").exists()
    with pytest.raises(tl.UserError, match=said):
        tl.from_pretrained(tmp_path / "bad")
    params["decoder"]["decoder_norm"]["scale"] = params["decoder"]["decoder_norm"]["scale"] * np.nan
    with pytest.raises(tl.UserError, match="model.norm.weight as float32 isn't finite: nan"):
        tl.save_pretrained(tmp_path / "nan", model, params)
    assert not (tmp_path / "nan").exists()


def test_values_too_large_for_a_dtype_are_refused_by_name(tmp_path):
    model, params, _ = tl.from_pretrained(GOLDEN / "llama")
    params["decoder"]["decoder_norm"]["scale"] = params["decoder"]["decoder_norm"]["scale"] + 7e4
    with pytest.raises(tl.UserError, match="model.norm.weight as float16 isn't finite: inf at"):
        tl.save_pretrained(tmp_path / "half", model, params, dtype="float16")
    tl.save_pretrained(tmp_path / "whole", model, params)
    with pytest.raises(tl.UserError, match="decoder/decoder_norm/scale of .* as float16 isn't"):
        tl.from_pretrained(tmp_path / "whole", param_dtype="float16")
    with pytest.raises(tl.UserError, match="decoder/decoder_norm/scale of .*isn't finite"):
        source = pretrained.open_source(tmp_path / "whole")
        pretrained.convert(source, tmp_path / "run", "t5x_lite", dtype=np.dtype("float16"))


def test_the_commands_of_the_page_on_exchange_are_commands(monkeypatch):
    text = (Path(tl.__file__).parent.parent / "docs/exchange.md").read_text()
    commands = re.findall(r"^t5x_lite (.*)$", text, flags=re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        cli.parse_args(shlex.split(command))
