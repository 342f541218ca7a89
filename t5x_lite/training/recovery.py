"""The first and the last thing a run does with its checkpoints.

The first: restoring the newest sound one; damaged ones are named and set aside. The last: saving,
with patience.
"""

import logging
import shlex
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.errors import SaveError, UserError
from t5x_lite.parallel import distributed
from t5x_lite.training.checkpoints import Checkpoints
from t5x_lite.training.verification import Damaged

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    step: int
    state: Any
    position: np.ndarray | None  # int64 [B, K], of the data stream
    description: dict[str, Any]  # what was given to `Checkpoints.save`


def restore_newest(checkpoints: Checkpoints, abstract_state: Any) -> Restored | None:
    """Restores the newest checkpoint that is whole and holds what was saved; None if there is none.

    Every process must call it. When a sound one is found, the damaged ones are moved to
    checkpoints/damaged/, with a warning that says what is wrong; without one nothing is moved.

    Raises:
      UserError: a checkpoint is of another model or optimizer; or there are checkpoints, here or in
        checkpoints/damaged/, and none is sound.
      Unreadable: a disk doesn't give them at the moment, which is no evidence of damage.
    """
    if distributed.is_main_process():
        checkpoints.clear_leftovers()
    distributed.any_process(False)  # nobody looks before they are gone
    problems: dict[int, str] = {}
    while (step := checkpoints.latest_step(but=problems)) is not None:
        problem: Damaged | None = None
        try:
            restored = Restored(step, *checkpoints.restore(step, abstract_state))
        except Damaged as error:
            problem = error
        if not distributed.any_process(problem is not None):
            _set_aside(checkpoints, problems)
            return restored
        problems[step] = str(problem or "Another process found this checkpoint damaged.")
    if distributed.any_process(distributed.is_main_process() and checkpoints.remains()):
        told = " ".join(problems.values()) or "what is there lacks parts of a checkpoint, or is"
        told += "" if problems else " in damaged/."
        raise UserError(
            f"no sound checkpoint is left in {checkpoints.folder}: {told} Put a copy of one there; "
            f"or, to begin again at step 0, move that folder away: "
            f"{shlex.join(['mv', str(checkpoints.folder), f'{checkpoints.folder}.damaged'])}"
        )
    return None


def _set_aside(checkpoints: Checkpoints, problems: dict[int, str]) -> None:
    """Moves what is damaged out of the way, now that there is a sound checkpoint."""
    if distributed.is_main_process():
        for step, problem in problems.items():
            target = checkpoints.set_aside(step)
            log.error(
                "%s It is kept as %s; going on from the checkpoint before it.", problem, target
            )
        for target in checkpoints.set_broken_aside():
            log.error("A checkpoint lacks parts, or they aren't one's: it is kept as %s.", target)
    distributed.any_process(False)  # nobody saves before they are gone


def save_surely(
    save: Callable[[], None],
    checkpoints: Checkpoints,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Calls `save` and waits; tries again for ten seconds, as a full disk may get room.

    Not longer: who sent SIGTERM gives half a minute or so.

    Raises:
      SaveError: the state could not be saved.
    """
    for wait in (1, 3, 6, None):
        try:
            save()
            checkpoints.wait()
            return
        except SaveError:
            if wait is None:
                raise
            sleep(wait)
