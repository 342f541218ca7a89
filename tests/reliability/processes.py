"""A training program for several processes on this machine, and what starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys
from t5x_lite import cli
from t5x_lite.parallel import distributed
address, count, index, model_dir, steps, changes = json.loads(sys.argv[1])
def main():
    distributed.initialize(address, count, index)
    import jax
    assert jax.process_count() == count and jax.device_count() == 8
    import tiny
    from t5x_lite.programs.train import train
    from t5x_lite.training.checkpoints import CheckpointConfig
    train(**tiny.arguments(model_dir, total_steps=steps,
                           checkpoint=CheckpointConfig(period=5), **changes))
def together():
    with distributed.failing_together():
        main()
sys.exit(cli.status_of(together))
"""


def start(count: int, model_dir: Path, steps: int, **changes) -> list[subprocess.Popen]:
    """`count` processes with 8 devices together; their output is in model_dir.N.out."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // count}")
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = []
    for index in range(count):
        arguments = json.dumps([address, count, index, str(model_dir), steps, changes])
        with open(f"{model_dir}.{index}.out", "w") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, arguments],
                    env=env,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def output(model_dir: Path, index: int) -> str:
    return Path(f"{model_dir}.{index}.out").read_text()
