"""How a step grows with sequence length, layers and devices, compiled for TPU slices.

  python benchmarks/tpu_growth.py                                   # all three, a table each
  python benchmarks/tpu_growth.py --what=devices --sizes=16,64 --set num_decoder_layers=2
  python benchmarks/tpu_growth.py --what=length --json=growth.json

  length   512 to 32768 tokens, 32768 tokens in all: memory and time of one v5e chip (125M)
  layers   4 to 64 of them: time to trace and to compile (125M, one chip)
  devices  16 to 1024 chips, 4 rows of 2048 tokens on each: what a chip holds and sends (1B);
           fsdp over the chips of a slice of at most 256, `data` over slices

Prints a JSON object a size, and the tables at the end. Needs libtpu, no TPU. Times of a step are
bounds (docs/plan.md), those of tracing and compiling are processor seconds of this machine.

The program is read as soon as the compiler has optimised it and laid out its memory, some seconds
after it starts; generating code, which takes minutes, changes neither. Memory is then arguments,
results and temporary buffers, somewhat more than the peak. --whole compiles to the end.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import tpu_compiled

SIZES = {
    "length": (512, 2048, 8192, 32768),
    "layers": (4, 16, 64),
    "devices": (16, 64, 256, 1024),
}
CASES = {"length": "c", "layers": "c", "devices": "a"}
COLUMNS = {
    "length": ("size", "fits", "memory_gib", "temporary_gib", "hbm_gb", "step_seconds", "mfu"),
    "layers": ("size", "trace_seconds", "compile_cpu_seconds", "memory_gib", "step_seconds"),
    "devices": ("size", "topology", "fits", "memory_gib", "arguments_gib", "sent_gb",
                "waited_for_gb", "step_seconds", "mfu"),
}  # fmt: skip
TOKENS = 32768  # of a chip, where the length grows


def setting(what: str, size: int) -> tuple[str, dict]:
    """(topology, changes to the case)"""
    if what == "length":
        return "v5e-1", {"tokens": size, "per_chip": TOKENS // size}
    if what == "layers":
        return "v5e-1", {"num_decoder_layers": size, "tokens": 1024, "per_chip": 2}
    slices = -(-size // 256)
    name = f"{slices}xv5e-{size // slices}" if slices > 1 else f"v5e-{size}"
    return name, {"data": slices}


def measure(what: str, size: int, changes: dict, whole: bool) -> dict:
    """The figures of one size."""
    from t5x_lite.planning import report, topologies
    from t5x_lite.planning.compile import examine, trace

    name, own = setting(what, size)
    place = topologies.find(name)
    split = place.shape if min(place.shape) > 1 else None
    own |= {"fsdp": place.chips // place.slices, "fsdp_split": split}
    run, place = tpu_compiled.build(CASES[what], own | changes, None, name)
    clock = time.process_time()
    traced = trace(run, topologies.abstract_devices(place))
    tracing = time.process_time() - clock
    found = examine(traced, place, early=not whole)
    plan = report.make(run, place, traced.setup, traced.state, found)
    row = {"what": what, "size": size, "topology": name, "trace_seconds": round(tracing, 1)}
    row |= tpu_compiled.figures(run, place, found)
    row["memory_gib"] = round(found["memory"]["total"] / 2**30, 3)
    if "time" in plan:
        sent = found["collectives"]
        waited = sum(c["bytes"] - c["overlapped"] for c in sent)
        row |= {
            "step_seconds": round(plan["time"]["as_compiled"], 4),
            "mfu": round(plan["mfu"], 3),
            "waited_for_gb": round(waited / 1e9, 2),
        }
    return row


def in_process(what: str, size: int, args: argparse.Namespace) -> dict:
    """`measure` in a process of its own, which ends with its compiler."""
    command = [sys.executable, __file__, f"--what={what}", f"--sizes={size}", "--one"]
    command += [f"--set={pair}" for pair in args.set] + ["--whole"] * args.whole
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode or not done.stdout.startswith("{"):
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout)


def table(what: str, rows: list[dict]) -> str:
    columns = COLUMNS[what]
    head = f"\n{what}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    lines = (f"| {' | '.join(str(row.get(name, '-')) for name in columns)} |" for row in rows)
    return head + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", action="append", choices=SIZES, help="may be repeated")
    parser.add_argument("--sizes", metavar="N[,N]", help="others, with one --what")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--whole", action="store_true", help="generate code, too")
    parser.add_argument("--json", metavar="FILE", help="where to write all rows, too")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        pairs = (pair.partition("=") for pair in args.set)
        changes = {name: tpu_compiled.literal(value) for name, _, value in pairs}
        print(json.dumps(measure(args.what[0], int(args.sizes), changes, args.whole)), flush=True)
        os._exit(0)  # without waiting for the compiler
    tables, rows = [], []
    for what in args.what or SIZES:
        sizes = [int(n) for n in args.sizes.split(",")] if args.sizes else SIZES[what]
        part = []
        for size in sizes:
            part.append(in_process(what, size, args))
            print(json.dumps(part[-1]), flush=True)
        tables.append(table(what, part))
        rows += part
    print("\n".join(tables))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
