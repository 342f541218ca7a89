"""How a checkpoint lies on disk: which folders are one, arrays by name, and reading them."""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from t5x_lite import evidence
from t5x_lite.errors import UserError
from t5x_lite.retry import retry
from t5x_lite.training import verification
from t5x_lite.training.verification import Damaged

DESCRIPTION = "data.json"  # the name Orbax gives to JSON


def absolute(path: str | os.PathLike) -> epath.Path:
    """Returns the path as Orbax wants it; URLs of object stores stay what they are."""
    path = os.fspath(path)
    return epath.Path(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


def is_whole(path: epath.Path) -> bool:
    """Returns whether a folder with a checkpoint's name has a checkpoint's parts.

    Those that Orbax reads of every checkpoint must be as it writes them: one bad byte there, in any
    of the checkpoints, and it would open none of them.

    Raises Unreadable: the disk doesn't tell at the moment.
    """
    parts = (path / "description" / DESCRIPTION, path / "state")
    if not all(evidence.exists(part) for part in parts):
        return False
    metadata, metrics = (
        _json_object(path / name) for name in ("_CHECKPOINT_METADATA", "metrics/metrics")
    )
    when = metadata.get("commit_timestamp_nsecs") if metadata else None
    return metrics is not None and isinstance(when, int) and 0 < when < 2**62


def _json_object(file: epath.Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file, {} if there is no file, None if it is something else."""
    try:
        text = evidence.read_text(file)
        found = {} if text is None else json.loads(text)
    except (*evidence.MISSING, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class WholeSteps:
    """Orbax's numbers as folder names, less the folders that aren't whole checkpoints of ours."""

    def __init__(self):
        self._numbers = ocp.path.step.standard_name_format()

    def build_name(self, step: int) -> str:
        return self._numbers.build_name(step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[Any]:
        for entry in entries(epath.Path(base_path)):
            if re.fullmatch("0|[1-9][0-9]*", entry.name) and is_whole(entry):
                # On an object store a folder is whole when its commit file is there, too. The other
                # errors are of a metadata file whose JSON isn't what Orbax writes.
                with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                    found = functools.partial(self.find_step, base_path, int(entry.name))
                    yield evidence.attempt(found, entry)

    def find_step(self, base_path: epath.PathLike, step: int) -> Any:
        return self._numbers.find_step(base_path, step)


def entries(folder: epath.Path) -> list[epath.Path]:
    """Returns what is in a folder, nothing if there is no such folder. Raises Unreadable."""
    try:
        return evidence.attempt(lambda: list(folder.iterdir()), folder)
    except evidence.MISSING:
        return []


def scan(folder: epath.Path) -> tuple[list[int], list[str]]:
    """Returns the steps of whole checkpoints, and the names of what looks like torn ones.

    Raises Unreadable: the disk doesn't tell at the moment.
    """
    steps = sorted(found.step for found in WholeSteps().find_all(folder))
    names = {entry.name for entry in entries(folder)} - {str(step) for step in steps}
    return steps, sorted(name for name in names if name[0].isdigit())


def agreed(steps: list[int]) -> int | None:
    """Returns the last of process 0's steps, None if it has none; all processes must call this."""
    last = steps[-1] if steps else -1
    last = int(multihost_utils.broadcast_one_to_all(np.int32(last)))
    return None if last < 0 else last


def find_checkpoint(path: epath.Path) -> epath.Path:
    """Returns the checkpoint that `path` is, or the newest of the run (or of checkpoints/) there.

    Raises:
      UserError: there is none.
    """
    if is_whole(path):
        return path
    for folder in (path / "checkpoints", path):
        step = agreed(scan(folder)[0])
        if step is not None:
            return folder / str(step)
    if not evidence.exists(path):
        raise UserError(f"{path} doesn't exist; expected a checkpoint or a run's folder.")
    what = "is a run's folder without a finished checkpoint"
    if not (path / "checkpoints").is_dir():
        what = "is neither a finished checkpoint nor a run's folder (one with checkpoints/ in it)"
    raise UserError(f"{path} {what}.")


# Trees by name.


def by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves by names such as "opt_state/0/mu/encoder/norm/scale", in tree order.

    Checkpoints hold these names as nested dicts, not the tree's own containers, so they outlive
    changes of optimizer libraries' state classes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
    assert len(named) == len(leaves), "two leaves with one name"
    return named


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"a": {"b": leaf}} for {"a/b": leaf}."""
    root: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return root


def specs(named: Mapping[str, Any]) -> dict[str, str]:
    """Returns {"params/norm/scale": "float32[512]", ...}."""
    return {
        name: f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in named.items()
    }


def require_same(
    saved: Mapping[str, str], wanted: Mapping[str, str], path: epath.Path, dtypes: bool = True
) -> None:
    """Raises a UserError that names the first arrays in which two `specs` differ."""

    def compared(spec: str) -> str:
        return spec if dtypes else spec[spec.index("[") :]

    # The optimizer's differences follow from the parameters', so these are named first.
    names = sorted(wanted.keys() | saved.keys(), key=lambda n: (not n.startswith("params/"), n))
    other = [
        f"{name} is {saved[name]}, expected {wanted[name]}"
        for name in names
        if name in saved and name in wanted and compared(saved[name]) != compared(wanted[name])
    ]
    differences = {
        "missing": [name for name in names if name not in saved],
        "unexpected": [name for name in names if name not in wanted],
        "of another shape" + (" or dtype" if dtypes else ""): other,
    }
    said = [f"{kind}: {listed(which)}" for kind, which in differences.items() if which]
    if said:
        raise UserError(
            f"The checkpoint {path} doesn't fit this model and optimizer: {'; '.join(said)}. "
            f"Use the configuration that it was trained with (see its description/{DESCRIPTION})."
        )


def listed(items: list, limit: int = 3) -> str:
    """Returns "a, b, c and 4 more"."""
    shown = ", ".join(map(str, items[:limit]))
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")


# Files.


def read_description(path: epath.Path) -> dict[str, Any]:
    """Returns what `Checkpoints.save` recorded in the checkpoint at `path`.

    Raises Damaged if it is something else, Unreadable if the disk doesn't tell at the moment.
    """
    file = path / "description" / DESCRIPTION
    try:
        text = evidence.read_text(file)
        if text is None:
            raise Damaged(f"{file} is missing.")
        record = json.loads(text)
    except (*evidence.MISSING, ValueError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{file} isn't what was saved ({_one_line(error)}).") from error
    verification.check_seal(record, file)
    return record


def require_sums(
    description: Mapping[str, Any], prefix: str, named: Mapping[str, Any], path: epath.Path
) -> None:
    """Raises Damaged if arrays, whose names lack `prefix`, aren't those that were saved."""
    saved = description.get("checksums")
    if not saved or not named:
        return
    found = verification.checksums({prefix + name: leaf for name, leaf in named.items()})[0]
    if wrong := verification.differing(saved, found):
        raise Damaged(
            f"The checkpoint {path} is damaged: {listed(wrong)} (of {len(found)} arrays) "
            "isn't what was saved: checksums differ."
        )


def add_metrics(path: epath.Path, metrics: Mapping[str, float]) -> None:
    """Gives a checkpoint that was saved without them its metrics, in one step."""
    if "://" in str(path) or evidence.exists(path / "metrics"):
        return
    beside = path / "metrics.tmp"
    if evidence.exists(beside):
        beside.rmtree()
    beside.mkdir()
    (beside / "metrics").write_text(json.dumps(dict(metrics)))
    beside.rename(path / "metrics")


def load(path: epath.Path, request: dict[str, Any]) -> dict[str, Any]:
    """Reads parts of a checkpoint: "state", a nested dict of ShapeDtypeStructs, and maybe "data".

    Raises:
      UserError: a leaf has no sharding, or the store doesn't let this user in.
      Unreadable: the disk doesn't give the files at the moment.
      Damaged: the files are there and aren't a checkpoint, or some are missing.
    """
    for name, leaf in by_name(request["state"]).items():
        if getattr(leaf, "sharding", None) is None:
            # Orbax would bring back the saved shardings, or put the array on one device.
            raise UserError(
                f"{name} has no sharding to be restored into; give each ShapeDtypeStruct one."
            )
    try:
        return retry(
            lambda: ocp.load_checkpointables(path, request), what=str(path), transient=_transient
        )
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # this machine's trouble, not the file's
    except Exception as error:  # damaged files end in almost any kind
        reason = _one_line(error.__cause__ or error)
        if (system := evidence.system_error(error)) is not None:
            raise evidence.unreadable(path, system) from error
        if re.search("PERMISSION_DENIED|UNAUTHENTICATED|Permission denied", reason):
            raise UserError(f"The checkpoint {path} can't be read: {reason}") from error
        raise Damaged(
            f"The checkpoint {path} can't be read ({reason}); if its files are damaged, remove it "
            "and go on from an older one."
        ) from error


def _transient(error: Exception) -> bool:
    """Whether reading again may help: a disk's or a remote store's bad moment."""
    system = evidence.system_error(error)
    if system is not None and not isinstance(system, PermissionError):
        return True
    codes = "UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|Connection|timed out"
    return re.search(codes, str(error.__cause__ or error)) is not None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
