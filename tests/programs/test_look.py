"""What a run shows of itself, from the command line: watches, its page, a look into its model."""

import json
import math
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from t5x_lite import cli, config
from t5x_lite.models.model import Model
from t5x_lite.report import runs
from t5x_lite.training import build
from t5x_lite.training.checkpoints import Checkpoints
from t5x_lite.training.trackers import Trackers, read_json_lines

pytestmark = pytest.mark.slow  # a whole run, and models compiled to look into them

MORE = """
TransformerConfig.embed_dim = 32
TransformerConfig.num_heads = 4
TransformerConfig.head_dim = 8
TransformerConfig.mlp_dim = 64
TransformerConfig.num_encoder_layers = 1
TransformerConfig.num_decoder_layers = 2
TOTAL_STEPS = 6
train.log_period = 2
train.eval_period = 2
train.num_samples = 1
train.sample_period = 2
train.checkpoint = @CheckpointConfig()
CheckpointConfig.period = 3
train.watches = @Watches()
Watches.period = 3
Watches.names = "mlp/wi_0|token_embedder"
Watches.histograms = True
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the run "run" in it, how often its steps were traced, what was printed."""
    folder = tmp_path_factory.mktemp("look")
    (folder / "text.txt").write_text("\n".join(d["text"] for d in tiny.documents(60)))
    (folder / "run.gin").write_text(f"{tiny.GIN}\n{MORE}\nTEXT = '{folder}/text.txt'\n"
                                    f"MODEL_DIR = '{folder}/run'\n")  # fmt: skip
    traces, make = {}, build.make_train_step

    def counting(*args, watches=None, **options):
        step = make(*args, watches=watches, **options)

        def traced(*arguments):
            traces[watches is not None] = traces.get(watches is not None, 0) + 1
            return step(*arguments)

        return traced

    with pytest.MonkeyPatch.context() as patch, config.fresh():
        patch.setattr(build, "make_train_step", counting)
        assert cli.main(["train", f"--gin_file={folder}/run.gin"]) == 0
    return folder, traces


@pytest.fixture(autouse=True)
def fresh_config():
    with config.fresh():
        yield


def test_watches_are_a_second_program_traced_once(run):
    _, traces = run
    assert traces == {False: 1, True: 1}


def test_what_the_watches_saw_is_what_the_step_did(run):
    folder, _ = run
    lines = read_json_lines(folder / "run" / "metrics.jsonl")
    watched = {line["step"]: line for line in lines if any("watch/" in name for name in line)}
    assert list(watched) == [3, 6]
    [step] = [line for line in lines if line["step"] == 6 and "loss" in line]
    norms = [v for k, v in watched[6].items() if k.startswith("watch/gradients_norm/")]
    assert 0 < math.sqrt(sum(v**2 for v in norms)) < step["grad_norm"]
    names = [name.removeprefix("watch/parameters_norm/") for name in watched[6]]
    assert "decoder/layers/mlp/wi_0/kernel/1" in names and "token_embedder/embedding" in names
    last = Checkpoints(folder / "run").steps()[-1]
    model, params, _ = model_of(folder / "run" / "checkpoints" / str(last))
    table = np.linalg.norm(params["token_embedder"]["embedding"])
    assert watched[6]["watch/parameters_norm/token_embedder/embedding"] == pytest.approx(table)
    counts = watched[6]["watch/updates/token_embedder/embedding"]["counts"]
    assert sum(counts) == 384 * 32 and len(counts) == 64


def test_a_run_leaves_its_page_and_numbers(run):
    folder, _ = run
    found = runs.Run(folder / "run")
    assert found.hyperparameters["parameters"] and found.tokens_per_step == 8 * (64 + 16)
    assert found.summary["step"] == 6 and "memory per device" in found.summary["checked"]
    assert [step for step, _ in found.texts["sample_0/prediction"]] == [2, 4, 6]
    page = (folder / "run" / "report.html").read_text()
    assert "Predicted and measured" in page and "sample 0" in page and "watch/updates" in page


