"""Checkpoints of a run: what is saved, when, what is kept, what is restored (on Orbax's V1 API).

    model_dir/checkpoints/1000/
      state/                         params, opt_state, step: plain nested dicts of arrays
      data/                          where the data stream stands: int64 [B, K]
      description/data.json          what wrote it: versions, shapes and dtypes, the caller's notes
      metrics/                       the metrics given to `save`, by which the best are kept

A checkpoint appears under its own name only when it is whole: Orbax writes to a folder with another
name and renames it at the end (on object stores it adds a commit file). What a killed process left
is passed over with a warning, and cleared away when a later process saves here.

What is restored is checked against checksums taken before it was saved (verification.py). A save
that fails, as on a full disk, costs nothing but a warning: the older checkpoints stay as they are.
"""

import contextlib
import errno
import importlib.metadata
import json
import logging
import os
import re
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Self

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from t5x_lite import evidence
from t5x_lite.errors import NotFinite, SaveError, UserError, did_you_mean
from t5x_lite.parallel import distributed
from t5x_lite.training import checkpoint_layout as layout
from t5x_lite.training import put_aside, verification
from t5x_lite.training.retention import CheckpointConfig, Keep
from t5x_lite.training.verification import Damaged

log = logging.getLogger(__name__)

WRITTEN_BY = ("t5x_lite", "jax", "flax", "optax", "orbax-checkpoint")


