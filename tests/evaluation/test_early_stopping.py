"""A run that is ended early, and asked to go on."""

import gin
import pytest
import tiny

from t5x_lite import config
from t5x_lite.programs.train import train


@pytest.mark.slow
def test_a_run_ends_when_it_gets_no_better_and_stays_ended(tmp_path, capsys):
    arguments = tiny.arguments(tmp_path, total_steps=6, eval_period=2)
    with config.fresh():
        config.register_all()
        gin.bind_parameter("EarlyStopping.metric", "loss")
        gin.bind_parameter("EarlyStopping.patience", 2)
        gin.bind_parameter("EarlyStopping.min_delta", 1000.0)
        gin.bind_parameter("EarlyStopping.model_dir", str(tmp_path))
        assert (
            train(**arguments)["step"] == 4
        )  # the evaluations at 2 and 4 were no better than at 0
        assert (tmp_path / "checkpoints" / "4").exists()
        assert train(**arguments)["step"] == 4
    assert max(tiny.logged(tmp_path)) == 4
    assert train(**arguments)["step"] == 6  # without it, the run goes on
