"""A run that is ended early, and asked to go on."""

import pytest
import tiny

from t5x_lite import config
from t5x_lite.programs.early_stopping import EarlyStopping
from t5x_lite.programs.train import train


@pytest.mark.slow
def test_a_run_ends_when_it_gets_no_better_and_stays_ended(tmp_path, capsys):
    arguments = tiny.arguments(tmp_path, total_steps=6, eval_period=2)
    early_stopping = EarlyStopping("loss", patience=2, min_delta=1000.0)
    # The evaluations at 2 and 4 were no better than at 0.
    assert train(**arguments, early_stopping=early_stopping)["step"] == 4
    assert (tmp_path / "checkpoints" / "4").exists()
    assert train(**arguments, early_stopping=early_stopping)["step"] == 4
    assert max(tiny.logged(tmp_path)) == 4
    with config.fresh():  # in a gin file its own name is enough
        lines = ["metric='loss'", "patience=2", "min_delta=1000.0"]
        config.parse([], [f"EarlyStopping.{line}" for line in lines])
        assert config.call("train", **arguments)["step"] == 4
    assert train(**arguments)["step"] == 6  # without it, the run goes on