def test_report_compares_runs(run, tmp_path, capsys, monkeypatch):
    folder, _ = run
    other = tmp_path / "other"
    other.mkdir()
    for file in (folder / "run").iterdir():
        if file.is_file():
            (other / file.name).write_bytes(file.read_bytes())
    text = (other / "config.gin").read_text()
    (other / "config.gin").write_text(re.sub(r"PEAK_RATE = .*", "PEAK_RATE = 0.5", text))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(folder / "run"), str(other)]) == 0
    printed = capsys.readouterr().out
    assert "PEAK_RATE: 0.003 | 0.5" in printed and "page: compared_runs.html" in printed
    assert "<td>0.5</td>" in Path("compared_runs.html").read_text()
    assert cli.main(["report", str(folder / "run"), "--json"]) == 0
    [facts] = json.loads(capsys.readouterr().out)["runs"].values()
    assert facts["last"]["loss"] > 0 and facts["config"]["PEAK_RATE"] == "0.003"


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is no run's folder (no metrics.jsonl)" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- explain


def explained(capsys, *arguments):
    assert cli.main(["explain", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_explain_two_checkpoints_and_what_the_model_computes(run, tmp_path, capsys):
    folder, _ = run
    first, last = (folder / "run" / "checkpoints" / str(step) for step in (3, 6))
    page = tmp_path / "page.html"
    found = explained(capsys, first, last, "--text=a lazy <extra_id_0> dog",
                      "--target=<extra_id_0>fox<extra_id_1>", f"--html={page}")  # fmt: skip
    targets = found["targets"]
    assert [t["text"] for t in targets] == ["<extra_id_0>", "f", "o", "x", "<extra_id_1>", "</s>"]
    assert [t.get("span") for t in targets] == [0, 0, 0, 0, 1, None]
    assert [t["text"] for t in found["inputs"]][:3] == ["a", " ", "l"]
    assert all({"log_prob", "other"} <= set(t) for t in targets)
    for token in targets:
        best = token["alternatives"][0]
        assert (token["rank"] == 0) == (best["id"] == token["id"])
        assert best["log_prob"] >= token["log_prob"]
        assert token["alternatives"][4]["log_prob"] <= token["alternatives"][3]["log_prob"]
    # The model's own numbers, from its logits.
    model, params, batch = model_of(last, found)
    logits = np.asarray(jax.jit(model.apply)(params, batch)[0], np.float64)[0]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for t, token in enumerate(targets):
        assert token["other"]["log_prob"] == pytest.approx(log_probs[t, token["id"]], abs=1e-4)
        entropy = -(np.exp(log_probs[t]) * log_probs[t]).sum()
        assert token["other"]["entropy"] == pytest.approx(entropy, abs=1e-4)
    found_weights = jax.jit(model.attention)(params, batch)
    attention = {k: np.asarray(v) for k, v in found_weights.items()}
    S, T = len(found["inputs"]), len(targets)
    assert {k: v.shape for k, v in attention.items()} == {
        "encoder": (1, 1, 4, S, S), "decoder": (2, 1, 4, T, T), "cross": (2, 1, 4, T, S)
    }  # fmt: skip
    for weights in attention.values():
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    assert np.triu(attention["decoder"][0, 0, 0], 1).max() == 0
    assert "two sets of weights" in page.read_text()


def model_of(checkpoint, found=None):
    """The model of a checkpoint, its parameters, and the batch that was explained."""
    from t5x_lite.interop.pretrained import restore_params
    from t5x_lite.training.state import abstract_params

    with config.fresh():
        config.parse([str(checkpoint.parent.parent / "config.gin")], root="infer")
        model = Model(config.evaluate("infer.model"))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    rules = {name: None for names in jax.tree.leaves(model.logical_axes()) for name in [names]}
    params = restore_params(str(checkpoint), abstract_params(model, mesh, rules),
                            model=model.config)  # fmt: skip
    if found is None:
        return model, params, None
    ids = [np.array([[t["id"] for t in found[side]]], np.int32) for side in ("inputs", "targets")]
    batch = {"encoder_input_tokens": ids[0], "decoder_target_tokens": ids[1],
             "decoder_input_tokens": np.pad(ids[1], ((0, 0), (1, 0)))[:, :-1],
             "decoder_loss_weights": np.ones_like(ids[1])}  # fmt: skip
    return model, params, jax.tree.map(jax.numpy.asarray, batch)


def test_explain_takes_held_out_text_a_text_or_a_question(run, capsys):
    folder, _ = run
    held_out = explained(capsys, folder / "run")
    assert held_out["weights"] == [str(folder / "run" / "checkpoints" / "6")]
    assert any("span" in t for t in held_out["inputs"])
    corrupted = explained(capsys, folder / "run", "--text=the quick brown fox jumps over the dog")
    assert [t["text"] for t in corrupted["targets"]].count("<extra_id_0>") == 1
    answered = explained(capsys, folder / "run", "--text=the <extra_id_0> fox", "--top=2")
    assert all(t["rank"] == 0 for t in answered["targets"])  # the model's own answer
    assert {len(t["alternatives"]) for t in answered["targets"]} == {2}


def test_explain_prints_for_people(run, capsys):
    folder, _ = run
    where = folder / "run" / "checkpoints" / "6"
    assert cli.main(["explain", str(where), "--text=the quick brown fox jumps over"]) == 0
    printed = capsys.readouterr().out
    assert "input: " in printed and "the least likely tokens:" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    "words, message",
    [
        (["--text="], "--text='' has no tokens"),
        (["--text=a\udcff"], "--text holds half a character, '\\udcff'"),
        (["--text=a", "--target=\udcff"], "--target holds half a character"),
        (["--target=x"], "--target is what the model should answer to --text"),
        (["--top=0"], "--top=0: expected 1 or more"),
        (["b", "c"], "one or two sets of weights, found 3"),
    ],
)
def test_mistakes(run, words, message, capsys):
    assert cli.main(["explain", str(run[0] / "run"), *words]) == 2
    assert message in capsys.readouterr().err


def test_explain_without_a_config(tmp_path, capsys):
    assert cli.main(["explain", str(tmp_path)]) == 2
    assert "is in no run's folder (no config.gin): give --gin_file" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- docs

PAGE = (Path(__file__).parents[2] / "docs" / "look.md").read_text()


def test_the_commands_of_the_page(run, tmp_path, monkeypatch, capsys):
    """What trains is parsed; the others are run, on the run of these tests."""
    folder, _ = run
    (tmp_path / "runs").mkdir()
    for name in ("quickstart", "other"):
        (tmp_path / "runs" / name).symlink_to(folder / "run")
    monkeypatch.chdir(tmp_path)
    steps = {"checkpoints/100": "checkpoints/3", "checkpoints/400": "checkpoints/6"}
    seen = []
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            words = words[words.index("t5x_lite") + 1 :]
            seen.append(words[0])
            with config.fresh():
                if words[0] == "train":
                    arguments = cli.parse_args(words)
                    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
                    config.parse(arguments.gin_file, arguments.gin_bindings, root="train")
                    continue
                for old, new in steps.items():
                    words = [word.replace(old, new) for word in words]
                assert cli.main(words) == 0, capsys.readouterr().err
    assert set(seen) == {"report", "explain", "train"} and len(seen) == 9
    assert Path("both.html").exists() and Path("inside.html").exists()


def test_the_tracker_of_the_page(capsys):
    [code] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {"__name__": "page_on_looking"}
    exec(compile(code, "look.md", "exec"), names)
    trackers = Trackers([names["Bell"](below=1.5).open("run", 0)], process_index=0)
    trackers.log(3, {"loss": jax.numpy.float32(1.75)})
    trackers.log(4, {"loss": jax.numpy.float32(1.25), "accuracy": 0.5})
    trackers.finish()
    assert capsys.readouterr().out == "\astep 4: loss below 1.5\n"
