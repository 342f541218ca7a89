"""`plan --search`: tries layouts of one run, compiles the promising ones, writes the best as gin.

Candidates combine mesh shapes, remat policies, numbers of micro-batches and, if asked for, batch
sizes. Candidates that don't divide, or that need far too much memory by formulas, are left out. The
others are compiled up to code generation (`compile.examine`), in the order of their estimated time.
Those that are shown are then compiled fully. Results are cached, so that a search that was stopped
continues.
"""

import argparse
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.models.config import CHOICES
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.planning import compile as compiling
from t5x_lite.planning import report, topologies, workers
from t5x_lite.planning.compile import Run
from t5x_lite.planning.layouts import Layout
from t5x_lite.planning.topologies import Topology
from t5x_lite.units import gib, seconds

HEADROOM = 2.0  # compile layouts whose estimated memory is at most twice the chip's
READING = 0.75  # share of the time budget for this; the rest is for compiling the best fully
MICROBATCHES = (1, 2, 4, 8)
MAX_TENSOR = 16


def main(args: argparse.Namespace, run: Run, topology: Topology) -> dict[str, Any]:
    """Searches, reports progress on stderr, writes --best; returns a result for JSON."""
    if args.budget_minutes <= 0:
        raise UserError(f"--budget_minutes={args.budget_minutes}: expected more than 0")
    batches = _batches(args.rows_per_chip, run, topology)
    tried = list(candidates(run, topology, batches))
    ranked, left_out = prune(run, topology, tried, args.price)
    workers.say(f"{len(tried)} layouts, {len(ranked)} of them divide and may fit by formulas")
    if topology.compiles:
        plans = list(compile_best(args, topology, [layout for layout, _ in ranked]).values())
    else:
        plans = [plan | workers.described(layout) for layout, plan in ranked]
    fitting = _fitting(plans)
    best = fitting[0] if fitting else None
    result = {
        "topology": topology.name,
        "candidates": len(tried),
        "left_out": left_out,
        "compiled": len(plans),
        "compiled_whole": sum(p["source"] == "compiled" for p in plans),
        "not_compiled": len(ranked) - len(plans),
        "pareto": pareto(fitting),
        "plans": fitting + [p for p in plans if p not in fitting],
        "best": best,
    }
    if best and args.best:
        path = Path(args.best)
        path.write_text(best_gin(best, args), encoding="utf-8")
        result["written"] = str(path)
    return result


def _batches(text: str | None, run: Run, topology: Topology) -> list[int]:
    if not text:
        return [run.batch_size]
    try:
        rows = [float(part) for part in text.split(",")]
    except ValueError:
        rows = [0.0]
    if min(rows) <= 0:
        raise UserError(f"--rows_per_chip={text}: expected positive numbers, such as 2,4,8")
    return sorted({max(1, round(n * topology.chips)) for n in rows})


def candidates(run: Run, topology: Topology, batches: list[int]) -> Iterator[Layout]:
    """Yields every layout that the chips and the model's heads allow."""
    meshes = list(_meshes(run, topology))
    remats = [r for r in CHOICES["remat"] if r != "offload" or topology.compiles]
    for mesh, remat, micro, batch in itertools.product(meshes, remats, MICROBATCHES, batches):
        shards = topology.chips // mesh.tensor // getattr(mesh, "context", 1)
        if batch % (micro * shards) == 0:
            yield Layout(mesh, remat, micro, batch)


