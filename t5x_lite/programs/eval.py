"""`t5x_lite eval`: held-out loss and predictions of one, the latest or all checkpoints of a run."""

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

import gin
from etils import epath

from t5x_lite import config
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.errors import UserError
from t5x_lite.evaluation.samples import predict_samples
from t5x_lite.interop.pretrained import restore_params
from t5x_lite.models import TransformerConfig
from t5x_lite.parallel import distributed
from t5x_lite.parallel.compile_cache import use_compile_cache
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.programs.setup import set_up
from t5x_lite.training.checkpoints import Checkpoints
from t5x_lite.training.state import abstract_params
from t5x_lite.training.trackers import JsonLines


def main(args: argparse.Namespace) -> int:
    use_compile_cache()
    distributed.initialize(args.coordinator_address, args.process_count, args.process_index)
    config.require("evaluate")
    evaluate(checkpoint=args.checkpoint)
    return 0


@gin.configurable(module="t5x_lite", denylist=["checkpoint"])
def evaluate(
    *,
    model_dir: str,
    model: TransformerConfig,
    task: Task | Mixture,
    lengths: Mapping[str, int],
    batch_size: int,
    mesh: MeshConfig | None = None,
    batch_count: int | None = None,
    num_samples: int = 3,
    checkpoint: str = "latest",
) -> list[dict[str, Any]]:
    """Evaluates checkpoints on held-out data, prints a line for each, and samples of the last.

    Results are appended to ``model_dir/eval.jsonl``.

    Args:
      batch_count: batches of held-out data; None: all of it, every example once.
      checkpoint: "latest", "all", a step, or the path of a checkpoint or another run's folder.

    Returns:
      For each checkpoint {"step": ..., "loss": ..., "perplexity": ..., "accuracy": ..., ...}.

    Raises:
      UserError: no such checkpoint, or its parameters are not this model's.
    """
    setup = set_up(model, task, lengths, batch_size, mesh, pack=False)
    abstract = abstract_params(setup.model, setup.mesh, setup.rules)
    paths = checkpoint_paths(model_dir, checkpoint)
    held_out = HeldOut(setup, batch_count)
    results = []
    with use_mesh(setup.mesh, setup.rules):
        for path in paths:
            params = restore_params(path, abstract, model=model)
            results.append(_evaluate_one(held_out, params, path))
        if num_samples:
            samples = predict_samples(setup.model, params, task, setup.lengths, count=num_samples)
            if distributed.is_main_process():
                for sample in samples:
                    print(json.dumps(sample, ensure_ascii=False))
    if distributed.is_main_process() and epath.Path(model_dir).exists():
        log = JsonLines(epath.Path(model_dir) / "eval.jsonl")
        for result in results:
            log.log(result["step"], {k: v for k, v in result.items() if k != "step"})
        log.close()
    return results


def _evaluate_one(held_out: HeldOut, params: Any, path: str) -> dict[str, Any]:
    started = time.monotonic()
    metrics = held_out.evaluate(params, each_task=False)
    name = epath.Path(path).name
    result = {"step": int(name) if name.isdigit() else 0, "checkpoint": str(path)} | metrics
    if distributed.is_main_process():
        values = "  ".join(f"{name} {value:.5g}" for name, value in metrics.items())
        print(f"{path}: {values}  ({time.monotonic() - started:.1f} s)", flush=True)
    return result


def checkpoint_paths(model_dir: str, checkpoint: str) -> list[str]:
    """What --checkpoint means: "latest", "all", a step of ``model_dir``, or a path."""
    found = Checkpoints(model_dir)
    if checkpoint not in ("latest", "all") and not str(checkpoint).isdigit():
        return [checkpoint]
    steps = found.steps()
    if not steps:
        raise UserError(
            f"no checkpoint in {found.folder}: train first, or give --gin.MODEL_DIR the folder "
            f"of a run."
        )
    if checkpoint == "latest":
        steps = steps[-1:]
    elif checkpoint != "all":
        if int(checkpoint) not in steps:
            raise UserError(
                f"no checkpoint of step {checkpoint} in {found.folder}: there are "
                f"{', '.join(map(str, steps))}."
            )
        steps = [int(checkpoint)]
    return [str(found.folder / str(step)) for step in steps]
