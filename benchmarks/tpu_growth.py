"""How a step grows with devices and with sequence length, compiled for TPU slices.

  python benchmarks/tpu_growth.py --what=devices            # bytes a chip, 16 to 1024 chips
  python benchmarks/tpu_growth.py --what=length             # memory and time, 512 to 32768 tokens
  python benchmarks/tpu_growth.py --what=devices --sizes=16,64 --layers=2       # quick

The model is that of tpu_compiled.py's --case (default: a, 1B): fsdp over all chips, the rows a chip
constant (devices), or the tokens a chip constant on v5e-16 (length). Prints a JSON object a size
and a table at the end. Needs libtpu, no TPU.
"""

import argparse
import json
import sys

import tpu_compiled

SIZES = {"devices": (16, 64, 256, 1024), "length": (512, 2048, 8192, 32768)}
TOPOLOGIES = {16: "v5e-16", 64: "v5e-64", 256: "v5e-256", 1024: "4xv5e-256"}
COLUMNS = ("size", "fits", "peak_gib", "arguments_gib", "sent_gb", "hbm_gb", "bound_seconds",
           "compile_cpu_seconds")  # fmt: skip


def measure(what: str, size: int, case: str, layers: int | None, changes: dict) -> dict:
    """The figures of one size."""
    from t5x_lite.planning import report, topologies
    from t5x_lite.planning.compile import examine, trace

    if what == "devices":
        name = TOPOLOGIES.get(size, f"v5e-{size}")
        changes = changes | ({"data": 4, "fsdp": -1} if size > 256 else {})  # one a slice
    else:
        _, _, tokens, rows, _ = tpu_compiled.CASES[case]
        name = "v5e-16"
        # At least one row a chip: past that, the tokens of a chip grow.
        changes = changes | {"tokens": size, "per_chip": max(1, rows * tokens // size)}
    run, place = tpu_compiled.build(case, changes, layers, name)
    traced = trace(run, topologies.abstract_devices(place))
    found = examine(traced, place)
    plan = report.make(run, place, traced.setup, traced.state, found)
    seconds = plan["time"]["as_compiled"] if "time" in plan else None
    return {"what": what, "size": size, "topology": name, "bound_seconds": seconds} | (
        tpu_compiled.figures(run, place, found)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=SIZES, default="devices")
    parser.add_argument("--sizes", metavar="N[,N]")
    parser.add_argument("--case", choices=tpu_compiled.CASES, default="a")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    sizes = [int(n) for n in args.sizes.split(",")] if args.sizes else SIZES[args.what]
    pairs = (pair.partition("=") for pair in args.set)
    changes = {name: tpu_compiled.literal(value) for name, _, value in pairs}
    rows = []
    for size in sizes:
        rows.append(measure(args.what, size, args.case, args.layers, changes))
        print(json.dumps(rows[-1]), flush=True)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in COLUMNS) + " |")


if __name__ == "__main__":
    sys.exit(main())
