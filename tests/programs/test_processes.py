"""Two processes with four devices each make the same run as one process with eight."""

import processes
import pytest
import tiny

from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.programs.train import train
from t5x_lite.training.checkpoints import CheckpointConfig


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 1, "fsdp": 2, "tensor": 4}])
def test_two_processes_make_the_run_of_one(mesh, tmp_path):
    """And a run begun by two is continued by one, with the same batches."""
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"mesh": MeshConfig(**mesh), "checkpoint": CheckpointConfig(period=10)}
    train(**tiny.arguments(one, total_steps=20, **changes))
    both = processes.train(2, two, 10, period=10, mesh=mesh, eval_period=10, num_samples=1)
    processes.finish(two, both)
    train(**tiny.arguments(two, total_steps=20, **changes))
    expected, found = tiny.logged(one), tiny.logged(two)
    assert list(found) == list(range(1, 21))
    assert abs(found[1] - expected[1]) < 1e-5
    assert abs(found[20] - expected[20]) < 1e-4