def _meshes(run: Run, topology: Topology) -> Iterator[MeshConfig]:
    heads = math.gcd(run.model.num_heads, run.model.kv_heads)
    given = run.mesh or MeshConfig()
    expert = getattr(given, "expert", 1)
    for tensor in (n for n in _divisors(topology.chips) if n <= MAX_TENSOR and heads % n == 0):
        rest, remainder = divmod(topology.chips // tensor, max(1, expert))
        if remainder:
            continue
        for fsdp in _divisors(rest):
            data = rest // fsdp
            if topology.slices > 1 and data % topology.slices:
                continue  # parameters are gathered within a slice only
            mesh = dataclasses.replace(given, data=data, fsdp=fsdp, tensor=tensor, **_unsplit())
            yield mesh
            split = topology.shape
            if (
                hasattr(mesh, "fsdp_split")
                and fsdp == math.prod(split)
                and min(split) > 1
                and topology.compiles
            ):
                yield dataclasses.replace(mesh, fsdp_split=split)


def _unsplit() -> dict[str, None]:
    fields = {f.name for f in dataclasses.fields(MeshConfig)}
    return {"fsdp_split": None} if "fsdp_split" in fields else {}


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def prune(
    run: Run, topology: Topology, layouts: list[Layout], price: float | None = None
) -> tuple[list[tuple[Layout, dict[str, Any]]], dict[str, int]]:
    """Returns layouts that divide and may fit, fastest first, with their plans by formulas."""
    devices = (
        topologies.abstract_devices(topology)
        if topology.compiles
        else compiling.host_devices(topology.chips)
    )
    by_mesh: dict[MeshConfig, Any] = {}
    scored, left_out = [], {"can't divide": 0, "can't fit": 0}
    for layout in layouts:
        one = layout.apply(run)
        if layout.mesh not in by_mesh:
            try:
                by_mesh[layout.mesh] = compiling.set_up_state(one, devices)
            except UserError:
                by_mesh[layout.mesh] = None
        if by_mesh[layout.mesh] is None:
            left_out["can't divide"] += 1
            continue
        setup, state = by_mesh[layout.mesh]
        model = dataclasses.replace(setup.model, config=one.model)
        setup = dataclasses.replace(setup, model=model, batch_size=layout.batch_size)
        found = compiling.counted(one, topology, setup, state)
        memory = found["memory"]
        surely = sum(memory[name] for name in compiling.STATE)
        if surely > memory["limit"] or memory["total"] > HEADROOM * memory["limit"]:
            left_out["can't fit"] += 1
            continue
        plan = report.make(one, topology, setup, state, found, price)
        times = plan["time"]
        seconds = max(times["compute"], times["hbm"]) + 0.5 * times["interconnect"]
        tight = 1.0 if plan["fits"] else 1.3  # layouts that may not fit come last
        scored.append((tight * seconds / setup.tokens_per_batch, len(scored), layout, plan))
    return [(layout, plan) for *_, layout, plan in sorted(scored, key=lambda s: s[:2])], left_out


def compile_best(
    args: argparse.Namespace, topology: Topology, layouts: list[Layout]
) -> dict[Layout, dict[str, Any]]:
    """Returns plans of as many layouts as time allows; the best are compiled fully."""
    start, seconds = time.monotonic(), 60 * args.budget_minutes
    workers.say(f"reading the fastest first, for up to {READING * args.budget_minutes:.3g} minutes")
    read = workers.compile_all(args, topology, layouts, start + READING * seconds, early=True)
    workers.say("compiling the best of them whole")

    def whole(layouts: list[Layout], at_least: int) -> dict[Layout, dict[str, Any] | None]:
        return workers.compile_all(args, topology, layouts, start + seconds, at_least, early=False)

    return settle({layout: plan for layout, plan in read.items() if plan}, whole)


def settle(
    plans: dict[Layout, dict[str, Any]],
    whole: Callable[[list[Layout], int], dict[Layout, dict[str, Any] | None]],
) -> dict[Layout, dict[str, Any]]:
    """Returns the plans; those that `pareto` chooses come from full compilations.

    Args:
      whole: compiles layouts fully until the deadline, but at least the first ``at_least``; gives
        None for one that the compiler refuses.
    """
    while True:
        front = pareto(_fitting(list(plans.values())))
        places = {id(plan): layout for layout, plan in plans.items()}
        todo = [places[id(plan)] for plan in front if plan["source"] == "read"]
        done = whole(todo, int(front[0]["source"] == "read")) if todo else {}
        if not done:
            return plans
        # A layout that doesn't fit after all makes room for others.
        plans = {layout: plan for layout, plan in (plans | done).items() if plan}


def _fitting(plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the plans that fit, fastest first."""
    fitting = (plan for plan in plans if plan["fits"] and "time" in plan)
    return sorted(fitting, key=lambda plan: -plan["tokens_per_second"])


def pareto(plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the Pareto front of time and memory; ``plans`` are sorted by falling speed.

    The program's own size isn't counted, since not all plans come from full compilations.
    """
    front, least = [], math.inf
    for plan in plans:
        bytes_ = plan["memory"]["total"] - plan["memory"].get("program", 0)
        if bytes_ < least:
            front.append(plan)
            least = bytes_
    return front


def as_text(result: dict[str, Any]) -> str:
    """The Pareto table: time against memory."""
    left = ", ".join(f"{n} {why}" for why, n in result["left_out"].items() if n)
    lines = [
        f"== {result['topology']}: {result['candidates']} layouts, {result['compiled']} examined, "
        f"{result['not_compiled']} not reached{f', {left}' if left else ''} ==",
    ]
    if not result["best"]:
        return "\n".join([*lines, "none of them fits: try more chips, or another --rows_per_chip"])
    table = report.layout_rows(result["pareto"])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines += ["  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)) for row in table]
    if any(plan["source"] == "read" for plan in result["pareto"]):
        lines.append("~ no time to compile it whole: without the memory of the program itself")
    lines += ["", "fastest:", report.as_text(result["best"])]
    if "written" in result:
        lines.append(f"\nwritten: {result['written']}; give it behind the recipe's --gin_file")
    return "\n".join(lines)


def best_gin(plan: dict[str, Any], args: argparse.Namespace) -> str:
    """Returns a gin file to give after the recipe's."""
    layout, versions = plan["layout"], plan["versions"]
    recipe = ", ".join(args.gin_file) or "bindings only"
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"# The fastest layout that `t5x_lite plan --search` found for {recipe}",
        f"# on {plan['topology']}: {gib(plan['memory']['total'])} of "
        f"{gib(plan['memory']['limit'])} a chip, at best "
        f"{seconds(plan['time']['as_compiled'])} a step, MFU {plan['mfu']:.1%} ({used}).",
        "# Give it behind the recipe: --gin_file=RECIPE --gin_file=THIS",
        "train.mesh = @MeshConfig()",
    ]
    lines += [f"MeshConfig.{k} = {_gin_value(v)}" for k, v in layout["mesh"].items()]
    lines += [
        f'TransformerConfig.remat = "{layout["remat"]}"',
        f"train.num_microbatches = {layout['num_microbatches']}",
        f"train.batch_size = {layout['batch_size']}",
        f"train.total_steps = {plan['steps']}",
    ]
    return "\n".join(lines) + "\n"


def _gin_value(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else repr(value)