class Checkpoints:
    """The checkpoints under `model_dir/checkpoints`; reading never writes or creates anything.

    Every process of a run makes the same calls in the same order, from its main thread.
    """

    def __init__(self, model_dir: str | os.PathLike, config: CheckpointConfig | None = None):
        self.config = config or CheckpointConfig()
        self.folder = layout.absolute(model_dir) / "checkpoints"
        self._writer: ocp.training.Checkpointer | None = None
        self._same_state: int | None = None  # the step last saved or restored here
        self._saving: int | None = None  # the step being written in the background
        self._failure: SaveError | None = None  # of the newest save
        self._warned: set[str] = set()

    # Reading.

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, ascending, as this process sees them."""
        steps, torn = layout.scan(self.folder)
        saving = self._writer is not None and self._writer.is_saving_in_progress()
        for name in [] if saving else torn:
            if name not in self._warned:
                self._warned.add(name)
                log.warning(
                    "Skipping %s: it was never finished (its writer was interrupted, or is still "
                    "at work).",
                    self.folder / name,
                )
        return steps

    def latest_step(self, but: Collection[int] = ()) -> int | None:
        """Returns the newest step as process 0 sees it (so that all agree), or None.

        ``but``: steps that don't count.
        """
        return layout.agreed([step for step in self.steps() if step not in but])

    def remains(self) -> bool:
        """Returns whether there are checkpoints that can't be used: damaged, or without parts."""
        return bool(
            put_aside.broken(self.folder)
            or self.steps()
            or layout.entries(self.folder / put_aside.DAMAGED)
        )

    def description(self, step: int) -> dict[str, Any]:
        """Returns what was recorded with `step`, without reading any array.

        Keys: "step", "versions", "arrays" ({"params/encoder/...": "float32[512,64]"}), "data"
        (whether a data position was saved) and "run" (the dict given to `save`).

        Raises:
          UserError: there is no such step.
        """
        return layout.read_description(self._path(step))

    def restore(
        self, step: int, abstract_state: Any
    ) -> tuple[Any, np.ndarray | None, dict[str, Any]]:
        """Restores a whole state; each device reads only its own shards.

        Args:
          step: one of `steps()`.
          abstract_state: the state as a tree of `jax.ShapeDtypeStruct` with shardings. They needn't
            be the shardings, nor the number of devices, that the state was saved with.

        Returns:
          The state, the data position (int64 [B, K], or None if none was saved) and the dict that
          was given to `save` as its description.

        Raises:
          UserError: no such step; or the trees, shapes or dtypes differ.
          Damaged: a UserError, too: files can't be read, or don't hold what was saved.
        """
        path = self._path(step)
        description = layout.read_description(path)
        wanted = layout.by_name(abstract_state)
        layout.require_same(description["arrays"], layout.specs(wanted), path)
        request = {"state": layout.nested(wanted)} | ({"data": None} if description["data"] else {})
        loaded = layout.load(path, request)
        leaves = layout.by_name(loaded["state"])
        layout.require_sums(description, "", leaves, path)
        position = loaded["data"]["position"] if description["data"] else None
        if position is not None and _crc32(position) != description.get(
            "position_crc32", _crc32(position)
        ):
            raise Damaged(f"The checkpoint {path} is damaged: its data position was another.")
        state = jax.tree.structure(abstract_state).unflatten(leaves[name] for name in wanted)
        self._same_state = step
        return state, position, description["run"]

    def set_aside(self, step: int) -> epath.Path:
        """Moves a damaged checkpoint to checkpoints/damaged/, and returns where it is now."""
        return put_aside.set_aside(self.folder, str(step))

    def set_broken_aside(self) -> list[epath.Path]:
        """Moves there all that bear a checkpoint's name and lack its parts; returns where to."""
        return [put_aside.set_aside(self.folder, name) for name in put_aside.broken(self.folder)]

    def clear_leftovers(self) -> None:
        """Deletes the rest of checkpoints in whose deletion a process was killed."""
        put_aside.clear_leaving(self.folder)

    def _path(self, step: int) -> epath.Path:
        steps = self.steps()
        if step not in steps:
            found = (
                f"it holds {layout.listed(steps, 10)}"
                if steps
                else "it holds no finished checkpoint"
            )
            raise UserError(f"No checkpoint of step {step} in {self.folder}: {found}.")
        return self.folder / str(step)

    # Writing.

    def should_save(self, step: int, last: bool = False) -> bool:
        """Returns whether `step` is on the period, or is the run's last."""
        return last or step % self.config.period == 0

    def save(
        self,
        step: int,
        state: Any,
        *,
        data_position: np.ndarray | None,
        description: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Starts to save; waits only until the state is copied off the devices.

        The caller may donate the state's buffers as soon as this returns. A save that is still
        being written is waited for first. If that one, or this one, can't be written, a warning
        says so and the older checkpoints stay; the next save is a new attempt.

        Args:
          step: number of training steps that made this state.
          state: {"params": ..., "opt_state": ..., "step": ...} of jax.Arrays; dtypes are kept.
          data_position: int64 [B, K], the global position after batch `step - 1`, the same on all
            processes, or None.
          description: JSON values to record with it: vocabulary fingerprint, operative config, ...
          metrics: evaluation metrics of this state, for `keep_best`.
          force: replace a checkpoint of this step that was here before (it is deleted first).

        Returns:
          False if this step is there already (and, with `force`, is this very state: just saved or
          restored by this object), so that nothing needed saving; or if it couldn't be saved.

        Raises:
          UserError: the folder holds a newer step: this state would be taken for an old one.
          FloatingPointError: the state isn't finite (see `CheckpointConfig.require_finite`).
        """
        self._settle()
        self._failure = None
        try:
            return self._save(step, state, data_position, description, metrics, force)
        except (UserError, FloatingPointError):
            raise
        except Exception as error:  # tensorstore and file systems have many kinds
            self._give_up(step, error)
            return False

    def _save(self, step, state, data_position, description, metrics, force) -> bool:
        writer = self._open()
        there = [checkpoint.step for checkpoint in writer.checkpoints]
        if there and max(there) > step:
            raise UserError(
                f"Saving step {step} in {self.folder}, which already holds step {max(there)}: "
                f"continue from step {max(there)}, remove what is newer, or take a new model_dir."
            )
        if step in there and (not force or step == self._same_state):
            return False
        arrays = layout.by_name(state)
        sums, not_finite = verification.checksums(arrays)
        if not_finite is not None and self.config.require_finite:
            raise NotFinite(
                f"step {step} is not saved: {not_finite} isn't finite. The last checkpoint is good."
            )
        record = {
            "step": step,
            "versions": {name: _version(name) for name in WRITTEN_BY},
            "arrays": layout.specs(arrays),
            "checksums": sums,
            "data": data_position is not None,
            "run": description,
        }
        items = {"state": layout.nested(arrays)}
        if data_position is not None:
            items["data"] = {"position": np.array(data_position, np.int64)}
            record["position_crc32"] = _crc32(items["data"]["position"])
        items["description"] = verification.seal(json.loads(json.dumps(record)))
        if metrics is not None:
            metrics = {name: float(value) for name, value in metrics.items()}
            self._check_best(metrics)
        self._saving = step
        writer.save_checkpointables_async(step, items, force=True, overwrite=force, metrics=metrics)
        self._same_state = step
        if not self.config.asynchronous:
            self._settle()
        return self._failure is None

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives a checkpoint that was saved before its evaluation the metrics, for `keep_best`."""
        metrics = {name: float(value) for name, value in metrics.items()}
        self._check_best(metrics)
        if distributed.is_main_process():
            layout.add_metrics(self.folder / str(step), metrics)

    def wait(self) -> None:
        """Returns when all is committed.

        Raises:
          SaveError: the newest state could not be saved.
        """
        self._settle()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Waits, then gives up the writer's threads. May be called more than once."""
        self._settle()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _settle(self) -> None:
        """Waits for what is being written; a failure anywhere is every process's failure."""
        if self._writer is None or self._saving is None:
            return
        error: Exception | None = None
        try:
            self._writer.wait()
        except Exception as e:
            error = e
        if distributed.any_process(error is not None):
            self._give_up(self._saving, error or OSError("another process couldn't write its part"))
        else:
            self._saving, self._failure = None, None
            if distributed.is_main_process():
                put_aside.forget_leaving(self.folder)

    def _give_up(self, step: int, error: Exception) -> None:
        """Warns, and leaves the folder and this object as if the save hadn't been tried."""
        writer, self._writer, self._saving = self._writer, None, None
        self._same_state = None
        cause = _cause(error)
        if writer is not None:
            with contextlib.suppress(Exception):  # it says again what failed
                writer.close()
        steps: list[int] = []
        with contextlib.suppress(OSError):  # what failed may be the whole disk
            steps = layout.scan(self.folder)[0]
            if distributed.is_main_process():
                put_aside.clear_unfinished(self.folder)
        # The new one is whole before old ones are deleted.
        if bool(layout.agreed([step] if step in steps else [])):
            self._failure = None
            log.warning(
                "Checkpoint of step %d is saved, and an older one couldn't be deleted: %s. The "
                "next save tries again.",
                *(step, cause),
            )
            return
        self._failure = SaveError(f"step {step} couldn't be saved in {self.folder}: {cause}")
        log.error(
            "Checkpoint of step %d NOT SAVED: %s. Training goes on, with step %s as the last good "
            "checkpoint; the next save is a new attempt.",
            *(step, cause, ([None, *steps])[-1] or "none"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *exception) -> None:
        if kind is not None and jax.process_count() > 1:
            self._saving = self._writer = None  # to wait is to wait for processes that may be gone
        self.close()

    def _open(self) -> ocp.training.Checkpointer:
        # Opened by the first save, not before: opening creates the folder and clears away what
        # killed writers left, which an evaluator looking at a live run must not do.
        if self._writer is None:
            logging.getLogger("absl").addFilter(_not_of_orbax)  # once: it is the same function
            handlers = ocp.handlers.local_registry()
            handlers.add(ocp.handlers.JsonHandler, checkpointable_name="description")
            context = ocp.Context()
            context.checkpointables.registry = handlers
            self._writer = ocp.training.Checkpointer(
                self.folder,
                context=context,
                preservation_policy=Keep(self.config, self.needed, self._leaving),
                step_name_format=layout.WholeSteps(),
                cleanup_tmp_directories=True,
            )
        return self._writer

    def needed(self) -> Collection[int]:
        """Steps that retention must leave alone for now; the same on every process."""
        return ()

    def _leaving(self, steps: list[int]) -> None:
        if distributed.is_main_process():
            put_aside.note_leaving(self.folder, steps)

    def _check_best(self, metrics: dict[str, float]) -> None:
        best = self.config.keep_best
        if best is not None and best not in metrics and best not in self._warned:
            self._warned.add(best)
            log.warning(
                "CheckpointConfig.keep_best is %r, which isn't among the metrics: %s.%s",
                best,
                ", ".join(sorted(metrics)),
                did_you_mean(best, metrics),
            )


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Drops what Orbax's threads log of an error that `Checkpoints` is told, too: at a full disk a
    thousand lines of stack traces for each save."""
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


def _crc32(position: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(position, np.int64).tobytes())


def _cause(error: BaseException) -> str:
    """The first line of what was at the root of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    number = evidence.system_number(error)
    if number is not None and not isinstance(error, OSError):  # tensorstore's: many long paths
        return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def restore_params(
    path: str | os.PathLike,
    abstract_params: Any,
    include: str | None = None,
    *,
    values: bool = True,
) -> dict[str, Any]:
    """Restores parameters of another run, to start from them.

    Args:
      path: a checkpoint, or a run's folder (its latest checkpoint is taken).
      abstract_params: nested dict of `jax.ShapeDtypeStruct` with shardings. Values are cast to its
        dtypes and read straight into its shardings.
      include: regular expression (searched for, as in "^encoder/") over names such as
        "encoder/layers_0/mlp/wo/kernel"; only parameters with a match are restored. None: all.
      values: False: look at names and shapes only, and return {}.

    Returns:
      A nested dict of the restored parameters, and no others.

    Raises:
      UserError: there is no checkpoint at `path`; no parameter matches; or the parameters that
        match here and there differ in name or shape.
    """
    path = layout.find_checkpoint(layout.absolute(path))
    try:
        pattern = re.compile(include or "")
    except re.error as error:
        raise UserError(f"include={include!r} isn't a regular expression: {error}.") from None
    wanted = {
        name: leaf for name, leaf in layout.by_name(abstract_params).items() if pattern.search(name)
    }
    description = layout.read_description(path)
    saved = {
        name.removeprefix("params/"): spec
        for name, spec in description["arrays"].items()
        if name.startswith("params/") and pattern.search(name.removeprefix("params/"))
    }
    if not wanted:
        names = layout.listed(sorted(layout.by_name(abstract_params)))
        raise UserError(f"include={include!r} matches none of the parameters {names}.")
    layout.require_same(saved, layout.specs(wanted), path, dtypes=False)
    if not values:
        return {}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        found = layout.load(path, {"state": {"params": layout.nested(wanted)}})["state"]["params"]
    same = {n: x for n, x in layout.by_name(found).items() if layout.specs({n: x})[n] == saved[n]}
    layout.require_sums(description, "params/", same, path)
    return found
