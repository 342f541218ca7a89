"""Progress for people: one line that is redrawn on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from t5x_lite.training.trackers import (
    WATCHED,
    Histogram,
    Tracker,
    Values,
    plain,
)
from t5x_lite.units import duration, short

_BAR = 20  # characters, on terminals that are wide enough for it
_WIDE = 100
_TEXT_LINES = 12  # of a text, such as a sample's


class Console(Tracker):
    """Training steps are the logs that have "loss" in them: on a terminal, one line that is drawn
    again, with a bar. Anything else (evaluations, samples) is printed above it and stays.

    Colours are left out with NO_COLOR, as by everything that is printed with rich.

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
        self._live: Any = None
        self._started = False

    def log(self, step: int, values: Values) -> None:
        values = {k: plain(v) for k, v in values.items() if not k.startswith(WATCHED)}
        numbers = {k: v for k, v in values.items() if not isinstance(v, str | Histogram)}
        if "loss" in numbers:
            self._show(progress_line(step, numbers, self._total_steps), redraw=True, step=step)
        else:
            for line in value_lines(step, numbers, self._total_steps):
                self._show(line)
        for name, text in values.items():
            if isinstance(text, str):
                self._show(text_lines(step, name, text))

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self.finish()  # what is printed from now on stands below the last line

    def finish(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._started = False

    def _show(self, line: str, redraw: bool = False, step: int = 0) -> None:
        if self._quiet:
            return
        if not self._started:
            self._start()
        if self._live is None:
            print(line, file=self._stream, flush=True)
        elif redraw:
            self._live.update(self._with_bar(line, step), refresh=True)
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
            self._live = Live(self._with_bar("", 0), console=console, auto_refresh=False)
            self._live.start()

    def _with_bar(self, line: str, step: int):
        from rich.text import Text

        shown = Text(no_wrap=True, overflow="ellipsis")
        wide = self._live is not None and self._live.console.width >= _WIDE
        if wide and self._total_steps and line:
            done = min(_BAR, _BAR * step // self._total_steps)
            shown.append("━" * done, "green").append("━" * (_BAR - done), "bright_black")
            shown.append("  ")
        return shown.append(line)


_SHOWN = {
    "loss": lambda v: f"loss {v:.4f}",
    "learning_rate": lambda v: f"lr {v:.1e}",
    "tokens_per_second": lambda v: f"{short(v)} tok/s",
    "mfu": lambda v: f"MFU {v:.1%}",
    "seconds_left": lambda v: f"{duration(v)} left",
}


def _step(step: int, total_steps: int | None) -> str:
    return f"step {step:,}" + (f"/{total_steps:,}" if total_steps else "")


def progress_line(step: int, values: Values, total_steps: int | None = None) -> str:
    """Returns e.g. "step 1,200/10,000  loss 3.2147  lr 3.1e-04  1.23M tok/s  1h 02m left"."""
    shown = {k: v for k, v in values.items() if k != "seconds_left" or step != total_steps}
    parts = [show(shown[name]) for name, show in _SHOWN.items() if name in shown]
    return "  ".join([_step(step, total_steps), *parts])


def value_lines(
    step: int, values: Mapping[str, float], total_steps: int | None = None
) -> list[str]:
    """A line for each group of values, which is what stands before the last "/" of their names:

    "step 100/400  eval: loss 3.5  accuracy 0.25".
    """
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        group, _, last = name.rpartition("/")
        whole = float(value).is_integer() and abs(value) >= 10
        shown = f"{value:,.0f}" if whole else f"{value:.5g}"
        groups.setdefault(group, []).append(f"{last} {shown}")
    start = _step(step, total_steps)
    return [
        f"{start}  {group}{': ' if group else ''}{'  '.join(parts)}"
        for group, parts in groups.items()
    ]


def text_lines(step: int, name: str, text: str) -> str:
    """Returns "step 400  sample_0/input: ..."; further lines are indented, the last ones left out.

    Control characters are shown, not sent to the terminal.
    """
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    lines = text.strip("\n").split("\n")
    if (left := len(lines) - _TEXT_LINES) > 0:
        lines[_TEXT_LINES:] = [f"... ({left} more lines)"]
    if len(lines) > 1:
        lines = ["", *(f"    {line}" for line in lines)]
    return f"step {step:,}  {name}:" + (" " if len(lines) == 1 else "") + "\n".join(lines)
