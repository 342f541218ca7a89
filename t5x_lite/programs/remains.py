"""What a run that was ended after a save still lacks, to be made up when it is started again."""

import json
import math
import os
from pathlib import Path

from t5x_lite import evidence
from t5x_lite.parallel import distributed
from t5x_lite.programs.report import PAGE
from t5x_lite.training.retention import CheckpointConfig
from t5x_lite.training.trackers import read_json_lines


def evaluated(model_dir: str, step: int) -> bool:
    """Whether the evaluation of the state after ``step`` is logged; a collective."""
    return not distributed.any_process(
        distributed.is_main_process() and not _evaluated(model_dir, step)
    )


def complete(model_dir: str, step: int, evaluates: bool = True) -> bool:
    """Whether a run that ended at ``step`` has its summary, page and, where it makes some, its
    evaluation; a collective."""
    return not distributed.any_process(
        distributed.is_main_process() and not _complete(model_dir, step, evaluates)
    )


def _evaluated(model_dir: str, step: int) -> bool:
    path = Path(model_dir, "metrics.jsonl")
    lines = read_json_lines(path) if evidence.exists(path) else []
    return any(line["step"] == step and "eval/loss" in line for line in lines)


def _complete(model_dir: str, step: int, evaluates: bool) -> bool:
    summary, page = Path(model_dir, "summary.json"), Path(model_dir, PAGE)
    try:
        found = json.loads(evidence.read_text(summary) or "{}")
        if found.get("step") != step:
            return False
    except (ValueError, AttributeError):
        return False
    # The page is written after the summary; an older one is of fewer steps.
    newer = evidence.exists(page) and os.stat(page).st_mtime >= os.stat(summary).st_mtime
    return newer and (not evaluates or _evaluated(model_dir, step))


def candidates(config: CheckpointConfig, eval_period: int) -> str | None:
    """Says which checkpoints can be among the best; None: all, or none are asked for.

    A checkpoint has metrics if its step is evaluated, too.
    """
    if config.keep_best is None:
        return None
    every = math.lcm(config.period, eval_period)
    if every == config.period and config.export_every is None:
        return None
    return (
        f"CheckpointConfig.keep_best={config.keep_best!r}: checkpoints are saved every "
        f"{config.period:,} steps and evaluations made every {eval_period:,}; so those of every "
        f"{every:,} steps, and the last, can be among the best"
    )
