"""`t5x_lite eval`: held-out loss and predictions of one, the latest or all checkpoints of a run."""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from t5x_lite import config
from t5x_lite.data.reading import Reading
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.errors import UserError
from t5x_lite.evaluation.error_page import write_error_page
from t5x_lite.evaluation.predictions import TextEvaluation
from t5x_lite.evaluation.results import best_step, folder_of, read_all, write
from t5x_lite.models.config import TransformerConfig
from t5x_lite.parallel import distributed
from t5x_lite.parallel.compile_cache import use_compile_cache
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import Rules, use_mesh
from t5x_lite.programs.embed import StsEvaluation
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.programs.recorder import say
from t5x_lite.programs.weights import open_weights
from t5x_lite.ranges import Count, NotNegative, Positive
from t5x_lite.training.checkpoints import Checkpoints
from t5x_lite.training.head_losses import HeadLoss
from t5x_lite.training.pair_losses import ContrastiveLoss
from t5x_lite.training.setup import Setup, set_up
from t5x_lite.training.step import Loss
from t5x_lite.training.trackers import JsonLines


def main(args: argparse.Namespace) -> int:
    use_compile_cache()
    distributed.initialize(args.coordinator_address, args.process_count, args.process_index)
    config.require("evaluate")
    config.call("evaluate", checkpoint=args.checkpoint, watch=args.watch, html=args.html)
    return 0


def evaluate(
    *,
    model_dir: str,
    model: TransformerConfig,
    task: Task | Mixture,
    lengths: Mapping[str, Positive],
    batch_size: Positive,
    mesh: MeshConfig | None = None,
    rules: Rules | None = None,
    loss: Loss | ContrastiveLoss | HeadLoss | None = None,
    batch_count: Positive | None = None,
    split: str = "validation",
    text: TextEvaluation | None = None,
    sts: StsEvaluation | None = None,
    confidence_samples: Count = 0,
    num_samples: Count = 3,
    accept_other_vocabulary: bool = False,
    total_steps: Positive | None = None,
    poll_seconds: NotNegative = 10.0,
    patience_seconds: NotNegative = 3600.0,
    checkpoint: str = "latest",
    watch: bool = False,
    html: str | None = None,
) -> list[dict[str, Any]]:
    """Evaluates checkpoints on held-out data, prints a line for each, and samples of the last.

    Results are appended to ``model_dir/eval.jsonl``; tables and predictions are in
    ``model_dir/eval/SPLIT`` (see evaluation/results.py).

    Args:
      batch_count: batches of held-out data; None: all of it, every example once.
      split: of the task's source.
      loss: of the run; of an objective of pairs it says how vectors are made and compared.
      text: how texts are predicted for the metrics that the tasks name.
      sts: similarity of sentence vectors, judged on a table of pairs.
      confidence_samples: draws of the bootstrap, for 95 % intervals of those; 0: no intervals.
      accept_other_vocabulary: evaluate weights that were trained with another vocabulary, too.
      total_steps: the step after which ``watch`` ends; None: the last of the run, by its folder.
      poll_seconds, patience_seconds: how often ``watch`` looks for a checkpoint; how long it waits
        for another before it gives up.
      checkpoint: "latest", "all", "best:METRIC", steps with commas between them, or the path of a
        checkpoint or another run's folder.
      watch: evaluate each checkpoint of the run once, as they come; those that have results
        already are left out.
      html: a page of the errors of the last checkpoint, beside those of the one before it.

    Returns:
      For each checkpoint {"step": ..., "loss": ..., "perplexity": ..., "accuracy": ..., ...}.

    Raises:
      UserError: no such checkpoint, or its parameters are not this model's.
    """
    setup = set_up(model, task, lengths, batch_size, mesh, rules=rules, pack=False)
    folder = folder_of(model_dir, split)
    if watch:
        waiting = Waiting(model_dir, folder, total_steps, poll_seconds, patience_seconds)
        paths: Iterable[str] = waiting.paths()
    else:
        paths = checkpoint_paths(model_dir, checkpoint)
    log, results = JsonLines(epath.Path(model_dir) / "eval.jsonl"), {}
    made: dict[Reading, HeldOut] = {}  # all checkpoints of a run read alike
    with use_mesh(setup.mesh, setup.rules):
        for path, found, params in _restored(setup, paths, accept_other_vocabulary, watch):
            if found.reading not in made:
                made[found.reading] = HeldOut(
                    found, batch_count, loss, split=split, text=text, sts=sts
                )
            held_out = made[found.reading]
            results[path], rows = _evaluate_one(held_out, params, path, confidence_samples)
            if distributed.is_main_process() and epath.Path(model_dir).exists():
                log.log(results[path]["step"], _values(results[path], but=("step",)))
                _write(folder, path, results[path], rows)
        for sample in held_out.samples(params, num_samples) if num_samples and results else ():
            say(json.dumps(sample, ensure_ascii=False))
    log.finish()
    if html and distributed.is_main_process():
        write_error_page(html, folder, [_key(path) for path in results][-2:])
    return list(results.values())


