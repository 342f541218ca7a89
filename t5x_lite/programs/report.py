"""`t5x_lite report`: one run, or several beside each other, as one HTML page."""

import argparse
import json
import logging
import os
from pathlib import Path
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.report import run_page
from t5x_lite.report.runs import Run, differences

log = logging.getLogger(__name__)

PAGE = "report.html"  # in the run's folder


def main(args: argparse.Namespace) -> int:
    runs = [Run(folder) for folder in args.runs]
    target = args.html or (str(runs[0].folder / PAGE) if len(runs) == 1 else "compared_runs.html")
    if args.json:
        print(json.dumps(as_json(runs), indent=1, default=str))
        return 0
    size = write(runs, target)
    for row in differences(runs) if len(runs) > 1 else []:
        print(f"{row[0]}: {' | '.join(row[1:])}")
    print(f"page: {target} ({size / 1000:,.0f} kB)")
    return 0


def as_json(runs: list[Run]) -> dict[str, Any]:
    """The same facts as values: of each run the latest number of every name, and its summary."""
    return {
        "runs": {
            str(run.folder): {
                "last": run.last,
                "summary": run.summary,
                "config": run.config,
                "hyperparameters": run.hyperparameters,
            }
            for run in runs
        },
        "differences": [{"name": name, "values": values} for name, *values in differences(runs)],
    }


def write(runs: list[Run], target: str | os.PathLike) -> int:
    """Writes the page, whole or not at all; returns its bytes. Raises UserError if it can't."""
    text = run_page.render(runs).encode()
    beside = Path(f"{target}.tmp")
    try:
        beside.write_bytes(text)
        beside.replace(target)
    except OSError as error:
        raise UserError(f"can't write the page {target}: {error}.") from error
    return len(text)


def write_quietly(model_dir: str) -> str | None:
    """The page of a run that has just ended, and its path; what goes wrong is a warning."""
    target = os.path.join(model_dir, PAGE)
    try:
        write([Run(model_dir)], target)
    except Exception as error:  # a run must not fail for its page
        log.warning("the page of %s was not written: %s", model_dir, error)
        return None
    return target
