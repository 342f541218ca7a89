"""Two processes with four devices each make the same run as one process with eight."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.programs.train import train
from t5x_lite.training.checkpoints import CheckpointConfig

PROGRAM = """
import json, sys
from t5x_lite.parallel import distributed
address, count, index, model_dir, steps, mesh = json.loads(sys.argv[1])
distributed.initialize(address, count, index)
import jax
assert jax.process_count() == count and jax.device_count() == 8
import tiny
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.programs.train import train
from t5x_lite.training.checkpoints import CheckpointConfig
train(**tiny.arguments(model_dir, total_steps=steps, mesh=MeshConfig(**mesh), eval_period=10,
                       checkpoint=CheckpointConfig(period=10), num_samples=1))
"""


def run_processes(count: int, model_dir: Path, steps: int, mesh: dict[str, int]) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // count}")
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = []
    for index in range(count):
        arguments = json.dumps([address, count, index, str(model_dir), steps, mesh])
        command = [sys.executable, "-c", PROGRAM, arguments]
        processes.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 1, "fsdp": 2, "tensor": 4}])
def test_two_processes_make_the_run_of_one(mesh, tmp_path):
    """And a run begun by two is continued by one, with the same batches."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(
        **tiny.arguments(
            one, total_steps=20, mesh=MeshConfig(**mesh), checkpoint=CheckpointConfig(period=10)
        )
    )
    run_processes(2, two, 10, mesh)
    train(
        **tiny.arguments(
            two, total_steps=20, mesh=MeshConfig(**mesh), checkpoint=CheckpointConfig(period=10)
        )
    )
    expected, found = tiny.logged(one), tiny.logged(two)
    assert list(found) == list(range(1, 21))
    assert abs(found[1] - expected[1]) < 1e-5
    assert abs(found[20] - expected[20]) < 1e-4
