"""The commands as a user types them: a run from text files to predictions, and every mistake."""

import json
import os
import signal
import subprocess
import sys
import types

import pytest
import tiny
from waiting import wait_until

from t5x_lite import cli, config, exit_status

GIN = f"""{tiny.GIN}
train.log_period = 2
train.num_samples = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text file and a gin file, in which a run was made."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "text.txt").write_text("\n".join(d["text"] for d in tiny.documents()))
    (folder / "tiny.gin").write_text(GIN)
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with config.fresh():
        yield


def command(verb: str, *flags: str) -> list[str]:
    bindings = ["--gin.MODEL_DIR='run'", "--gin.TEXT='text.txt'"]
    return [verb, "--gin_file=tiny.gin", *bindings, *flags]


@pytest.fixture(scope="module")
def run(folder):
    """The run's folder, trained by the command; importing tensorflow would be an ImportError."""
    with config.fresh(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "tensorflow", None)
        assert cli.main(command("train")) == 0
    return folder / "run"


def test_a_second_start_says_that_the_run_is_finished(run, capsys):
    assert cli.main(command("train")) == 0
    out = capsys.readouterr().out
    assert "run is finished: step 4 of 4" in out
    assert "unigram entropy" in out and "bits per byte" in out and "checkpoints/4" in out


