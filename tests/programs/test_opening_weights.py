"""Weights and what belongs to them: their vocabulary, how they read, and a folder that may move."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import t5x_lite as tl
from t5x_lite import cli, config, run_vocabulary
from t5x_lite.data.reading import Reading
from t5x_lite.data.same_vocabulary import Difference, difference
from t5x_lite.data.sentencepiece_training import train_sentencepiece
from t5x_lite.errors import UserError
from t5x_lite.interop import runs
from t5x_lite.interop.origin import Origin, origin_of
from t5x_lite.programs import weights
from t5x_lite.programs.serve import build
from t5x_lite.serve.settings import ServeConfig
from t5x_lite.training import checkpoint_layout as layout
from t5x_lite.training import verification

GIN = """
include "runs/base.gin"
include "optimizers/adamw.gin"
MODEL = @TransformerConfig()
TransformerConfig.architecture = "decoder_only"
TransformerConfig.positions = "rope"
TransformerConfig.scale_attention = True
TransformerConfig.vocab_size = 384
TransformerConfig.embed_dim = 16
TransformerConfig.num_heads = 2
TransformerConfig.head_dim = 8
TransformerConfig.mlp_dim = 16
TransformerConfig.num_decoder_layers = 1
TASK = @Task()
Task.name = "words"
Task.source = @task_data()
task_data.files = "pairs.jsonl"
task_data.held_out = 0.2
Task.objective = @TextToText()
Task.vocabulary = @SentencePieceVocabulary()
SentencePieceVocabulary.path = "v.model"
LENGTHS = {"inputs": 16, "targets": 8}
BATCH_SIZE = 8
TOTAL_STEPS = 1
PEAK_RATE = 0.01
WARMUP_STEPS = 1
MODEL_DIR = "run"
train.eval_batch_count = 1
train.num_samples = 0
"""
BYTES = "--gin.Task.vocabulary=@ByteVocabulary()"
PREFIX = Reading("bidirectional", inputs_eos=True)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(weights, "_said", set())
    with config.fresh():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run in it, which was trained on pairs with a SentencePiece model."""
    folder = tmp_path_factory.mktemp("made")
    texts = [f"word {i} and {i * 7919 % 1000}" for i in range(200)]
    train_sentencepiece(iter(texts), folder / "v.model", 300, extra_ids=20)
    lines = [json.dumps({"inputs": text, "targets": text[::-1][:6]}) + "\n" for text in texts[:60]]
    (folder / "pairs.jsonl").write_text("".join(lines))
    (folder / "my.gin").write_text(GIN)
    with config.fresh(), contextlib.chdir(folder):
        assert cli.main(["train", "--gin_file=my.gin"]) == 0
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def said(*arguments: str, status: int = 0) -> str:
    """What a command prints, on both streams."""
    out = io.StringIO()
    with config.fresh(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        assert cli.main(list(arguments)) == status, out.getvalue()
    return out.getvalue()


# --------------------------------------------------------------------------------- the vocabulary


@pytest.mark.parametrize("verb", ["eval", "infer", "explain"])
def test_another_vocabulary_is_refused_and_can_be_accepted(here, verb):
    arguments = [verb, "--gin_file=run/config.gin", BYTES]
    arguments += {"infer": ["--prompt=word"], "explain": ["run"]}.get(verb, [])
    told = said(*arguments, status=2)
    assert "run/checkpoints/1 is another than the task's: 41 ids stand for other text (id" in told
    name = "evaluate" if verb == "eval" else "infer"
    assert f"{name}.accept_other_vocabulary = True" in told
    if verb != "explain":
        told = said(*arguments, f"--gin.{name}.accept_other_vocabulary=True")
        assert "warning: the vocabulary of " in told and "checkpoints/1 is another" in told
        assert "have learnt of those ids is lost" in told


def test_serve_refuses_it_too(here):
    config.parse(["run/config.gin"], [BYTES.removeprefix("--gin.")], root="infer")
    with pytest.raises(UserError, match="is another than the task's"):
        build("latest", ServeConfig())


def test_a_run_starts_only_with_the_weights_vocabulary(here):
    start = ["train", "--gin_file=my.gin", BYTES, "--gin.MODEL_DIR='second'",
             "--gin.train.initial_checkpoint='run'"]  # fmt: skip
    told = said(*start, status=2)
    assert not Path("second").exists()  # nothing was begun
    assert "decoder/logits_dense/kernel, token_embedder/embedding" in told
    pattern = told.partition("train.initial_params = '")[2].partition("'")[0]
    left_out = said(*start, f"--gin.train.initial_params='{pattern}'")
    assert "starting from run: " in left_out and "warning: the vocabulary" not in left_out
    shutil.rmtree("second")
    accepted = said(*start, "--gin.train.accept_other_vocabulary=True")
    assert "warning: the vocabulary of run is another than the task's" in accepted
    shutil.rmtree("second")


def test_what_is_not_known_is_said_once_and_not_guessed(capsys):
    unknown = Origin("somewhere", None, None, lambda: None)
    for _ in range(2):
        weights.check_vocabulary(unknown, tl.ByteVocabulary(), False, "")
    told = capsys.readouterr().err
    assert told.count("somewhere doesn't say which vocabulary it was trained with") == 1


def test_vocabularies_are_compared_by_what_their_ids_mean(made, tmp_path):
    own = tl.SentencePieceVocabulary(str(made / "v.model"))
    shutil.copy(made / "v.model", tmp_path / "copy.model")
    assert not difference(own, tl.SentencePieceVocabulary(str(tmp_path / "copy.model")))
    more = difference(tl.ByteVocabulary(extra_ids=100), tl.ByteVocabulary())
    assert more.ids and more.more == 25  # sentinels count down from the top
    fewer = difference(tl.ByteVocabulary(), tl.ByteVocabulary(extra_ids=100))
    assert fewer.fewer == 25 and fewer.ids
    assert difference(tl.ByteVocabulary(), tl.ByteVocabulary()) == Difference()


# ---------------------------------------------------------------------------------- a moved run


def test_a_run_goes_wherever_its_folder_goes(made, tmp_path, monkeypatch):
    elsewhere = tmp_path / "b"
    elsewhere.mkdir()
    shutil.copytree(made / "run", elsewhere / "moved")
    monkeypatch.chdir(elsewhere)
    wanted = json.loads(said("infer", f"--gin_file={made}/run/config.gin", "--prompt=word 7"))
    assert wanted == json.loads(said("infer", "--gin_file=moved/config.gin", "--prompt=word 7"))
    assert '"targets"' in said("explain", "moved", "--text=word", "--target=1", "--json")
    _, _, vocabulary = tl.from_pretrained("moved")
    _, _, own = tl.from_pretrained(made / "run")
    assert vocabulary.fingerprint == own.fingerprint
    # The recipe, beside which the run was once, with MODEL_DIR where it is now.
    shutil.copy(made / "my.gin", "recipe.gin")
    found = said("infer", "--gin_file=recipe.gin", "--gin.MODEL_DIR=./moved", "--prompt=word 7")
    assert json.loads(found) == wanted
    # It goes on where it is, and its config.gin says so.
    shutil.copy(made / "pairs.jsonl", "pairs.jsonl")
    said("train", "--gin_file=moved/config.gin", "--gin.TOTAL_STEPS=2")
    assert (elsewhere / "moved/checkpoints/2").is_dir()
    config.parse(["moved/config.gin"], root="infer")
    assert Path(config.evaluate("infer.model_dir")) == elsewhere / "moved"
    assert not (made / "run/checkpoints/2").exists()


def test_a_vocabulary_that_was_trained_without_a_place_of_its_own_goes_along(
    made, tmp_path, monkeypatch
):
    trained = ["--gin.Task.vocabulary=@TrainedVocabulary()", "--gin.TrainedVocabulary.size=300",
               "--gin.TrainedVocabulary.source=@task_data()",
               "--gin.TrainedVocabulary.extra_ids=20"]  # fmt: skip
    with contextlib.chdir(made):
        said("train", "--gin_file=my.gin", *trained, f"--gin.MODEL_DIR={tmp_path}/run")
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))  # another machine's
    found = json.loads(said("infer", "--gin_file=moved/config.gin", "--prompt=word 7"))
    assert isinstance(found["prediction"], str)
    _, _, vocabulary = tl.from_pretrained("moved")
    assert vocabulary.num_sentinels == 20


