"""Where a run's numbers go: a JSON-lines file, TensorBoard, the console.

The names that the console knows, and so the names to log them under: "loss", "learning_rate",
"tokens_per_second", "mfu" (0..1) and "seconds_left".
"""

import contextlib
import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from t5x_lite.errors import UserError

log = logging.getLogger(__name__)

Values = Mapping[str, float | str]


class Tracker(Protocol):
    """Takes what is logged. Numbers may be Python's, numpy's or 0-d arrays on any device."""

    def log(self, step: int, values: Values) -> None: ...

    def log_text(self, step: int, name: str, text: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _plain(value: Any) -> float | int | str:
    if isinstance(value, str | bool | int | float):
        return value
    array = np.asarray(value)
    return int(array) if array.dtype.kind in "biu" else float(array)


class Trackers:
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
        values = {name: _plain(value) for name, value in values.items()} if self._trackers else {}
        self._each(lambda tracker: tracker.log(step, values))

    def log_text(self, step: int, name: str, text: str) -> None:
        self._each(lambda tracker: tracker.log_text(step, name, text))

    def flush(self) -> None:
        """Writes what couldn't be written before, and waits until it is on the disk."""
        self._each(lambda tracker: tracker.flush())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """A full disk must not end a run: what a tracker can't write is a warning."""
        for tracker in self._trackers:
            try:
                call(tracker)
            except OSError as error:
                if (warning := f"{type(tracker).__name__}: {error}") not in self._warned:
                    self._warned.add(warning)
                    log.error("metrics could not be written: %s", warning)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # closes all, even if one raises
            for tracker in self._trackers:
                stack.callback(tracker.close)


class JsonLines:
    """One JSON object a line: {"step": 100, "loss": 3.25, ...}, flushed line by line.

    Numbers are written with all their digits, so two runs' losses may be compared with ==. What
    JSON can't say is written as the strings "nan", "inf" and "-inf", which `float` reads.

    A run that resumes at step k trains the steps after k again: their old lines, and a last line
    cut short by a crash, are dropped before the first new line is appended. So a caller must log
    what belongs to steps up to k, and `flush`, before it saves the checkpoint of step k.

    Lines that can't be written, as on a full disk, raise OSError and are written with the next.

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
            value = _plain(value)
            finite = not isinstance(value, float) or math.isfinite(value)
            line[name] = value if finite else repr(value)
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

    def log_text(self, step: int, name: str, text: str) -> None:
        self.log(step, {name: text})

    def close(self) -> None:
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


class TensorBoard:
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
        self._writer = None

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
        from tensorboardX import summary

        for name, value in values.items():
            value = _plain(value)
            make = summary.text if isinstance(value, str) else summary.scalar
            self._add(step, summary=make(name, value))
        self.flush()

    def log_text(self, step: int, name: str, text: str) -> None:
        self.log(step, {name: text})

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class Console:
    """Progress for people: one line that is redrawn on a terminal, plain lines elsewhere.

    Training steps are the logs that have "loss" in them; anything else (evaluation, text) is
    printed as a line of its own and stays.

    Args:
      total_steps: of the run, if known.
      quiet: print nothing.
      stream: defaults to standard output.
      live: whether to redraw; None: if the stream is a terminal that can.
    """

    def __init__(
        self,
        total_steps: int | None = None,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        live: bool | None = None,
    ):
        self._total_steps = total_steps
        self._quiet = quiet
        self._stream = stream or sys.stdout
        self._live_wanted = live
        self._live = None
        self._started = False

    def log(self, step: int, values: Values) -> None:
        values = {name: _plain(value) for name, value in values.items()}
        self._show(progress_line(step, values, self._total_steps), redraw="loss" in values)

    def log_text(self, step: int, name: str, text: str) -> None:
        self._show(f"step {step:,}  {name}: {text}", redraw=False)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._started = False

    def _show(self, line: str, redraw: bool) -> None:
        if self._quiet:
            return
        if not self._started:
            self._start()
        if self._live is None:
            print(line, file=self._stream, flush=True)
        elif redraw:
            self._live.update(_one_line(line), refresh=True)
        else:
            self._live.console.print(line, markup=False, highlight=False)

    def _start(self) -> None:
        self._started = True
        if self._live_wanted is False or (self._live_wanted is None and not self._stream.isatty()):
            return
        from rich.console import Console as RichConsole
        from rich.live import Live

        console = RichConsole(file=self._stream, force_terminal=self._live_wanted)
        if self._live_wanted or (console.is_terminal and not console.is_dumb_terminal):
            self._live = Live(_one_line(""), console=console, auto_refresh=False)
            self._live.start()


def _one_line(line: str):
    from rich.text import Text

    return Text(line, no_wrap=True, overflow="ellipsis")


# Numbers as people read them.

_SHOWN = {
    "loss": lambda v: f"loss {v:.4f}",
    "learning_rate": lambda v: f"lr {v:.1e}",
    "tokens_per_second": lambda v: f"{short(v)} tok/s",
    "mfu": lambda v: f"MFU {v:.1%}",
    "seconds_left": lambda v: f"{duration(v)} left",
}


def progress_line(step: int, values: Values, total_steps: int | None = None) -> str:
    """Returns e.g. "step 1,200/10,000  loss 3.2147  lr 3.1e-04  1.23M tok/s  1h 02m left".

    Without a "loss" among them, all values are shown under their names.
    """
    parts = [f"step {step:,}" + (f"/{total_steps:,}" if total_steps else "")]
    if "loss" in values:
        parts += [show(values[name]) for name, show in _SHOWN.items() if name in values]
    else:
        parts += [
            f"{name} {value if isinstance(value, str) else f'{value:.5g}'}"
            for name, value in values.items()
        ]
    return "  ".join(parts)


def short(number: float) -> str:
    """Returns three significant digits with a unit: 1.23M, 45.6k, 789, 7.00."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:
            return f"{_three_digits(number / limit)}{unit}"
    return _three_digits(number)


def _three_digits(number: float) -> str:
    # Not ":.3g", which turns 999.6 into 1e+03.
    places = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{places}f}"


def duration(seconds: float) -> str:
    """Returns the two largest units: 45s, 3m 05s, 1h 02m, 2d 03h; "?" if not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02d}h"
    if hours:
        return f"{h}h {m:02d}m"
    return f"{m}m {s:02d}s" if minutes else f"{s}s"
