"""Trackers of other people's making: TensorBoard, Weights & Biases, Trackio.

A gin file names those that a run has besides its own: `train.trackers = [@WandB()]`. One of your
own is a class, known to gin, with `open(model_dir, resume_step)`, which returns a `Tracker`.
"""

import dataclasses
import importlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from importlib import util
from typing import Any, Protocol

import numpy as np
from etils import epath

from t5x_lite import evidence
from t5x_lite.errors import UserError
from t5x_lite.training.trackers import Histogram, Tracker, Values, plain


class Service(Protocol):
    """What `train.trackers` holds."""

    def open(self, model_dir: str, resume_step: int) -> Tracker:
        """Called once, by the one process that logs; the run goes on from ``resume_step``."""


class TensorBoard(Tracker):
    """TensorBoard event files, by tensorboardX.

    Events are written by the caller's thread: tensorboardX's own would end at the first error of a
    full disk, and its queue then block training for good.

    Args:
      folder: a run's log folder.
      resume_step: the step that this process starts from; events after it are hidden.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int | None = None):
        self._folder = os.fspath(folder)
        self._purge = None if resume_step is None else resume_step + 1
        self._step = resume_step or 0
        self._writer: Any = None

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._writer is None:
            os.makedirs(self._folder, exist_ok=True)
            # Two processes that start within a second must not take one file.
            self._writer = EventsWriter(os.path.join(self._folder, "events"), f".{os.getpid()}")
            if self._purge is not None:
                start = SessionLog(status=SessionLog.START)
                for what in ({"file_version": "brain.Event:2"}, {"session_log": start}):
                    self._writer.write_event(Event(step=self._purge, wall_time=time.time(), **what))
                self._purge = None
        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))

    def log(self, step: int, values: Values) -> None:
        self._step = step
        for name, value in values.items():
            self._add(step, summary=_summary(name, plain(value)))
        self.flush()

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        self.log(self._step, {"hyperparameters": _as_markdown(values)})

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self.log(self._step, {"summary": _as_markdown(values)})

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _summary(name: str, value: Any) -> Any:
    from tensorboardX import summary

    if isinstance(value, str):
        return summary.text(name, value)
    if not isinstance(value, Histogram):
        return summary.scalar(name, value)
    edges, counts = value.edges(), np.asarray(value.counts, np.float64)
    centres = (edges[1:] + edges[:-1]) / 2  # the values themselves are gone
    return summary.histogram_raw(
        name, value.low, value.high, counts.sum(), (counts * centres).sum(),
        (counts * centres**2).sum(), edges[1:].tolist(), counts.tolist(),
    )  # fmt: skip


def _as_markdown(values: Mapping[str, Any]) -> str:
    """An indented block, which TensorBoard shows as it is."""
    text = json.dumps(values, indent=1, default=str, ensure_ascii=False)
    return "\n".join(f"    {line}" for line in text.split("\n"))


@dataclasses.dataclass(frozen=True)
class WandB:
    """Weights & Biases. Without a network: WANDB_MODE=offline, and `wandb sync` later.

    A run's id is kept in ``model_dir/wandb_id``, so a run that is continued is continued there.

    Attributes:
      name: of the run; None: its folder's.
      entity: a user or a team; None: yours.
    """

    project: str = "t5x_lite"
    name: str | None = None
    entity: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        _need("wandb", "WandB", "wandb")

    def open(self, model_dir: str, resume_step: int) -> Tracker:
        options = {"entity": self.entity, "tags": list(self.tags), "id": _run_id(model_dir)}
        if "://" not in model_dir:
            options["dir"] = model_dir
        return _Run("wandb", "WandB", self.project, self.name or _name(model_dir), options)


@dataclasses.dataclass(frozen=True)
class Trackio:
    """Trackio (https://github.com/gradio-app/trackio): a local database; `trackio show` draws it.

    Attributes:
      name: of the run; None: its folder's. A run that is continued keeps it.
      space_id: a Space of Hugging Face to send everything to; None: it stays here.
    """

    project: str = "t5x_lite"
    name: str | None = None
    space_id: str | None = None

    def __post_init__(self):
        _need("trackio", "Trackio", "trackio")

    def open(self, model_dir: str, resume_step: int) -> Tracker:
        name = self.name or f"{_name(model_dir)}-{_run_id(model_dir, 'trackio_id')}"
        options = {"space_id": self.space_id, "embed": False}
        return _Run("trackio", "Trackio", self.project, name, options)


class _Run(Tracker):
    """A run of `wandb`, or of `trackio`, which has its functions."""

    optional = True

    def __init__(
        self, module: str, title: str, project: str, name: str, options: Mapping[str, Any]
    ):
        self._module = importlib.import_module(module)
        try:
            self._run = self._module.init(project=project, name=name, resume="allow", **options)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{title} doesn't start ({type(error).__name__}: {reason}): log in, set "
                "WANDB_MODE=offline, or take it out of train.trackers."
            ) from error

    def log(self, step: int, values: Values) -> None:
        self._run.log({name: self._value(plain(v)) for name, v in values.items()}, step=step)

    def _value(self, value: Any) -> Any:
        if not isinstance(value, Histogram):
            return value
        return self._module.Histogram(np_histogram=(np.asarray(value.counts), value.edges()))

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(_flat(values), **self._changes())

    def _changes(self) -> dict[str, bool]:
        return {"allow_val_change": True} if self._module.__name__ == "wandb" else {}

    def log_summary(self, values: Mapping[str, Any]) -> None:
        if hasattr(self._run, "summary"):
            self._run.summary.update(_flat(values))

    def log_artifact(self, path: str, name: str) -> None:
        artifact = self._module.Artifact(name, type="file")
        artifact.add_file(path)
        self._run.log_artifact(artifact)

    def finish(self) -> None:
        self._run.finish()


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values of one level: {"a": {"b": 1}} -> {"a/b": 1}."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": inner for key, inner in _flat(value).items()}
        else:
            found[name] = value
    return found


def _need(module: str, title: str, package: str) -> None:
    if util.find_spec(module) is None:
        raise UserError(f"{title} needs the package {package}: pip install {package}")


def _name(model_dir: str) -> str:
    return os.path.basename(os.path.abspath(model_dir).rstrip("/"))


def _run_id(model_dir: str, file: str = "wandb_id") -> str:
    path = epath.Path(model_dir) / file
    if not evidence.exists(path):  # else it would go on elsewhere
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text().strip()
