"""Folders among the checkpoints that are none, or none any more: damaged, torn, half deleted."""

import contextlib
import itertools
import json

from etils import epath

from t5x_lite import evidence
from t5x_lite.training import checkpoint_layout as layout

DAMAGED = "damaged"  # the folder of damaged checkpoints
LEAVING = "leaving.json"  # the steps that are being deleted


def set_aside(folder: epath.Path, name: str) -> epath.Path:
    """Moves a step's folder to damaged/STEP (or STEP-2, ...), where nothing reads or deletes it."""
    damaged = folder / DAMAGED
    damaged.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    target = next(damaged / n for n in names if not (damaged / n).exists())
    return (folder / name).rename(target)


def broken(folder: epath.Path) -> list[str]:
    """Returns names of folders that were whole checkpoints once: no writer leaves such names.

    On an object store, where nothing can be renamed, a killed writer does: there are none there.
    """
    return (
        [] if "://" in str(folder) else [name for name in layout.scan(folder)[1] if name.isdigit()]
    )


def note_leaving(folder: epath.Path, steps: list[int]) -> None:
    """Writes down which checkpoints are about to be deleted, until `clear_leaving`.

    Deleting a folder takes many operations. What a process that is killed in the middle leaves has
    a checkpoint's name and lacks parts, and must not be taken for a damaged one.
    """
    with contextlib.suppress(OSError):  # on a full disk, too, old checkpoints must go
        (folder / LEAVING).write_text(json.dumps(steps))


def forget_leaving(folder: epath.Path) -> None:
    """They are deleted."""
    with contextlib.suppress(OSError):
        (folder / LEAVING).unlink(missing_ok=True)


def clear_leaving(folder: epath.Path) -> None:
    """Deletes the rest of checkpoints in whose deletion a process was killed."""
    file = folder / LEAVING
    noted = evidence.read_text(file) if evidence.exists(file) else None
    if noted is None:
        return
    with contextlib.suppress(ValueError):
        names = {str(step) for step in json.loads(noted)}
        for name in names.intersection(broken(folder)):
            (folder / name).rmtree()
    file.unlink(missing_ok=True)


def clear_unfinished(folder: epath.Path) -> None:
    """Removes what a failed save of this process left, so that it doesn't fill the disk."""
    for name in layout.scan(folder)[1]:
        if "tmp" in name:
            with contextlib.suppress(OSError):
                (folder / name).rmtree()
