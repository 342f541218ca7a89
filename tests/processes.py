"""Programs of several processes on this machine, with eight devices together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PREAMBLE = """
import json, sys
from t5x_lite import cli
from t5x_lite.parallel import distributed
address, count, index, arguments = json.loads(sys.argv[1])
def together():
    with distributed.failing_together():
        distributed.initialize(address, count, index)
        import jax
        assert jax.process_count() == count and jax.device_count() == 8
        main(**arguments)
"""
TRAIN = """
def main(model_dir, total_steps, period, mesh, **changes):
    import tiny
    from t5x_lite.parallel.mesh import MeshConfig
    from t5x_lite.programs.train import train
    from t5x_lite.training.checkpoints import CheckpointConfig
    train(**tiny.arguments(model_dir, total_steps=total_steps, mesh=MeshConfig(**mesh),
                           checkpoint=CheckpointConfig(period=period), **changes))
"""


def start(count: int, name: Path, program: str, **arguments: Any) -> list[subprocess.Popen]:
    """`count` processes that call the `main(**arguments)` of `program`; output in name.N.out."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // count}")
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = f"{PREAMBLE}\n{program}\nsys.exit(cli.status_of(together))"
    processes = []
    for index in range(count):
        command = [sys.executable, "-c", code, json.dumps([address, count, index, arguments])]
        with open(f"{name}.{index}.out", "w") as output:
            processes.append(
                subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
            )
    return processes


def train(count: int, model_dir: Path, total_steps: int, period: int = 5, mesh=None, **changes):
    """`count` processes that train tests/tiny.py's model together."""
    arguments = dict(total_steps=total_steps, period=period, mesh=mesh or {}, **changes)
    return start(count, model_dir, TRAIN, model_dir=str(model_dir), **arguments)


def finish(name: Path, started: list[subprocess.Popen]) -> None:
    """Waits for them, which must end well."""
    for index, process in enumerate(started):
        assert process.wait(240) == 0, output(name, index)[-3000:]


def output(name: Path, index: int) -> str:
    return Path(f"{name}.{index}.out").read_text()