def test_a_run_that_was_not_moved_keeps_what_its_configuration_says(here):
    assert json.loads(Path("run", run_vocabulary.FILE).read_text())["path"] == "v.model"
    config.parse(["run/config.gin"], root="infer")
    assert config.evaluate("infer.model_dir") == "run"


def test_a_file_that_has_changed_is_not_the_weights_vocabulary(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run/vocabulary.model").unlink()
    other = [f"code {i * 7919 % 1000} or {i}" for i in range(99)]
    train_sentencepiece(iter(other), tmp_path / "run/vocabulary.model", 300, extra_ids=20)
    (tmp_path / "run" / run_vocabulary.FILE).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "t5x_lite", "convert", "--from=run", "--to=hf", "--as_causal"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "hf").exists()


# ------------------------------------------------------------------------------ how weights read


def edited(run: Path, to: Path, edit) -> Path:
    """A copy of a run whose checkpoint's record was changed, as an earlier version wrote it."""
    shutil.copytree(run, to)
    [file] = to.glob(f"checkpoints/*/description/{layout.DESCRIPTION}")
    record = json.loads(file.read_text())
    edit(record["run"])
    record.pop("crc32")
    file.write_text(json.dumps(verification.seal(record)))
    return to


def test_the_record_says_how_weights_read_and_an_older_ones_configuration_does(made, tmp_path):
    assert origin_of(made / "run", "decoder_only", 384).reading == PREFIX
    old = edited(made / "run", tmp_path / "old", lambda run: run.pop("reading"))
    assert origin_of(old, "decoder_only", 384).reading == PREFIX

    def causal(run):
        run.pop("reading")
        run["config"] = run["config"].replace("@TextToText()", "@CausalLM()")

    old = edited(made / "run", tmp_path / "causal", causal)
    assert origin_of(old, "decoder_only", 384).reading == Reading("causal", False)

    def nothing(run):
        run.pop("reading"), run.pop("config"), run.pop("vocabulary")

    old = edited(made / "run", tmp_path / "nothing", nothing)
    found = origin_of(old, "decoder_only", 384)
    assert found.reading is None and found.recorded is None
    assert found.fingerprint is not None  # of the file that the folder carries
    out = said("infer", f"--gin_file={old}/config.gin", "--prompt=word")
    assert "doesn't say how its prompts were read: bidirectional prompts, EOS behind" in out


