"""What `train --dry_run` looks at beyond shapes: data, the weights to start from, the folder."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from t5x_lite.data.loader import BatchLoader
from t5x_lite.errors import UserError
from t5x_lite.evaluation.predictions import check_examples
from t5x_lite.interop import huggingface
from t5x_lite.interop.pretrained import restore_params
from t5x_lite.programs import folder
from t5x_lite.programs.held_out import HeldOut
from t5x_lite.programs.recorder import say
from t5x_lite.training.build import Training
from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints
from t5x_lite.training.setup import Setup

_NOT_CHECKED = (
    "the records that none of these batches holds, the values of weights, the memory that a step "
    "takes, services (W&B, ...), whether another process trains in the folder"
)


def check(
    setup: Setup,
    training: Training,
    loader: BatchLoader,
    held_out: HeldOut,
    *,
    model_dir: str,
    identity: Mapping[str, Any],
    checkpoint: CheckpointConfig,
    total_steps: int,
    initial_checkpoint: str | None,
    initial_params: str | None,
) -> None:
    """Prints a line for each thing that was looked at, and one for what wasn't.

    Raises UserError as the run would, and changes nothing.
    """
    with contextlib.closing(loader):
        next(loader)
    absent = held_out.absent()
    for leaf, _ in setup.task.leaves:
        splits = ((name, len(leaf.source.split(name))) for name in ("train", "validation"))
        found = ", ".join(f"{name} {number:,} records" for name, number in splits)
        if not absent:
            next(held_out.batches(leaf), None)
            check_examples(leaf, setup.lengths, setup.model.encoder_only)
        made = "a batch of training data" if absent else "a batch of each"
        _checked("data", f"{leaf.name}: {found}; {made} was made")
    if initial_checkpoint is not None:
        restore_params(
            initial_checkpoint, training.abstract.params, initial_params,
            model=setup.model.config, start=True, values=False, vocabulary=setup.task.vocabulary,
        )  # fmt: skip
        _checked("initial checkpoint", f"{initial_checkpoint}: names and shapes of its parameters")
    folder.check(model_dir, dict(identity))
    if checkpoint.export_every is not None:
        huggingface.family_for(setup.model.config)
    _checked("folder", _state_of(model_dir, total_steps))
    _checked("not checked", _NOT_CHECKED)


def _checked(name: str, text: str) -> None:
    say(f"{name:>20}  {text}")


def _state_of(model_dir: str, total_steps: int) -> str:
    step = Checkpoints(model_dir).latest_step()
    if step is not None:
        end = "it is finished" if step >= total_steps else f"continues from step {step:,}"
        return f"{model_dir}: {end}"
    path = epath.Path(model_dir)
    if "://" not in str(model_dir):
        while not path.exists():
            path = path.parent
        if not os.access(path, os.W_OK):
            raise UserError(f"model_dir = {model_dir!r}: {path} can't be written to.")
    return f"{model_dir}: a new run"
