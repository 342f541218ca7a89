"""The command of this checkout, for the scripts beside this one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def t5x_lite(*arguments: str) -> None:
    """Runs it; ends this process if it fails, with the end of what it said."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "t5x_lite", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")


def report(rows: Iterable[dict], table: Callable[[list[dict]], str], file: str | None) -> None:
    """Prints each row when it is there, then all as a table; writes them as JSON to a file."""
    found = []
    for row in rows:
        found.append(row)
        print(json.dumps(row), flush=True)
    print(table(found))
    if file:
        Path(file).write_text(json.dumps(found, indent=1))