def test_a_prefix_lm_is_no_decoder_of_transformers(made, tmp_path, caplog):
    told = said("convert", f"--from={made / 'run'}", f"--to={tmp_path / 'hf'}", status=2)
    assert "is a prefix LM" in told and "bidirectional mask" in told and "--as_causal" in told
    assert not (tmp_path / "hf").exists()
    model, params, vocabulary = tl.from_pretrained(made / "run")
    with pytest.raises(UserError, match="bidirectional mask"):
        tl.save_pretrained(tmp_path / "hf", model, params, vocabulary)
    assert not (tmp_path / "hf").exists()
    said("convert", f"--from={made / 'run'}", f"--to={tmp_path / 'hf'}", "--as_causal")
    assert (tmp_path / "hf" / "config.json").exists()
    assert "answers will be others there" in caplog.text
    # From there, it is an ordinary decoder; and so is a run that was trained as one.
    assert origin_of(tmp_path / "hf", "decoder_only", 384).reading == Reading("causal", False)
    said("convert", f"--from={tmp_path / 'hf'}", f"--to={tmp_path / 'back'}")
    assert origin_of(tmp_path / "back", "decoder_only", 384).reading == Reading("causal", False)


def test_exports_during_training_are_refused_before_it(here):
    told = said("train", "--gin_file=my.gin", "--gin.MODEL_DIR='third'",
                "--gin.train.checkpoint=@CheckpointConfig()",
                "--gin.CheckpointConfig.export_every=1", status=2)  # fmt: skip
    assert "this run is a prefix LM" in told
    shutil.rmtree("third", ignore_errors=True)


def test_a_run_says_when_it_starts_from_weights_that_read_otherwise(here):
    start = ["train", "--gin_file=my.gin", "--gin.MODEL_DIR='fourth'",
             "--gin.TextToText.prefix='causal'"]  # fmt: skip
    told = said(*start, "--gin.train.initial_checkpoint='run'")
    assert "was trained on bidirectional prompts, EOS behind them; this task has causal" in told
    found = origin_of("fourth", "decoder_only", 384).reading
    assert found == Reading("causal", inputs_eos=False)
    shutil.rmtree("fourth")


def test_what_a_configuration_binds_is_asked_of_its_record(made):
    text = (made / "run/config.gin").read_text()
    with contextlib.chdir(made):
        assert isinstance(runs.configured(text, "objective"), tl.TextToText)
        assert runs.configured(text, "vocabulary", made / "run").size > 100
