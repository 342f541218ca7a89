"""Two processes with four devices each predict what one with eight does, each example once."""

import json

import processes
import pytest
from predicting import predict_to

PREDICT = """
def main(path):
    from predicting import predict_to
    predict_to(path)
"""


@pytest.mark.slow
def test_two_processes_predict_the_examples_of_one(tmp_path):
    predict_to(str(tmp_path / "one"))
    name = tmp_path / "two"
    processes.finish(name, processes.start(2, name, PREDICT, path=str(name)))
    [expected, first, second] = [
        json.loads((tmp_path / f"{file}.json").read_text()) for file in ("one.0", "two.0", "two.1")
    ]
    assert first == second and len(first["rows"]) == 11
    assert first["values"] == pytest.approx(expected["values"], rel=1e-4)
    for row, other in zip(expected["rows"], first["rows"], strict=True):
        assert (row["index"], row["prediction"]) == (other["index"], other["prediction"])
        assert row["target_score"] == pytest.approx(other["target_score"], rel=1e-4)
