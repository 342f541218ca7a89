"""Every mesh of up to 8 devices compiles a training step and computes what one device computes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite.parallel import xla_flags
from t5x_lite.parallel.mesh import AXES

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
KINDS = [(name, dtype) for name in ("t5", "lm", "bert") for dtype in ("float32", "bfloat16")]


def factorisations(devices: int, axes: int) -> list[tuple[int, ...]]:
    """All ways to write a number as a product of ``axes`` factors, in order."""
    if axes == 1:
        return [(devices,)]
    return [
        (first, *rest)
        for first in range(1, devices + 1)
        if devices % first == 0
        for rest in factorisations(devices // first, axes - 1)
    ]


def meshes(*numbers: int) -> list[dict[str, int]]:
    every = [sizes for number in numbers for sizes in factorisations(number, len(AXES))]
    return [{axis: size for axis, size in zip(AXES, m, strict=True) if size > 1} for m in every]


def run(cases: list) -> dict[str, float | str]:
    """The losses, or what went wrong; in a process of its own: XLA may end it."""
    environment = dict(os.environ, XLA_FLAGS=FLAGS)
    xla_flags.apply_defaults(environment)
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("one_step.py")), json.dumps(cases)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.split("\n") if line.startswith("[")]
    found = {json.dumps(line[:-1]): line[-1] for line in lines}
    if len(found) < len(cases):
        found[json.dumps(cases[len(lines)])] = f"status {done.returncode}: {done.stderr[-2000:]}"
    return found


def check(cases: list) -> None:
    alone = [list(case) for case in dict.fromkeys((name, dtype) for name, dtype, _ in cases)]
    found = run([[*case, {}] for case in alone] + cases)
    expected = {tuple(case): found.get(json.dumps([*case, {}]), found) for case in alone}
    assert all(isinstance(loss, float) for loss in expected.values()), expected
    wrong = {}
    for name, dtype, sizes in cases:
        loss = found.get(json.dumps([name, dtype, sizes]), "not reached")
        near = 1e-3 if dtype == "float32" else 3e-2
        if not isinstance(loss, float) or abs(loss - expected[name, dtype]) > near:
            wrong[name, dtype, json.dumps(sizes)] = (loss, expected[name, dtype])
    assert not wrong


def test_meshes_of_each_kind():
    rng = random.Random(0)
    several = [m for m in meshes(4, 8) if len(m) > 1]
    cases = [["t5", "float32", {"tensor": 2}], ["lm", "float32", {"tensor": 2}]]
    cases += [["lm", "bfloat16", {"fsdp": 2, "tensor": 2}], ["t5", "bfloat16", {"tensor": 2}]]
    cases += [["t5", "float32", rng.choice(several)], ["lm", "bfloat16", rng.choice(several)]]
    cases += [["bert", "float32", rng.choice(several)]]
    check(cases)


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", KINDS)
def test_every_mesh(name, dtype):
    """Some of the 55 meshes of 2, 4 and 8 devices; all (20 minutes) if the variable is set."""
    chosen = meshes(2, 4, 8)
    if not os.environ.get("T5X_LITE_EVERY_MESH"):
        chosen = random.Random(f"{name} {dtype}").sample(chosen, 6)
    check([[name, dtype, sizes] for sizes in chosen])
