"""Where a run's numbers go: a JSON-lines file and the console; services.py has the others.

The names that the console knows, and so the names to log them under: "loss", "learning_rate",
"tokens_per_second", "mfu" (0..1) and "seconds_left".
"""

import contextlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.errors import UserError

log = logging.getLogger(__name__)


WATCHED = "watch/"  # begins the names that people don't want to see go by; see watches.py


class Histogram(NamedTuple):
    """Counts of values in equal steps from `low` to `high`: int [bins]."""

    low: float
    high: float
    counts: Any

    def edges(self) -> np.ndarray:
        return np.linspace(float(self.low), float(self.high), len(self.counts) + 1)


Values = Mapping[str, "float | str | Histogram"]


class Tracker:
    """Takes what a run tells of itself; one of your own needs `log` alone.

    Numbers may be Python's, numpy's or 0-d arrays on any device; text and `Histogram` are values,
    too. What can't be written because of the disk raises OSError, which is a warning to the run;
    with ``optional`` any error is, as a run must not end for a service that is down.
    """

    optional = False

    def log(self, step: int, values: Values) -> None:
        """Values that belong to a step."""
        raise NotImplementedError

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """JSON values that are known at the start: once for each process of a run."""

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """JSON values that are known at the end."""

    def log_artifact(self, path: str, name: str) -> None:
        """A file that belongs to the run, such as its report."""

    def flush(self) -> None:
        """Waits until what was logged can't be lost with this process."""

    def finish(self) -> None:
        """Nothing more will be logged."""


def plain(value: Any) -> Any:
    """A number of Python, text, or a `Histogram` of Python's numbers."""
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Histogram):
        return Histogram(float(value.low), float(value.high), np.asarray(value.counts).tolist())
    array = np.asarray(value)
    return int(array) if array.dtype.kind in "biu" else float(array)


class Trackers(Tracker):
    """Passes everything on to several trackers, on process 0; other processes write nothing.

    No tracker touches its file before something is logged, so building them everywhere is harmless.

    Args:
      trackers: may be empty.
      process_index: defaults to `jax.process_index()`.
    """

    def __init__(self, trackers: Iterable[Tracker], process_index: int | None = None):
        if process_index is None:
            import jax

            process_index = jax.process_index()
        self._trackers = list(trackers) if process_index == 0 else []
        self._warned: set[str] = set()

    def log(self, step: int, values: Values) -> None:
        # Converted once: for an array this waits for the device.
        values = {name: plain(value) for name, value in values.items()} if self._trackers else {}
        self._each(lambda tracker: tracker.log(step, values))

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.log_hyperparameters(values))

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.log_summary(values))

    def log_artifact(self, path: str, name: str) -> None:
        self._each(lambda tracker: tracker.log_artifact(path, name))

    def flush(self) -> None:
        """Writes what couldn't be written before, and waits until it is on the disk."""
        self._each(lambda tracker: tracker.flush())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """A full disk must not end a run: what a tracker can't write is a warning, told once."""
        for tracker in self._trackers:
            try:
                call(tracker)
            except Exception as error:
                if not (isinstance(error, OSError) or tracker.optional):
                    raise
                if (warning := f"{type(tracker).__name__}: {error}") not in self._warned:
                    self._warned.add(warning)
                    log.error("metrics could not be written: %s", warning)

    def finish(self) -> None:
        with contextlib.ExitStack() as stack:  # finishes all, even if one raises
            for tracker in self._trackers:
                kinds = Exception if tracker.optional else ()
                stack.callback(_finish_unless, tracker, kinds)


def _finish_unless(tracker: Tracker, kinds: Any) -> None:
    try:
        tracker.finish()
    except kinds as error:
        log.error("%s did not finish: %s", type(tracker).__name__, error)


class JsonLines(Tracker):
    """One JSON object a line: {"step": 100, "loss": 3.25, ...}, flushed line by line.

    Numbers are written with all their digits, so two runs' losses may be compared with ==. What
    JSON can't say is written as the strings "nan", "inf" and "-inf", which `float` reads.

    A run that resumes at step k trains the steps after k again: their old lines, and a last line
    cut short by a crash, are dropped before the first new line is appended. So a caller must log
    what belongs to steps up to k, and `flush`, before it saves the checkpoint of step k.

    Lines that can't be written, as on a full disk, raise OSError and are written with the next.
    Beside it: hyperparameters.json and summary.json, what `log_hyperparameters` and `log_summary`
    were last given.

    Args:
      path: the file; folders above it are made.
      resume_step: the step that this process starts from; None keeps every whole line.

    Raises:
      UserError: the path is a URL, as of an object store.
    """

    def __init__(self, path: str | os.PathLike, resume_step: int | None = None):
        if "://" in os.fspath(path):
            raise UserError(f"{path} can't be appended to, being remote; give a local path.")
        self._path = Path(path)
        self._resume_step = resume_step
        self._file: io.FileIO | None = None
        self._pending = b""

    def log(self, step: int, values: Values) -> None:
        line: dict[str, Any] = {"step": step}
        for name, value in values.items():
            value = plain(value)
            if isinstance(value, Histogram):
                low, high = _finite(value.low), _finite(value.high)
                line[name] = {"low": low, "high": high, "counts": value.counts}
            else:
                line[name] = _finite(value)
        self._pending += json.dumps(line, allow_nan=False).encode() + b"\n"
        self._write()

    def _write(self) -> None:
        if self._file is None:
            self._file = self._open()
        whole = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(self._pending)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(whole)  # no line in part; the next attempt writes it again
            raise
        self._pending = b""

    def flush(self) -> None:
        if self._pending:
            self._write()
        if self._file is not None:
            os.fsync(self._file.fileno())

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        self._write_beside("hyperparameters.json", values)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._write_beside("summary.json", values)

    def _write_beside(self, name: str, values: Mapping[str, Any]) -> None:
        """Whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{name}.tmp")
        text = json.dumps(values, indent=1, default=str, ensure_ascii=False)
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(self._path.with_name(name))

    def finish(self) -> None:
        try:
            if self._pending:
                self._write()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _open(self) -> io.FileIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            limit = math.inf if self._resume_step is None else self._resume_step
            kept = [line for line in read_json_lines(self._path) if line["step"] <= limit]
            # Written beside it and renamed: a crash here must not lose the history.
            beside = self._path.with_name(self._path.name + ".tmp")
            beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            beside.replace(self._path)
        self._resume_step = None  # a tracker that is closed and used again appends
        return self._path.open("ab", buffering=0)


def _finite(value: Any) -> Any:
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite else repr(value)


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the objects of a file of `JsonLines`, without a last line that was cut short.

    Lines that are no such objects, as a damaged disk may leave, are passed over with a warning.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    found = [_parsed(line) for line in lines[:-1] if line]
    if bad := found.count(None):
        log.warning("%s: %d lines can't be read and are passed over", path, bad)
    return [line for line in found if line is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and type(value.get("step")) is int else None


# Numbers as people read them.
