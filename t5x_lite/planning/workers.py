"""Compiles layouts in parallel, each in its own process."""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.planning import report, topologies
from t5x_lite.planning.layouts import Layout
from t5x_lite.planning.runs import cache_dir, make_plan, read_run, start_jax
from t5x_lite.planning.topologies import Topology


def compile_all(
    args: argparse.Namespace,
    topology: Topology,
    layouts: list[Layout],
    deadline: float,
    at_least: int = 0,
    *,
    early: bool,
) -> dict[Layout, dict[str, Any] | None]:
    """Returns plans of the layouts in the order of completion; None where the compiler refuses.

    After the deadline none starts, except for the first ``at_least``. ``early``: see `examine`.
    """
    plans: dict[Layout, dict[str, Any] | None] = {}
    workers = max(1, min(args.workers or os.cpu_count() or 1, len(layouts)))
    with _scratch() as scratch, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        queue, running = iter(enumerate(layouts)), {}

        def begin() -> None:
            number, layout = next(queue, (0, None))
            if layout and (number < at_least or time.monotonic() < deadline):
                task = (args, topology.name, layout, early, scratch)
                running[pool.submit(_in_process, *task)] = layout

        for _ in range(workers):
            begin()
        while running:
            done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
            for future in done:
                layout = running.pop(future)
                begin()
                plan = future.result()
                if "error" in plan:  # a refused layout doesn't end the search
                    plans[layout] = None
                    say(f"      {layout.text}, remat {layout.remat}: {plan['error']}")
                    continue
                plans[layout] = plan
                say(_progress(len(plans), plan))
    return plans


def _scratch() -> tempfile.TemporaryDirectory:
    """A folder for the compilers' dumps: killed compilers can't delete their own."""
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def process_context() -> Any:
    """Returns a context of processes that import everything, but don't start jax before a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["t5x_lite.planning.search", "t5x_lite.programs.train"])
    return context


def _in_process(*task: Any) -> dict[str, Any]:
    """Runs `_work` in a process, returns its message, and kills it with its compiler."""
    context = process_context()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, *task))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        process.join()
        return {"error": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _work(
    pipe: Any, args: argparse.Namespace, topology: str, layout: Layout, early: bool, scratch: str
) -> None:
    """Reads the config in the process itself: it contains functions, which can't be pickled."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()
    import jax

    start_jax()
    tempfile.tempdir = scratch
    place = topologies.find(topology)
    try:
        run = layout.apply(read_run(args, place))
        plan = make_plan(run, place, price=args.price, cache_dir=cache_dir(args), early=early)
        pipe.send(plan | described(layout))
    except (UserError, jax.errors.JaxRuntimeError) as error:
        pipe.send({"error": str(error).partition("\n")[0]})


def end_with_parent() -> None:
    """Ends this process with its parent, so that none outlives a killed search."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def described(layout: Layout) -> dict[str, Any]:
    return {"layout": dataclasses.asdict(layout) | {"text": layout.text}}


def _progress(number: int, plan: dict[str, Any]) -> str:
    speed = f"MFU {plan['mfu']:.1%}" if "mfu" in plan else "-"
    fits = "" if plan["fits"] else ", doesn't fit"
    return (
        f"{number:>4}  {plan['layout']['text']}, remat {plan['remat']}, "
        f"{plan['num_microbatches']} micro-batches: {report.total(plan)}{fits}, {speed}"
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
