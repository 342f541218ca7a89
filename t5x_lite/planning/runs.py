"""A run as planning sees it: read from a config, planned on a topology."""

import argparse
import dataclasses
import os
from typing import Any

from t5x_lite import config, registry
from t5x_lite.errors import UserError
from t5x_lite.planning import topologies
from t5x_lite.planning.topologies import Topology

DEFAULT_CACHE = "~/.cache/t5x_lite/plan"


def start_jax() -> None:
    """Starts jax on this machine's CPU, whatever else it has: planned devices are abstract."""
    topologies.quiet_libtpu()
    os.environ["JAX_PLATFORMS"] = "cpu"
    # libtpu reads them too, and aborts at a flag that it doesn't know.
    flags = os.environ.get("XLA_FLAGS", "").split()
    of_others = ("--xla_cpu_", "--xla_gpu_")
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags if not flag.startswith(of_others))
    import jax

    jax.config.update("jax_platforms", "cpu")


def cache_dir(args: argparse.Namespace) -> str:
    return os.path.expanduser(args.cache_dir or DEFAULT_CACHE)


def make_plan(
    run: Any,
    topology: Topology,
    *,
    price: float | None = None,
    cache_dir: str | None = None,
    early: bool = False,
) -> dict[str, Any]:
    """Returns the plan of a `planning.compile.Run`; see `planning.report.make`.

    ``early``: see `planning.compile.examine`; the compiler may still be running.
    """
    from t5x_lite.planning import compile as compiling
    from t5x_lite.planning import report

    if topology.compiles:
        traced = compiling.trace(run, topologies.abstract_devices(topology))
        setup, state = traced.setup, traced.state
        found = compiling.examine(traced, topology, cache_dir=cache_dir, early=early)
    else:
        devices = compiling.host_devices(topology.chips)
        setup, state, found = compiling.count(run, topology, devices)
    return report.make(run, topology, setup, state, found, price)


def read_run(args: argparse.Namespace, topology: Topology) -> Any:
    """Returns what the config binds to `train`, without data and folders: planning needs neither.

    Raises:
      UserError: for what is missing or wrong in the config.
    """
    from t5x_lite.planning import compile as compiling

    def parse(root: str) -> None:
        config.parse(
            args.gin_file, args.gin_bindings, args.gin_search_paths, root, trust=args.trust_config
        )

    objective = _objective(parse)
    task = compiling.stand_in_task(objective)

    def value(name: str) -> Any:
        parse(f"train.{name}")
        return config.evaluate(f"train.{name}", {"task": task})

    defaults = registry.defaults("train")
    values = {}
    for field in dataclasses.fields(compiling.Run):
        if field.name == "task":
            continue
        try:
            values[field.name] = value(field.name)
        except UserError as error:
            if field.name not in defaults or "the config gives no" not in str(error):
                raise
            values[field.name] = defaults[field.name]
    values["model"] = compiling.for_platform(values["model"], topology)
    return compiling.Run(task=task, **values)


def _objective(parse: Any) -> Any:
    """Returns the task's objective: the only part of a task that shapes depend on."""
    try:
        parse("train.task")
        return config.evaluate("train.task").objective
    except UserError as first:
        try:  # a file of the task's, such as its vocabulary, isn't given
            parse("Task.objective")
            return config.evaluate("Task.objective")
        except UserError:
            raise first from None
