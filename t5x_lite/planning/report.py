"""A plan: all results for a run on a topology, as JSON and as a table."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.models.flops import train_flops
from t5x_lite.planning import roofline
from t5x_lite.planning.compile import Run, versions
from t5x_lite.planning.topologies import Topology
from t5x_lite.training.setup import Setup
from t5x_lite.training.state import TrainState
from t5x_lite.units import gib, seconds, short

Row = tuple[str, str]
_ROOT = f"{Path(__file__).parents[2]}/"
MEMORY = (
    ("parameters", "parameters"),
    ("optimizer", "optimizer"),
    ("gradients", "gradients"),
    ("activations", "activations and temporary"),
    ("program", "the program itself"),
)
BOUNDS = (
    ("compute", "compute"),
    ("hbm", "HBM"),
    ("interconnect", "interconnect"),
    ("overlapped", "all overlapped"),
    ("not_overlapped", "nothing overlapped"),
    ("as_compiled", "as compiled"),
)


def make(
    run: Run,
    topology: Topology,
    setup: Setup,
    state: TrainState,
    found: dict[str, Any],
    price: float | None = None,
) -> dict[str, Any]:
    """Returns the plan, ready for JSON. ``price``: per chip and hour."""
    import jax

    c, tokens = setup.model.config, setup.tokens_per_batch
    model_flops = train_flops(c, setup.feature_lengths, setup.batch_size)
    compiled = "read" if found.get("early") else "compiled"
    plan: dict[str, Any] = {
        "topology": topology.name,
        "chips": topology.chips,
        "chip": topology.chip.kind,
        "source": compiled if topology.compiles else "formulas",
        "versions": versions(),
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "model": f"{c.architecture}, {c.embed_dim} wide, "
        + (f"{c.num_encoder_layers}+" if c.has_encoder else "")
        + f"{c.num_decoder_layers} layers, remat {c.remat}",
        "mesh": dict(setup.mesh.shape),
        "remat": c.remat,
        "batch_size": setup.batch_size,
        "num_microbatches": run.num_microbatches,
        "tokens_per_step": tokens,
        "steps": run.total_steps,
        "tokens": tokens * run.total_steps,
        "fits": found["fits"],
        "memory": found["memory"],
        "buffers": found["buffers"],
        "model_flops": model_flops,
        "compile_seconds": found.get("compile_seconds"),
    }
    if "matmul_flops" not in found:  # the compiler left no text to read
        return plan
    executed = found["matmul_flops"]
    times = roofline.estimate(
        topology=topology,
        executed_flops=sum(executed.values()),
        model_flops=model_flops,
        hbm_bytes=found["hbm_bytes"],
        collectives=found["collectives"],
        tokens=tokens,
        busy=found["busy_seconds"],
    )
    return plan | {
        "executed_flops_per_chip": executed,
        "hbm_bytes_per_chip": found["hbm_bytes"],
        "collectives": found["collectives"],
        "time": times,
        "mfu": times["mfu"],
        "tokens_per_second": times["tokens_per_second"],
        "price": price,
        **roofline.budget(times["as_compiled"], run.total_steps, topology.chips, price),
    }


def total(plan: dict[str, Any]) -> str:
    """Memory of a chip as text; "~": without the program itself, as no code was generated."""
    return "~" * (plan["source"] == "read") + gib(plan["memory"]["total"])


def as_text(plan: dict[str, Any]) -> str:
    """The plan as a table."""
    mesh = " x ".join(f"{axis}={n}" for axis, n in plan["mesh"].items() if n > 1) or "one chip"
    lines = [f"== {plan['topology']}: {plan['chips']:,} x {plan['chip']}, mesh {mesh} =="]
    for title, rows in sections(plan):
        lines += ["", title, *(f"  {name:<28}  {value}" for name, value in rows)]
    return "\n".join(lines)


def sections(plan: dict[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """Yields titles and rows in the order in which they are shown."""
    micro = plan["num_microbatches"]
    batch = f"{plan['batch_size']:,} rows = {plan['tokens_per_step']:,} tokens"
    yield (
        "the training step",
        [
            ("model", f"{plan['parameters']:,} parameters, {plan['model']}"),
            ("batch", batch + (f", in {micro} micro-batches" if micro > 1 else "")),
            ("found by", _source(plan)),
        ],
    )
    yield "memory per chip", list(_memory_rows(plan))
    if not plan["fits"] and plan["buffers"]:
        yield "largest buffers", buffer_rows(plan)
    if "time" in plan:
        yield "one step, per chip", list(_work_rows(plan))
        times = [(label, seconds(plan["time"][name])) for name, label in BOUNDS]
        yield "time of one step, at best", times
        yield "the run", list(_run_rows(plan))


def _source(plan: dict[str, Any]) -> str:
    if plan["source"] == "formulas":
        return "formulas (no compiler for this chip here)"
    how = "compiling it" if plan["source"] == "compiled" else "reading it before code is generated"
    used = ", ".join(f"{name} {version}" for name, version in plan["versions"].items())
    return f"{how}: {used}, {plan['compile_seconds']:.0f} s"


def _memory_rows(plan: dict[str, Any]) -> Iterator[Row]:
    memory = plan["memory"]
    for name, label in MEMORY:
        if name in memory:
            yield label, gib(memory[name])
    share = memory["total"] / memory["limit"]
    verdict = "fits" if plan["fits"] else f"{gib(memory['total'] - memory['limit'])} too much"
    yield "total", f"{gib(memory['total'])} of {gib(memory['limit'])} ({share:.1%}): {verdict}"
    if memory.get("host"):
        yield "on the host", gib(memory["host"])


def buffer_rows(plan: dict[str, Any]) -> list[Row]:
    """Rows of size; shape, source line and operation name."""
    rows = []
    for row in plan["buffers"]:
        times = f"{row['number']} x " if row["number"] > 1 else ""
        file = row["source"].removeprefix(_ROOT)
        made_by = "/".join(row["made_by"].split("/")[-3:])
        rows.append((f"{times}{gib(row['bytes'])}", f"{row['shape']}  {file}  {made_by}"))
    return rows


def _work_rows(plan: dict[str, Any]) -> Iterator[Row]:
    executed = plan["executed_flops_per_chip"]
    parts = ", ".join(f"{phase} {short(n)}" for phase, n in executed.items() if n)
    yield "model FLOPs", short(plan["model_flops"] / plan["chips"])
    yield "executed FLOPs", f"{short(sum(executed.values()))} ({parts})"
    yield "HBM traffic", f"{plan['hbm_bytes_per_chip'] / 1e9:,.1f} GB"
    for row in plan["collectives"]:
        waits = 1 - row["overlapped"] / row["bytes"] if row["bytes"] else 0.0
        yield (
            f"{row['kind']} over {row['axes']}",
            f"{row['bytes'] / 1e9:,.3f} GB sent, {row['times']:,} times, "
            f"{seconds(row['seconds'])}, {waits:.0%} of it waited for",
        )


def _run_rows(plan: dict[str, Any]) -> Iterator[Row]:
    time = plan["time"]
    yield (
        "MFU",
        f"{plan['mfu']:.1%} (all overlapped {time['mfu_overlapped']:.1%}, "
        f"nothing overlapped {time['mfu_not_overlapped']:.1%})",
    )
    yield "tokens/s", f"{plan['tokens_per_second']:,.0f}"
    yield "steps", f"{plan['steps']:,} = {short(plan['tokens'])} tokens"
    yield "time", f"{plan['days']:,.3g} days = {plan['chip_hours']:,.6g} chip-hours"
    if plan["cost"] is not None:
        yield "cost", f"{plan['cost']:,.2f} at {plan['price']} per chip-hour"


def layout_rows(plans: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a header, and a row for each plan of a search."""
    head = ("mesh", "remat", "micro", "batch", "memory", "step", "MFU", "tokens/s", "chip-hours")
    rows: list[tuple[str, ...]] = [head]
    for plan in plans:
        speed = ("-", "-", "-", "-")
        if "time" in plan:
            speed = (
                seconds(plan["time"]["as_compiled"]),
                f"{plan['mfu']:.1%}",
                f"{plan['tokens_per_second']:,.0f}",
                f"{plan['chip_hours']:,.6g}",
            )
        memory = total(plan) + ("" if plan["fits"] else " (doesn't fit)")
        rows.append(
            (plan["layout"]["text"], plan["remat"], str(plan["num_microbatches"]),
             f"{plan['batch_size']:,}", memory, *speed)
        )  # fmt: skip
    return rows
