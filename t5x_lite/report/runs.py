"""What a run's folder tells: its configuration, numbers, samples and summary, as plain values."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.training.trackers import read_json_lines

Points = list[tuple[int, float]]


class Run:
    """A run's folder, read.

    config: {name: value}, as gin text. series: {name: [(step, value), ...]} of every number logged,
    in order of steps; not finite ones are left out. texts: {name: [(step, text), ...]}.
    evals: the lines of eval.jsonl. Files that a run from before them lacks are empty.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.name = os.path.basename(os.path.abspath(self.folder))
        metrics = self.folder / "metrics.jsonl"
        if not metrics.is_file():
            raise UserError(
                f"{folder} is no run's folder (no metrics.jsonl): give the MODEL_DIR of a run that "
                "has logged something."
            )
        self.identity = self._json("run.json")
        self.hyperparameters = self._json("hyperparameters.json")
        self.summary = self._json("summary.json")
        self.config_text = self._text("config.gin") or self.hyperparameters.get("config", "")
        self.config = parse_config(self.config_text)
        self.parameters = self._text("parameters.txt")
        self.series, self.texts = _sorted(read_json_lines(metrics))
        evals = self.folder / "eval.jsonl"
        self.evals = read_json_lines(evals) if evals.is_file() else []
        per_step = self.hyperparameters.get("tokens_per_step")
        self.tokens_per_step = per_step or _tokens_per_step(self.identity)

    @property
    def last(self) -> dict[str, float]:
        """The latest value under each name."""
        return {name: points[-1][1] for name, points in self.series.items()}

    def seconds(self, steps: Iterable[int]) -> list[float | None]:
        """Seconds of training at these steps, between what was logged on a straight line."""
        known = [(0, 0.0), *self.series.get("train_seconds", [])]
        at, seconds = zip(*known, strict=True)
        found = np.interp(list(steps), at, seconds, right=math.nan)
        return [None if math.isnan(value) else float(value) for value in found]

    def median(self, name: str) -> float | None:
        values = sorted(value for _, value in self.series.get(name, []))
        return values[len(values) // 2] if values else None

    def _text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._text(name) or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _sorted(lines: Iterable[Mapping[str, Any]]) -> tuple[dict, dict]:
    """Lines of metrics.jsonl -> numbers and texts by name; of a step logged twice, the latest."""
    numbers: dict[str, dict[int, float]] = {}
    texts: dict[str, dict[int, str]] = {}
    for line in lines:
        for name, value in line.items():
            if name == "step" or isinstance(value, bool):
                continue
            if isinstance(value, int | float) and math.isfinite(value):
                numbers.setdefault(name, {})[line["step"]] = value
            elif isinstance(value, str) and value not in ("nan", "inf", "-inf"):
                texts.setdefault(name, {})[line["step"]] = value
    return (
        {name: sorted(points.items()) for name, points in numbers.items()},
        {name: sorted(points.items()) for name, points in texts.items()},
    )


def _tokens_per_step(identity: Mapping[str, Any]) -> int | None:
    lengths = identity.get("lengths")
    if not isinstance(lengths, dict) or not isinstance(identity.get("batch_size"), int):
        return None
    return identity["batch_size"] * sum(v for v in lengths.values() if isinstance(v, int))


def parse_config(text: str) -> dict[str, str]:
    """gin text -> {name: value}, each value on one line; comments and imports are left out."""
    found, name = {}, ""
    for line in text.split("\n"):
        if line[:1] in ("", "#") or line.startswith(("import ", "from ", "include ")):
            continue
        first, equals, value = line.partition(" = ")
        if equals and not line[0].isspace():
            name, line = first, value
        found[name] = f"{found.get(name, '')} {line.strip()}".strip().removesuffix("\\").strip()
    return found


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """Rows [name, value of the first run, of the second, ...] where they aren't all the same."""
    rows = []
    for name in sorted({name for run in runs for name in run.config}):
        values = [run.config.get(name, "") for run in runs]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def thin(points: Points, most: int) -> Points:
    """At most about so many of the points, with the least and largest of every stretch."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    kept = [points[0]]
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted({*kept, points[-1]})