def test_eval_prints_a_line_for_each_checkpoint_and_keeps_the_results(run, capsys):
    assert cli.main(["eval", "--gin_file=run/config.gin", "--checkpoint=all"]) == 0
    out = capsys.readouterr().out
    assert "checkpoints/4: loss " in out and '"prediction"' in out
    [line] = (run / "eval.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 4


def test_infer_from_prompts_text_and_json_lines(run, folder, capsys):
    base = ["infer", "--gin_file=run/config.gin"]
    assert cli.main([*base, "--prompt=the <extra_id_0> fox", "--prompt=over"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["input"] for line in lines] == ["the <extra_id_0> fox", "over"]
    assert all(isinstance(line["prediction"], str) and line["score"] <= 0 for line in lines)

    (folder / "in.jsonl").write_text('{"input": "the", "target": "fox", "id": 7}\n{"input": "a"}\n')
    assert cli.main([*base, "--input=in.jsonl", "--output=out.jsonl"]) == 0
    first, second = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
    assert first["id"] == 7 and first["target_log_likelihood"] < 0
    assert "target_log_likelihood" not in second
    assert cli.main([*base, "--input=in.jsonl", "--output=out.jsonl"]) == 2
    assert "exists already; give --overwrite" in capsys.readouterr().err


def test_infer_goes_on_where_it_was_interrupted(run, folder, monkeypatch, capsys):
    texts = [f"the {i} <extra_id_0> fox" for i in range(20)]
    (folder / "many.txt").write_text("\n".join(texts))
    base = ["infer", "--gin_file=run/config.gin", "--input=many.txt", "--gin.infer.seed=5",
            "--gin.infer.method=@Sample()"]  # fmt: skip
    assert cli.main([*base, "--output=whole.jsonl"]) == 0
    whole = (folder / "whole.jsonl").read_text()

    written = []

    def interrupted(*arguments, **options):
        written.append(1)
        if len(written) == 13:
            raise KeyboardInterrupt
        return json.dumps(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("t5x_lite.programs.infer.json", types.SimpleNamespace(dumps=interrupted))
        assert cli.main([*base, "--output=parts.jsonl"]) == 130
    [begun] = folder.glob("parts.jsonl.*.tmp")
    assert len(begun.read_text().splitlines()) == 12
    with open(begun, "a") as file:
        file.write('{"half a li')
    assert cli.main([*base, "--output=parts.jsonl"]) == 0
    assert "20 records written to parts.jsonl (8 of them by an earlier call)" in (
        capsys.readouterr().err
    )
    assert (folder / "parts.jsonl").read_text() == whole
    # What was begun with other settings isn't gone on with.
    begun.write_text(whole[: len(whole) // 2])
    assert cli.main([*base, "--output=parts.jsonl", "--overwrite", "--gin.infer.seed=6"]) == 0
    said = capsys.readouterr().err
    assert "earlier call" not in said and f"{begun.name}: of a call with other settings" in said
    assert (folder / "parts.jsonl").read_text() != whole
    assert list(folder.glob("parts.jsonl.*.tmp")) == [folder / begun.name]


def test_infer_takes_a_shard_and_chooses(run, folder, capsys):
    records = [{"input": f"the {i}", "choices": ["fox", "dog", "lazy dog"]} for i in range(5)]
    records[3] = {"input": "the 3"}
    (folder / "choices.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    base = ["infer", "--gin_file=run/config.gin", "--input=choices.jsonl"]
    assert cli.main([*base, "--output=chosen.jsonl", "--shard=1/2"]) == 0
    found = [
        json.loads(line)
        for line in (folder / "chosen-00001-of-00002.jsonl").read_text().splitlines()
    ]
    assert [r["input"] for r in found] == ["the 1", "the 3"]
    scores = found[0]["choice_scores"]
    assert found[0]["score"] == max(scores) < 0
    assert found[0]["prediction"] == records[1]["choices"][scores.index(max(scores))]
    assert "choice_scores" not in found[1] and found[1]["score"] <= 0
    # The same number as the log-likelihood of a target.
    (folder / "one.jsonl").write_text(json.dumps({"input": "the 1", "target": "dog"}))
    assert cli.main(["infer", "--gin_file=run/config.gin", "--input=one.jsonl"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["target_log_likelihood"] == pytest.approx(scores[1], abs=1e-4)
    for wrong, message in (("2/2", "expected I/N"), ("9/10", "5 records is empty")):
        assert cli.main([*base, f"--shard={wrong}"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("line, said", [
    ('{"input": "a", "target": 5}', '"target" of record 2 is 5, expected a text'),
    ('{"input": "a", "choices": []}', '"choices" of record 2 is []'),
    ('{"input": "a", "choices": "ab"}', "\"choices\" of record 2 is 'ab'"),
    ('{"input": "a\\ud83d"}', "wrong.jsonl:2 holds half a character, '\\ud83d'"),
    ('{"input": "a", "id": "\\udc00"}', "wrong.jsonl:2 holds half a character"),
])  # fmt: skip
def test_infer_names_a_record_that_cannot_be_answered(line, said, run, folder, capsys):
    (folder / "wrong.jsonl").write_text('{"input": "the", "target": null}\n' + line + "\n")
    assert cli.main(["infer", "--gin_file=run/config.gin", "--input=wrong.jsonl"]) == 2
    output = capsys.readouterr()
    assert said in output.err and not output.out


def test_a_prompt_that_is_no_utf8_is_refused(run, capsys):
    assert cli.main(["infer", "--gin_file=run/config.gin", "--prompt=a\udcff"]) == 2
    assert "--prompt holds half a character" in capsys.readouterr().err


def test_beam_search_and_sampling_from_gin(run, capsys):
    base = ["infer", "--gin_file=run/config.gin", "--prompt=the dog"]
    beams = ["--gin.infer.method=@BeamSearch()", "--gin.BeamSearch.beams=3"]
    assert cli.main([*base, *beams]) == 0
    [line] = capsys.readouterr().out.splitlines()
    scores = [p["score"] for p in json.loads(line)["predictions"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    sampling = ["--gin.infer.method=@Sample()", "--gin.Sample.top_k=5"]
    assert cli.main([*base, *sampling]) == 0


def test_dry_run_prints_everything_and_writes_nothing(folder, capsys):
    assert cli.main(command("train", "--dry_run", "--gin.MODEL_DIR='never'")) == 0
    out = capsys.readouterr().out
    assert "train.batch_size = %BATCH_SIZE" in out
    assert "encoder/layers/attention/query/kernel" in out and "embed, joined_kv" in out
    assert "model FLOPs per step" in out
    assert not (folder / "never").exists()


MISTAKES = {
    "unknown parameter": (["--gin.train.totel_steps=3"], "total_steps"),
    "unknown configurable": (["--gin.TransformerConfg.embed_dim=3"], "TransformerConfig"),
    "unknown macro": (["--gin.BATCH_SIZ=3"], "BATCH_SIZE"),
    "missing gin file": (["--gin_file=recipes/quickstat.gin"], "recipes/quickstart.gin"),
    "missing text": (["--gin.TEXT='no/such/*.txt'"], "no/such/*.txt"),
    "empty corpus": (["--gin.TEXT='empty.txt'"], "empty.txt is empty"),
    "small model vocabulary": (
        ["--gin.TransformerConfig.vocab_size=128"],
        "has 384 ids, the model only 128",
    ),
    "targets too short": (["--gin.LENGTHS={'inputs': 64, 'targets': 4}"], "targets"),
    "missing length": (["--gin.LENGTHS={'inputs': 64}"], "no 'targets'"),
    "batch and mesh": (["--gin.BATCH_SIZE=12"], "batch of 12 rows can't be split over 8 devices"),
    "heads and tensor": (
        ["--gin.MeshConfig.tensor=8", "--gin.TransformerConfig.num_heads=4"],
        "num_heads = 4 can't be split over tensor = 8",
    ),
    "mesh and devices": (["--gin.MeshConfig.data=3"], "needs 3 devices, found 8"),
    "another run": (["--gin.SEED=1"], "holds another run: seed was 0, now 1"),
    "micro-batches": (["--gin.train.num_microbatches=3"], "3 micro-batches over 8 devices"),
    "objective and architecture": (
        ["--gin.Task.objective=@CausalLM()"],
        "an encoder_decoder needs inputs",
    ),
    "initial checkpoint": (
        ["--gin.train.initial_checkpoint='elsewhere'", "--gin.MODEL_DIR='new'"],
        "elsewhere",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_its_fix(name, run, folder, capsys):
    (folder / "empty.txt").write_text("")
    flags, words = MISTAKES[name]
    assert cli.main(command("train", "--gin.TOTAL_STEPS=5", *flags)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert words in error
    assert not (run / "checkpoints" / "5").exists()


def start(*flags: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-m", "t5x_lite", *command("train", *flags)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_saves_and_continues(number, folder):
    name = f"interrupted_{number.name}"
    flags = [f"--gin.MODEL_DIR='{name}'", "--gin.TOTAL_STEPS=100000", "--gin.train.log_period=1"]
    process = start(*flags)
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step 3/"):
            process.send_signal(number)
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == exit_status.SAVED == 143, "".join(output) + rest
    assert f"{number.name}: saved step" in rest
    [saved] = os.listdir(folder / name / "checkpoints")
    assert int(saved) >= 3
    assert cli.main(command("train", f"--gin.MODEL_DIR='{name}'", "--gin.TOTAL_STEPS=100000",
                            "--dry_run")) == 0  # fmt: skip
    total = int(saved) + 1
    losses = tiny.logged(folder / name)
    # The schedule's length is part of the configuration, so it is kept while the run is extended.
    keep = ["--gin.cosine.total_steps=100000", f"--gin.train.total_steps={total}"]
    assert cli.main(command("train", f"--gin.MODEL_DIR='{name}'", *keep)) == 0
    assert tiny.logged(folder / name).keys() == {*losses, total}


def test_what_a_killed_run_lacks_is_made_up_when_it_is_started_again(folder, capsys):
    flags = ["--gin.MODEL_DIR='lacking'", "--gin.train.log_period=1"]
    assert cli.main(command("train", *flags)) == 0
    run, made = folder / "lacking", {}
    for name in ("summary.json", "report.html", "metrics.jsonl"):
        made[name] = (run / name).read_text()
    lines = [json.loads(line) for line in made["metrics.jsonl"].split("\n")[:-1]]
    evaluation = [line for line in lines if line["step"] == 4 and "eval/loss" in line]
    assert len(evaluation) == 1
    capsys.readouterr()
    assert cli.main(command("train", *flags)) == 0
    assert "is finished: step 4 of 4" in capsys.readouterr().out
    # As if it had been killed before its last evaluation, its summary, or its page.
    (run / "summary.json").unlink()
    kept = [line for line in lines if line["step"] < 4 or "eval/loss" not in line]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert cli.main(command("train", *flags)) == 0
    assert "is finished" not in capsys.readouterr().out
    found = json.loads((run / "summary.json").read_text())
    assert found["last"] == json.loads(made["summary.json"])["last"]
    again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
    assert [line for line in again if line["step"] == 4 and "eval/loss" in line] == evaluation
    (run / "report.html").unlink()
    assert cli.main(command("train", *flags)) == 0
    assert (run / "report.html").exists()
    assert cli.main(command("train", *flags)) == 0
    assert "is finished: step 4 of 4" in capsys.readouterr().out


@pytest.mark.slow
def test_sigterm_in_an_evaluation_saves_and_the_evaluation_is_made_when_it_goes_on(folder):
    (folder / "much.txt").write_text("\n\n".join(r["text"] for r in tiny.documents(4000)))
    flags = ["--gin.MODEL_DIR='in_evaluation'", "--gin.TEXT='much.txt'", "--gin.train.log_period=1"]
    flags += ["--gin.TextFiles.held_out=0.9", "--gin.train.eval_batch_count=None"]
    flags += ["--gin.train.eval_period=2", "--gin.TOTAL_STEPS=1000"]
    process = start(*flags)
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step 2/1,000  loss") or line.startswith("step 2/1000  loss"):
            break
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == exit_status.SAVED, "".join(output) + rest
    assert os.listdir(folder / "in_evaluation" / "checkpoints") == ["2"]
    assert 2 not in tiny.logged(folder / "in_evaluation", "eval/loss")
    process = start(*flags)
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.kill()
    process.communicate()
    assert 2 in tiny.logged(folder / "in_evaluation", "eval/loss")
    metrics = folder / "in_evaluation" / "checkpoints" / "2" / "metrics" / "metrics"
    found = json.loads(metrics.read_text())
    assert found["loss"] == tiny.logged(folder / "in_evaluation", "eval/loss")[2]


def test_killed_outright_it_continues_from_the_last_checkpoint(folder):
    flags = ["--gin.MODEL_DIR='killed'", "--gin.train.log_period=1"]
    flags += ["--gin.train.checkpoint=@CheckpointConfig()", "--gin.CheckpointConfig.period=2"]
    process = start(*flags, "--gin.TOTAL_STEPS=100000")
    saved = [folder / "killed" / "checkpoints" / str(s) for s in (2, 4, 6)]
    wait_until(lambda: process.poll() is not None or any(path.exists() for path in saved))
    assert process.poll() is None
    process.kill()
    process.communicate()
    from t5x_lite.training.checkpoints import Checkpoints

    latest = Checkpoints(folder / "killed").latest_step()
    assert latest and latest % 2 == 0
    keep = ["--gin.cosine.total_steps=100000", f"--gin.train.total_steps={latest + 2}"]
    assert cli.main(command("train", *flags, *keep)) == 0
    assert sorted(tiny.logged(folder / "killed")) == list(range(1, latest + 3))
