"""A run without a held-out document: trained, and said; what needs an evaluation is refused."""

import json

import pytest
import tiny

import t5x_lite as tl
from t5x_lite.errors import UserError
from t5x_lite.programs.early_stopping import EarlyStopping
from t5x_lite.programs.eval import evaluate
from t5x_lite.programs.train import train
from t5x_lite.training.checkpoints import CheckpointConfig

TEXTS = {"one document": (["the old mill by the river " * 9], 0.1), "no share": (["a", "b"], 0.0)}


def task(texts, held_out, name="text"):
    return tl.Task(name, tl.InMemory(texts, held_out=held_out), tl.CausalLM(), tl.ByteVocabulary())


def arguments(folder, texts, held_out=0.0, **changes):
    return tiny.arguments(
        folder, model=tiny.LM, task=task(texts, held_out), lengths={"targets": 32}, total_steps=3,
        checkpoint=CheckpointConfig(period=2), eval_period=2, num_samples=2, sample_period=1,
    ) | changes  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_it_trains_and_says_so(kind, tmp_path, capsys):
    given = arguments(tmp_path / "run", *TEXTS[kind])
    train(**given, dry_run=True)
    assert "trained without any evaluation: no document is held out" in capsys.readouterr().out
    summary = train(**given)
    out = capsys.readouterr().out
    assert "warning: this run is trained without any evaluation" in out
    assert "t5x_lite eval" not in out and "nan" not in out.lower()
    assert summary["step"] == 3 and "last" not in summary
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert not [name for line in lines for name in line if name.startswith("eval/")]
    assert train(**given) == summary  # it is finished
    assert "is finished: step 3 of 3" in capsys.readouterr().out
    assert train(**given | {"total_steps": 4})["step"] == 4
    names = ("model", "task", "lengths", "batch_size")
    with pytest.raises(UserError, match="'validation' split .* holds no documents"):
        evaluate(model_dir=given["model_dir"], **{name: given[name] for name in names})


def test_what_looks_at_held_out_data_is_refused(tmp_path):
    for change, name in (
        ({"early_stopping": EarlyStopping("loss")}, "early_stopping looks at 'loss'"),
        ({"checkpoint": CheckpointConfig(period=2, keep_best="loss")}, "keep_best looks at 'loss'"),
        ({"task": tl.Mixture("m", [task(["a"], 0.0, "a"), task(["b", "c"], 0.5, "b")], [1, 1])},
         "'a': the 'validation' split"),
    ):  # fmt: skip
        for dry_run in (True, False):
            with pytest.raises(UserError, match=name):
                train(**arguments(tmp_path / "run", ["a", "b"], **change), dry_run=dry_run)
