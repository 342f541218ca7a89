"""The first and the last thing a run does with its checkpoints.

The first: restoring the newest sound one, after damaged ones were named and set aside. The last:
saving, with patience.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.parallel import distributed
from t5x_lite.training.checkpoints import Checkpoints, SaveError
from t5x_lite.training.verification import Damaged

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    step: int
    state: Any
    position: np.ndarray | None  # int64 [B, K], of the data stream
    description: dict[str, Any]  # what was given to `Checkpoints.save`


def restore_newest(checkpoints: Checkpoints, abstract_state: Any) -> Restored | None:
    """Restores the newest checkpoint that is whole and holds what was saved; None if there is none.

    Every process must call it. A damaged checkpoint is moved to checkpoints/damaged/ with a
    warning that says what is wrong.

    Raises:
      UserError: a checkpoint is of another model or optimizer; or there are checkpoints and all
        are damaged (they have been moved, so a second start would begin at step 0).
    """
    moved = []
    if distributed.is_main_process():
        for target in checkpoints.set_broken_aside():
            moved.append(str(target))
            log.error("A checkpoint lacks parts, or they can't be read: it is kept as %s.", target)
    distributed.any_process(False)  # nobody looks before they are gone
    while (step := checkpoints.latest_step()) is not None:
        problem: Damaged | None = None
        try:
            restored = Restored(step, *checkpoints.restore(step, abstract_state))
        except Damaged as error:
            problem = error
        if not distributed.any_process(problem is not None):
            return restored
        moved.append(_set_aside(checkpoints, step, problem))
    if moved:
        raise UserError(
            f"no sound checkpoint is left in {checkpoints.folder}: what is wrong with {moved[0]} "
            "is said above. Put a copy back, or start again to begin at step 0."
        )
    return None


def _set_aside(checkpoints: Checkpoints, step: int, problem: Damaged | None) -> str:
    target = ""
    if distributed.is_main_process():
        target = str(checkpoints.set_aside(step))
    distributed.any_process(False)
    log.error(
        "%s It is kept as %s; going on from the checkpoint before it.",
        *(problem or "Another process found this checkpoint damaged.", target),
    )
    return target


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
