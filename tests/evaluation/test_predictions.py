"""Predictions of all examples, each once; what is judged, written and shown of them."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest
import tiny
from etils import epath

import t5x_lite as tl
from t5x_lite import config
from t5x_lite.data.templates import Choose
from t5x_lite.errors import UserError
from t5x_lite.evaluation import error_page, results
from t5x_lite.evaluation.metrics.answers import exact_match
from t5x_lite.evaluation.metrics.classification import accuracy, calibration_error, f1
from t5x_lite.evaluation.metrics.likelihood import perplexity
from t5x_lite.evaluation.predictions import Predictor
from t5x_lite.evaluation.samples import predict_samples
from t5x_lite.inference.scoring import log_likelihood
from t5x_lite.models.model import Model
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.programs.early_stopping import EarlyStopping
from t5x_lite.programs.eval import Waiting, checkpoint_paths
from t5x_lite.training.setup import set_up

LENGTHS = {"inputs": 24, "targets": 8}
SMALL = dict(num_encoder_layers=1, num_decoder_layers=1)
WORDS = ["yes", "no", "may"]
RECORDS = [
    {"inputs": f"is {i} odd", "targets": "yes" if i % 2 else "no", "kind": i % 3, "n": i}
    for i in range(11)
]


def pairs(records=RECORDS, metrics=(accuracy,), steps=(), name="odd"):
    return tl.Task(
        name=name,
        source=tl.InMemory([{"inputs": "a", "targets": "b"}], validation=records),
        objective=tl.TextToText(),
        vocabulary=tl.ByteVocabulary(),
        preprocessors=list(steps),
        metrics=list(metrics),
    )


@functools.cache
def predictor(architecture: str):
    """Of a model of random parameters, on one device with batches of 4; and those."""
    if architecture == "encoder_decoder":
        model, task, lengths = dataclasses.replace(tiny.T5, **SMALL), pairs(), LENGTHS
    else:
        model = dataclasses.replace(tiny.LM, num_decoder_layers=1)
        task, lengths = tiny.task(tl.CausalLM()), {"targets": 16}
    devices = jax.devices()[:1]
    setup = set_up(model, task, lengths, 4, MeshConfig(), pack=False, devices=devices)
    params = Model(model).init(jax.random.key(0))
    made = Predictor(setup.model, setup.lengths, 4, setup.rows, setup.place)
    return made, params, setup


def test_every_example_is_predicted_once_and_padding_never():
    made, params, setup = predictor("encoder_decoder")
    rows = made.predict(params, pairs())
    assert [row["index"] for row in rows] == list(range(11))  # 4 + 4 + 3 and a row of padding
    assert [row["target"] for row in rows] == [r["targets"] for r in RECORDS]
    assert all(row["fields"] == {k: v for k, v in RECORDS[i].items()} for i, row in enumerate(rows))
    # The same as a batch made by hand.
    batch = next(tl.eval_batches(pairs(), lengths=LENGTHS, batch_size=4,
                                 architecture="encoder_decoder"))  # fmt: skip
    placed = setup.place(batch)
    scores = log_likelihood(setup.model, params, placed)
    np.testing.assert_allclose([r["target_score"] for r in rows[:4]], scores, rtol=1e-5)
    inputs = {"encoder_input_tokens": placed["encoder_input_tokens"]}
    decoded = tl.generate(setup.model, params, inputs, max_new_tokens=8, rng=jax.random.key(0))
    texts = [tl.ByteVocabulary().decode(row) for row in np.asarray(decoded.tokens)[:, 0]]
    assert [row["prediction"] for row in rows[:4]] == texts
    some = made.predict(params, pairs(), limit=5)
    assert some == [rows[r["index"]] for r in some]  # a sample, and not the beginning
    assert len(some) == 5 and [r["index"] for r in some] != list(range(5))
    dropped = pairs(steps=[lambda r: r if r["n"] % 2 else None])
    assert [r["index"] for r in made.predict(params, dropped)] == [1, 3, 5, 7, 9]
    long = made.predict(params, pairs([{"inputs": "x" * 40, "targets": "y"}]))
    assert long[0]["truncated"] and "truncated" not in rows[0]
    with pytest.raises(UserError, match="makes no texts to judge: use TextToText"):
        wrong = dataclasses.replace(pairs(), objective=tl.PrefixLM())
        Predictor(setup.model, {"inputs": 8, "targets": 8}, 4, setup.rows, setup.place).predict(
            params, wrong
        )


def test_choices_are_ranked_by_their_likelihood():
    made, params, setup = predictor("encoder_decoder")
    records = [{"q": f"question {i}", "a": "no", "b": "maybe", "label": i % 2} for i in range(5)]
    task = pairs(records, (accuracy, calibration_error), [Choose("{q}", ["a", "b"])], "choose")
    rows = made.predict(params, task)
    for row, record in zip(rows, records, strict=True):
        ids = [[*tl.ByteVocabulary().encode(t), 1] for t in ("no", "maybe")]
        features = {
            "encoder_input_tokens": np.zeros((4, 24), np.int32),
            "decoder_target_tokens": np.zeros((4, 8), np.int32),
        }
        inputs = [*tl.ByteVocabulary().encode(record["q"]), 1]
        for i, target in enumerate(ids):
            features["encoder_input_tokens"][i, : len(inputs)] = inputs
            features["decoder_target_tokens"][i, : len(target)] = target
        shifted = np.roll(features["decoder_target_tokens"], 1, axis=1)
        shifted[:, 0] = 0
        features |= {
            "decoder_input_tokens": shifted,
            "decoder_loss_weights": (features["decoder_target_tokens"] > 0).astype(np.int32),
        }
        expected = np.asarray(log_likelihood(setup.model, params, setup.place(features)))[:2]
        np.testing.assert_allclose(row["choice_scores"], expected, rtol=1e-4)
        best = ["no", "maybe"][int(np.argmax(expected))]
        assert row["prediction"] == best
        assert row["prediction_norm"] == ["no", "maybe"][int(expected[1] / 5 > expected[0] / 2)]
        share = np.exp(expected - expected.max())
        assert math.exp(row["score"]) == pytest.approx(share.max() / share.sum(), rel=1e-4)
    values = results.judge(task, rows)["values"]
    assert set(values) == {"accuracy", "accuracy_norm", "calibration_error"}


def test_documents_are_scored_whole_in_windows():
    made, params, setup = predictor("decoder_only")
    texts = ["the quick brown fox jumps", "over", ""]
    source = tl.InMemory(["x"], validation=texts)
    task = dataclasses.replace(pairs(metrics=[perplexity]), source=source, objective=tl.CausalLM())
    rows = made.predict(params, task)
    assert [(r["index"], r["target"], r["tokens"]) for r in rows] == [
        (0, texts[0], 25),
        (1, texts[1], 4),
    ]
    windows = np.zeros((4, 16), np.int32)
    ids = tl.ByteVocabulary().encode(texts[0])
    windows[0], windows[1, :9] = ids[:16], ids[16:]
    shifted = np.roll(windows, 1, axis=1)
    shifted[:, 0] = 0
    batch = {
        "decoder_target_tokens": windows,
        "decoder_input_tokens": shifted,
        "decoder_loss_weights": (windows > 0).astype(np.int32),
    }
    expected = np.asarray(log_likelihood(setup.model, params, setup.place(batch)))[:2].sum()
    assert rows[0]["target_score"] == pytest.approx(float(expected), rel=1e-5)
    found = results.judge(task, rows, samples=10)
    assert set(found["intervals"]) == set(found["values"]) >= {"word_perplexity", "bits_per_byte"}
    with pytest.raises(UserError, match="metric accuracy needs predictions"):
        results.judge(dataclasses.replace(task, metrics=[accuracy]), rows)


# ---------------------------------------------------------------------------- of rows, no model


def rows_of(predictions: list[str], loss: float = 1.0) -> list[dict]:
    return [
        {"task": "odd", "index": i, "input": f"<b>{i}</b>", "target": r["targets"], "tokens": 1 + i,
         "target_score": -loss * (1 + i), "loss": loss, "prediction": p, "score": -0.1,
         "fields": {"kind": r["kind"]}}
        for i, (r, p) in enumerate(zip(RECORDS, predictions, strict=True))
    ]  # fmt: skip


RIGHT = [r["targets"] for r in RECORDS]
WRONG = ["maybe<script>", *RIGHT[1:-1], "yes"]


def test_what_is_judged():
    task = pairs(metrics=[accuracy, exact_match])
    found = results.judge(task, rows_of(WRONG), samples=50)
    assert found["values"]["accuracy"] == pytest.approx(100 * 9 / 11)
    low, high = found["intervals"]["accuracy"]
    assert low < found["values"]["accuracy"] < high
    unlabelled = [row | {"target": "<unk>"} for row in rows_of(WRONG)]
    assert results.judge(task, unlabelled[:5] + rows_of(RIGHT)[5:])["values"]["accuracy"] == 100
    assert results.judge(task, unlabelled)["values"] == {}
    several = [row | {"references": ["no", "yes"]} for row in rows_of(RIGHT)]
    found = results.judge(pairs(metrics=[exact_match]), several)
    assert found["values"] == {"exact_match": 100}


def written(folder, step: int, accuracy_value: float, loss: float, rows=()) -> None:
    values = {"loss": loss, "text/accuracy": accuracy_value}
    result = {"step": step, "checkpoint": f"run/{step}", "values": values,
              "notes": {"text/how": "so"}, "intervals": {"text/accuracy": [1.0, 2.0]}}  # fmt: skip
    results.write(epath.Path(folder), str(step), result, rows)


def test_tables_predictions_and_the_best_checkpoint(tmp_path):
    folder = results.folder_of(str(tmp_path), "validation")
    written(folder, 100, 50.0, 2.0, rows_of(WRONG))
    written(folder, 200, 70.0, math.nan)
    written(folder, 300, 70.0, 3.0)
    table = (folder / "table.md").read_text().splitlines()
    assert table[0] == "| checkpoint | loss | text/accuracy |"
    assert table[2] == "| 100 | **2** | 50 (1 to 2) |"
    assert table[4] == "| 300 | 3 | **70 (1 to 2)** |" and table[-1] == "- text/how: so"
    assert [r["step"] for r in json.loads((folder / "table.json").read_text())] == [100, 200, 300]
    assert results.read_predictions(folder, "100") == rows_of(WRONG)
    steps = [100, 200, 300]
    assert results.best_step(str(tmp_path), "accuracy", steps) == 300
    assert results.best_step(str(tmp_path), "loss", steps) == 100
    assert results.best_step(str(tmp_path), "text/accuracy", steps[:2]) == 200
    # While training, too.
    (tmp_path / "metrics.jsonl").write_text('{"step": 400, "eval/loss": 1.0, "lr": 3.0}\n')
    assert results.best_step(str(tmp_path), "loss", [*steps, 400]) == 400
    with pytest.raises(UserError, match=r"no value|has a value of 'bleu'; there are loss, text/"):
        results.best_step(str(tmp_path), "bleu", steps)
    for step in steps:
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    with pytest.raises(UserError, match="no predictions of 999"):
        results.read_predictions(folder, "999")


def test_which_checkpoints_are_meant(tmp_path, monkeypatch):
    monkeypatch.setattr("t5x_lite.programs.eval.Checkpoints.steps", lambda self: [100, 200, 300])
    written(results.folder_of(str(tmp_path), "validation"), 200, 70.0, 1.0)

    def steps(what: str) -> list[int]:
        return [int(path.rpartition("/")[2]) for path in checkpoint_paths(str(tmp_path), what)]

    assert steps("latest") == [300] and steps("all") == [100, 200, 300]
    assert steps("100,300") == [100, 300] and steps("best:accuracy") == [200]
    assert checkpoint_paths(str(tmp_path), "some/run") == ["some/run"]
    with pytest.raises(UserError, match="no checkpoint of step 150"):
        steps("100,150")


def test_watching_evaluates_each_checkpoint_once(tmp_path, monkeypatch):
    """As time passes, checkpoints come; one has a result already."""
    folder = results.folder_of(str(tmp_path), "validation")
    written(folder, 100, 1.0, 1.0)
    now = [0.0]
    there = lambda self: [s for s in (100, 200, 300, 400) if s <= now[0]]  # noqa: E731
    monkeypatch.setattr("t5x_lite.programs.eval.Checkpoints.steps", there)
    monkeypatch.setattr(
        "t5x_lite.programs.eval.Checkpoints.latest_step",
        lambda self: max(there(self), default=None),
    )

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def found(total: int | None, patience: float) -> list[str]:
        now[0] = 0.0
        waiting = Waiting(str(tmp_path), folder, total, 50, patience, lambda: now[0], sleep)
        return [path.rpartition("/")[2] for path in waiting.paths()]

    assert found(400, 1e9) == ["200", "300", "400"] and now[0] == 400
    assert found(300, 1e9) == ["200", "300"]
    assert found(None, 500.0) == ["200", "300", "400"] and now[0] > 900
    assert found(None, 60.0) == []


def test_early_stopping_counts_evaluations_without_a_better_value(tmp_path):
    less, more = EarlyStopping("loss", patience=2), EarlyStopping("text/bleu", patience=2)
    assert not less.no_better([3, 2, 1, 1]) and less.no_better([3, 1, 1, 1])
    assert less.no_better([1, 2, 3]) and not less.no_better([1, 2]) and not less.no_better([])
    assert not more.no_better([1, 2, 3]) and more.no_better([3, 2, 1])
    assert EarlyStopping("loss", 2, min_delta=0.5).no_better([3, 2.9, 2.6])
    assert not less.no_better([2, math.nan, 1])
    log = [(0, 5.0), (10, 4.0), (20, 4.5), (30, 4.6), (40, 1.0)]
    lines = [{"step": s, "eval/loss": v} for s, v in log] + [{"step": 25, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    here = dataclasses.replace(less, model_dir=str(tmp_path))
    assert [here.is_over(step) for step in (0, 10, 20, 30, 40)] == [
        False,
        False,
        False,
        True,
        False,
    ]
    assert not EarlyStopping().is_over(10)
    with pytest.raises(UserError, match=r"'text/blue'; the evaluation gives loss"):
        dataclasses.replace(here, metric="text/blue").is_over(10)
    with pytest.raises(UserError, match="patience is 0"):
        EarlyStopping("loss", patience=0)


def test_the_page_of_errors(tmp_path):
    folder = results.folder_of(str(tmp_path), "validation")
    written(folder, 100, 50.0, 2.0, rows_of(RIGHT, 0.5))
    written(folder, 200, 70.0, 1.0, rows_of(WRONG))
    error_page.write_error_page(str(tmp_path / "page.html"), folder, ["100", "200"])
    text = (tmp_path / "page.html").read_text()
    assert "maybe&lt;script&gt;" in text and "<script" not in text and "<b>" not in text
    assert "Errors of checkpoint 200 beside those of 100" in text
    assert "Right before, wrong now: 2" in text and "Wrong before, right now: 0" in text
    for heading in ("Confusion matrix", "By length", "By field", "The 30 worst, by loss"):
        assert heading in text
    assert "<td style='background:rgba(255,114,92,0.17)'>1</td>" in text  # 1 of 6 "no" as "yes"
    alone = error_page.render([("200", rows_of(WRONG))], {})
    assert "Changes" not in alone and "Errors of checkpoint 200<" in alone
    assert error_page.is_right({"prediction": " b", "target": "a", "references": ["a", "b"]})
    written(folder, 300, 1.0, 1.0)
    with pytest.raises(UserError, match="the task names no metrics"):
        error_page.write_error_page(str(tmp_path / "none.html"), folder, ["300"])


def test_scoped_metrics_in_gin_keep_what_they_use():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    with config.fresh():
        config.parse(
            ["runs/base.gin"],
            ["TASK=@Task()", "Task.metrics=[@a/f1, @b/f1, @perplexity]", "a/f1.positive='yes'",
             "b/f1.average='micro'", "Task.name='t'", "Task.source=@InMemory()",
             "InMemory.records=['x']", "Task.objective=@TextToText()",
             "Task.vocabulary=@ByteVocabulary()"],
            root="train.task",
        )  # fmt: skip
        task = config.evaluate("train.task")
        assert [m.uses for m in task.metrics] == [(), (), ("target_scores",)]
        values = [set(m(["yes", "no"], ["yes", "yes"])) for m in task.metrics[:2]]
    assert values == [{"f1"}, {"f1_micro"}] and f1.uses == ()


@pytest.mark.slow
def test_a_decoder_only_model_continues_its_prompts():
    """As `predict_samples` does, which makes the prompts by itself."""
    # A tied one would repeat the prompt's EOS.
    model = dataclasses.replace(tiny.LM, num_decoder_layers=1, tied_embeddings=False)
    device = jax.devices()[:1]
    setup = set_up(model, pairs(), LENGTHS, 4, MeshConfig(), pack=False, devices=device)
    params = Model(model).init(jax.random.key(0))
    rows = Predictor(setup.model, LENGTHS, 4, setup.rows, setup.place).predict(params, pairs())
    assert [row["index"] for row in rows] == list(range(11))
    samples = predict_samples(setup.model, params, pairs(), LENGTHS, count=11)
    for row, sample in zip(rows, samples, strict=True):
        assert row["input"] == sample["input"] and row["target"] == sample["target"]
        # That decodes no further than the longest target.
        assert row["prediction"].startswith(sample["prediction"])
        assert row["tokens"] == len(row["target"]) + 1 and row["target_score"] < 0
    assert any(sample["prediction"] for sample in samples)