def _restored(
    setup: Setup, paths: Iterable[str], accept: bool, may_vanish: bool
) -> Iterator[tuple[str, Setup, Any]]:
    """Each checkpoint and its `open_weights`; those that a run deleted meanwhile are left out."""
    for path in paths:
        try:
            found, params = open_weights(
                setup, path, accept_other_vocabulary=accept, verb="evaluate"
            )
        except (UserError, OSError) as error:
            if not may_vanish or epath.Path(path).exists():
                raise
            say(f"{path} is gone already ({str(error).partition(chr(10))[0]})")
            continue
        yield path, found, params


def _evaluate_one(
    held_out: HeldOut, params: Any, path: str, confidence_samples: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a checkpoint, and what `_write` writes beside them."""
    started = time.monotonic()
    metrics = held_out.evaluate(params, each_task=False)
    judged, rows = held_out.judge_texts(params, confidence_samples)
    metrics |= judged["values"]
    name = epath.Path(path).name
    result = {"step": int(name) if name.isdigit() else 0, "checkpoint": str(path)} | metrics
    values = []
    for metric, value in metrics.items():
        interval = judged["intervals"].get(metric)
        around = f" ({interval[0]:.4g} to {interval[1]:.4g})" if interval else ""
        values.append(f"{metric} {value:.5g}{around}")
    say(f"{path}: {'  '.join(values)}  ({time.monotonic() - started:.1f} s)")
    return result, {"judged": judged, "rows": rows}


def _write(folder: epath.Path, path: str, result: dict[str, Any], more: dict[str, Any]) -> None:
    rows, values = more["rows"], _values(result, but=("step", "checkpoint"))
    whole = {
        "step": result["step"],
        "checkpoint": result["checkpoint"],
        "values": values,
        **{kind: more["judged"][kind] for kind in ("intervals", "notes")},
        "examples": len(rows),
        "truncated": sum("truncated" in row for row in rows),
    }
    write(folder, _key(path), whole, rows)
    if whole["truncated"]:
        say(f"warning: {whole['truncated']} of {len(rows)} examples were cut to the lengths")


def _values(result: dict[str, Any], but: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in but}


def _key(path: str) -> str:
    """What a checkpoint's files are called."""
    return re.sub(r"[^\w.-]", "_", epath.Path(path).name)


class Waiting:
    """The checkpoints of a run that goes on, each once; every process gets the same."""

    def __init__(
        self,
        model_dir: str,
        folder: epath.Path,
        total_steps: int | None,
        poll_seconds: float,
        patience_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._checkpoints, self._folder = Checkpoints(model_dir), folder
        self._total, self._poll, self._patience = total_steps, poll_seconds, patience_seconds
        self._clock, self._sleep = clock, sleep

    def paths(self) -> Iterator[str]:
        """Ends after the run's last step, or when no checkpoint has come for long enough."""
        done = {result["key"] for result in read_all(self._folder)}
        last = self._clock()
        while True:
            steps = [s for s in self._checkpoints.steps() if str(s) not in done]
            step = _of_main_process(min(steps, default=-1))
            if step >= 0:
                yield str(self._checkpoints.folder / str(step))
                done.add(str(step))
                last = self._clock()
                continue
            newest = self._checkpoints.latest_step()
            total = self._total or self._recorded_total()
            finished = total is not None and newest is not None and newest >= total
            if distributed.any_process(finished or self._clock() - last > self._patience):
                return
            self._sleep(self._poll)

    def _recorded_total(self) -> int | None:
        """What the run itself wrote when it was started last."""
        try:
            facts = json.loads(
                (self._checkpoints.folder.parent / "hyperparameters.json").read_text()
            )
            return int(facts["total_steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _of_main_process(value: int) -> int:
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.array(value, np.int32)))


def checkpoint_paths(model_dir: str, checkpoint: str) -> list[str]:
    """What --checkpoint means: "latest", "all", "best:METRIC", steps of the run, or a path."""
    found, checkpoint = Checkpoints(model_dir), str(checkpoint)
    best = checkpoint.removeprefix("best:") if checkpoint.startswith("best:") else None
    chosen = re.fullmatch(r"\d+(,\d+)*", checkpoint)
    if checkpoint not in ("latest", "all") and best is None and not chosen:
        return [checkpoint]
    steps = found.steps()
    if not steps:
        raise UserError(
            f"no checkpoint in {found.folder}: train first, or give --gin.MODEL_DIR the folder "
            f"of a run."
        )
    if checkpoint == "latest":
        steps = steps[-1:]
    elif best is not None:
        steps = [best_step(model_dir, best, steps)]
    elif chosen:
        wanted = [int(step) for step in checkpoint.split(",")]
        if missing := [step for step in wanted if step not in steps]:
            raise UserError(
                f"no checkpoint of step {missing[0]} in {found.folder}: there are "
                f"{', '.join(map(str, steps))}."
            )
        steps = wanted
    return [str(found.folder / str(step)) for step in steps]
