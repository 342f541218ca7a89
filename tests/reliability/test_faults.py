"""The fault campaign of benchmarks/faults.py, short."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_a_short_campaign(tmp_path):
    """Six faults of five kinds or more; the long campaign is `benchmarks/faults.py --runs 100`."""
    command = [sys.executable, str(PROGRAM), "--runs=6", "--steps=120", "--json"]
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [*command, f"--folder={tmp_path / 'campaign'}"],
        env=env, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["trouble"] == [] and done.returncode == 0
    assert report["faults"] == 6 and len(report["faults_by_kind"]) >= 5
    assert report["mismatches"] == report["crashes_on_start"] == 0
    assert report["processes_started"] > 6
