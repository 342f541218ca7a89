"""`t5x_lite plan`: what a run needs on hardware that isn't here: memory, time, cost, layout."""

import argparse
import json
from pathlib import Path
from typing import Any

from t5x_lite import gin_files
from t5x_lite.errors import UserError
from t5x_lite.planning import topologies
from t5x_lite.planning.runs import cache_dir, make_plan, read_run, start_jax


def main(args: argparse.Namespace) -> int:
    if not args.gin_file and not args.gin_bindings:
        raise UserError(
            f"plan needs --gin_file=FILE (shipped ones are in {gin_files.shipped_gin_configs()})"
        )
    topology = topologies.find(args.topology)
    if args.price is not None and args.price < 0:
        raise UserError(f"--price={args.price}: expected 0 or more, for one chip and one hour")
    start_jax()
    run = read_run(args, topology)
    if args.search:
        from t5x_lite.planning import search

        result = search.main(args, run, topology)
        _write(args, result)
        return 0 if result["best"] else 1
    plan = make_plan(run, topology, price=args.price, cache_dir=cache_dir(args))
    _write(args, plan)
    return 0 if plan["fits"] else 1


def _write(args: argparse.Namespace, plan: dict[str, Any]) -> None:
    if args.html:
        from t5x_lite.planning import page

        Path(args.html).write_text(page.render(plan), encoding="utf-8")
    if args.json:
        print(json.dumps(plan, indent=1))
        return
    if "candidates" in plan:
        from t5x_lite.planning import search

        print(search.as_text(plan))
    else:
        from t5x_lite.planning import report

        print(report.as_text(plan))
    if args.html:
        print(f"\npage: {args.html}")
