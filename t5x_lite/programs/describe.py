"""What a run says about itself: derived numbers at the start, tables, the summary at the end."""

import math
import os
import shlex
from collections.abc import Collection
from typing import Any

import jax

from t5x_lite import config
from t5x_lite.parallel import distributed
from t5x_lite.planning import analytic
from t5x_lite.training import state as state_lib
from t5x_lite.training.goodput import shares
from t5x_lite.training.schedule_base import Schedule
from t5x_lite.training.setup import Setup
from t5x_lite.training.telemetry import peak_flops
from t5x_lite.training.trackers import read_json_lines
from t5x_lite.training.trainable import part
from t5x_lite.units import duration, gib, short


def derived_numbers(
    setup: Setup,
    abstract: state_lib.TrainState,
    total_steps: int,
    flops: float,
    num_microbatches: int = 1,
    trained: Collection[str] | None = None,
) -> dict[str, Any]:
    """Everything that follows from the configuration, by name, as it is printed."""
    devices = list(setup.mesh.devices.flat)
    c = setup.model.config
    parameters = _size(abstract.params)
    own = parameters if trained is None else _size(part(abstract.params, trained))
    share = f", {own:,} of them ({own / parameters:.2%}) are trained"
    tokens = setup.tokens_per_batch
    peak = peak_flops(devices[0])
    counted = analytic.counts(setup, abstract, num_microbatches)["memory"]
    memory = sum(counted[n] for n in ("parameters", "optimizer", "gradients", "activations"))
    bytes_per_device = sum(_shard_bytes(x) for x in jax.tree.leaves(abstract))
    counts = (c.num_encoder_layers, c.num_decoder_layers)
    layers = "+".join(str(count) for count in counts if count)
    return {
        "model": f"{c.architecture}, {layers} layers, {c.embed_dim} wide, {c.num_heads} heads",
        "parameters": f"{parameters:,}" + (share if own < parameters else ""),
        "task": f"{setup.task.name}: {type(setup.task.objective).__name__}, "
        f"vocabulary of {setup.task.vocabulary.size:,}",
        "features": ", ".join(
            f"{k} {v}"
            for k, v in setup.feature_lengths.items()
            if "tokens" in k or k in ("encoder_anchor", "encoder_positive", "encoder_negative")
        ),
        "devices": f"{len(devices)} x {devices[0].device_kind}, mesh "
        + " x ".join(f"{axis}={size}" for axis, size in setup.mesh.shape.items())
        + (f", {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        "compute dtype": str(jax.numpy.dtype(setup.model.dtype)),
        "state per device": f"{bytes_per_device / 2**20:,.1f} MiB (parameters and optimizer)",
        "memory predicted": f"{gib(memory)} per device, with gradients and activations",
        "batch": f"{setup.batch_size} rows = {tokens:,} tokens",
        "steps": f"{total_steps:,} = {short(total_steps * tokens)} tokens",
        "model FLOPs per step": short(flops),
        "peak FLOP/s": f"{short(peak * len(devices))}" if peak else "not known for this device",
    }


def schedule_text(schedule: Any) -> str:
    """A learning-rate schedule in words that stay the same from one process to the next."""
    return (
        repr(schedule) if isinstance(schedule, Schedule) else getattr(schedule, "__name__", "own")
    )


def schedule_change(before: str | None, schedule: Any, step: int) -> list[str]:
    """What to say where a run goes on with another schedule than the one `before`."""
    now = schedule_text(schedule)
    if before is None or before == now:
        return []
    return [f"up to step {step:,} the learning rate was {before}; now it is {now}, "
            f"{float(schedule(step)):.1e} at this step"]  # fmt: skip


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def print_start(numbers: dict[str, Any]) -> None:
    """Prints the derived numbers, one a line."""
    if distributed.is_main_process():
        for name, value in numbers.items():
            print(f"{name:>20}  {value}", flush=True)


def print_dry_run(setup: Setup, abstract: state_lib.TrainState, axes: Any, numbers: Any) -> None:
    """Prints the operative configuration, the parameter table and the derived numbers."""
    if distributed.is_main_process():
        print(config.operative_config())
        print(parameter_table(abstract.params, axes))
        print_start(numbers)


def parameter_table(abstract_params: Any, axes: Any) -> str:
    """A text table: name, shape, logical axes, mesh axes, dtype; totals in the last lines."""
    rows = state_lib.parameter_table(abstract_params, axes)
    header = ("name", "shape", "logical axes", "mesh axes", "dtype")
    lines = [header]
    for row in rows:
        mesh = ", ".join(
            "*".join(a) if isinstance(a, tuple) else str(a or "-") for a in row["mesh"]
        )
        shape = " x ".join(map(str, row["shape"]))
        lines.append((row["name"], shape, ", ".join(row["axes"]), mesh, row["dtype"]))
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(f"{v:<{w}}" for v, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    total = sum(row["size"] for row in rows)
    sizes = sum(row["size"] * jax.numpy.dtype(row["dtype"]).itemsize for row in rows)
    text.append(f"{len(rows)} parameters, {total:,} elements, {sizes / 2**20:,.1f} MiB")
    return "\n".join(text) + "\n"


def print_summary(
    model_dir: str,
    summary: dict[str, Any],
    samples: list[dict[str, str]] | None = None,
    checked: dict[str, str] | None = None,
    page: str | None = None,
) -> dict[str, Any]:
    """Prints and returns a `summary`; `checked`: measured beside predicted; `page`: its report."""
    if distributed.is_main_process():
        lines = _summary_lines(model_dir, summary, samples or [], checked or {}, page)
        print("\n".join(lines), flush=True)
    return summary


def summary(model_dir: str, step: int) -> dict[str, Any]:
    """Returns what the run achieved, from what it logged.

    Keys: step, first and last (evaluation metrics), unigram_loss, unigram_bits_per_byte,
    tokens_per_second (median), train_seconds, goodput and time (see training/goodput.py),
    restarts, checkpoint.
    """
    lines = read_json_lines(os.path.join(model_dir, "metrics.jsonl"))
    evals = [line for line in lines if "eval/loss" in line]
    rates = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    seconds = [line["train_seconds"] for line in lines if "train_seconds" in line]
    found: dict[str, Any] = {
        "step": step,
        "checkpoint": os.path.join(model_dir, "checkpoints", str(step)),
        "tokens_per_second": rates[len(rates) // 2] if rates else None,
        "train_seconds": seconds[-1] if seconds else None,
    }
    if timed := [line for line in lines if "goodput" in line]:
        found |= {name: timed[-1][name] for name in ("goodput", "restarts")}
        found["time"] = shares(timed[-1])
    if evals:
        found |= {"first": _eval_values(evals[0]), "last": _eval_values(evals[-1])}
        for name in ("unigram_loss", "unigram_bits_per_byte"):
            found[name] = evals[0].get(f"eval/{name}")
    return found


def _eval_values(line: dict[str, Any]) -> dict[str, float]:
    return {k.removeprefix("eval/"): v for k, v in line.items() if k.startswith("eval/")}


def continue_command(model_dir: str, step: int) -> str:
    """What trains a finished run for as many steps again, for a shell."""
    gin_file = shlex.quote(os.path.join(model_dir, "config.gin"))
    return f"t5x_lite train --gin_file={gin_file} --gin.train.total_steps={2 * step}"


def _summary_lines(
    model_dir: str,
    summary: dict[str, Any],
    samples: list[dict[str, str]],
    checked: dict[str, str],
    page: str | None,
) -> list[str]:
    lines = ["", f"== {model_dir}: {summary['step']:,} steps =="]
    if "first" in summary:
        first, last = summary["first"], summary["last"]
        lines.append(f"{'held-out data':>20}  {'start':>8}  {'end':>8}  unigram entropy")
        for name, label in (("loss", "nats per token"), ("bits_per_byte", "bits per byte")):
            if name in last:
                unigram = summary.get(f"unigram_{name}")
                baseline = f"  {unigram:>8.4f}" if unigram is not None else ""
                lines.append(f"{label:>20}  {first[name]:>8.4f}  {last[name]:>8.4f}{baseline}")
        lines.append(f"{'accuracy':>20}  {first['accuracy']:>8.2%}  {last['accuracy']:>8.2%}")
    if summary["tokens_per_second"]:
        lines.append(
            f"{'speed':>20}  {short(summary['tokens_per_second'])} tokens/s, "
            f"{duration(summary['train_seconds'])} of training"
        )
    if "time" in summary:
        lines.append(f"{'time':>20}  {summary['time']}")
    if summary.get("restarts"):
        lines.append(f"{'restarts':>20}  {summary['restarts']:.0f} after crashes")
    lines += [f"{name:>20}  {value}" for name, value in checked.items()]
    lines.append(f"{'checkpoint':>20}  {summary['checkpoint']}")
    lines += [f"{'page':>20}  {page}"] if page else []
    lines += ["", "Next:"]
    gin_file = shlex.quote(os.path.join(model_dir, "config.gin"))
    if "first" in summary:
        lines.append(f"  t5x_lite eval --gin_file={gin_file} --checkpoint=all")
    if samples:  # of an encoder there are none
        masked = "<extra_id_0>" in samples[0].get("input", "")
        prompt = "import <extra_id_0> as np" if masked else "def main("
        lines.append(f'  t5x_lite infer --gin_file={gin_file} --prompt="{prompt}"')
    lines += [
        f"  t5x_lite explain {shlex.quote(model_dir)} --html=explained.html",
        f"  {continue_command(model_dir, summary['step'])}",
    ]
    return lines
