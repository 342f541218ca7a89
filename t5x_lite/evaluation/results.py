"""Predictions judged, written down, tabulated: a run's folder eval/SPLIT/.

STEP.json               values by name, confidence intervals, notes on how they were computed
STEP.predictions.jsonl  the rows of predictions.py
table.json, table.md    all steps' values
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from etils import epath

from t5x_lite import evidence
from t5x_lite.data.source import UNLABELLED
from t5x_lite.data.tasks import Task
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.evaluation.metrics.base import EXTRAS, bootstrap
from t5x_lite.evaluation.predictions import Row, needs_predictions
from t5x_lite.lines import split_lines

TEXT = "text/"  # before the names of metrics of texts, which aren't those of tokens
_SMALLER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "bits_per_character", "error")


def judge(task: Task, rows: Sequence[Row], *, samples: int = 0, level: float = 0.95) -> Row:
    """The task's metrics of its rows.

    Rows without a label don't count. Values of choices by normalised scores end with "_norm".

    Args:
      samples: of the bootstrap, for confidence intervals; 0: none.

    Returns:
      {"values": {name: float}, "notes": {name: text}, "intervals": {name: [low, high]}}.

    Raises:
      UserError: a metric of predictions where the task's objective makes none.
    """
    rows = [row for row in rows if row["target"] != UNLABELLED]
    found: Row = {"values": {}, "notes": {}, "intervals": {}}
    if not rows:
        return found
    targets = [row.get("references") or row["target"] for row in rows]
    columns = {
        "scores": [row.get("score") for row in rows],
        "target_scores": [row["target_score"] for row in rows],
        "groups": [row.get("group") for row in rows],
    }
    for metric in task.metrics:
        name = getattr(metric, "__name__", repr(metric))
        if needs_predictions(metric) and "prediction" not in rows[0]:
            raise UserError(
                f"task {task.name!r}: metric {name} needs predictions, and "
                f"{type(task.objective).__name__} makes none: use perplexity, or TextToText."
            )
        uses = getattr(metric, "uses", ())
        assert set(uses) <= set(EXTRAS), uses
        extras = {key: columns[key] for key in uses}
        for key, suffix in (("prediction", ""), ("prediction_norm", "_norm")):
            if suffix and (key not in rows[0] or "scores" in uses or not needs_predictions(metric)):
                continue
            predictions = [row.get(key, "") for row in rows]
            for value_name, value in metric(targets, predictions, **extras).items():
                kind = "notes" if isinstance(value, str) else "values"
                found[kind][f"{value_name}{suffix}"] = value
            if samples:
                options: dict[str, Any] = dict(samples=samples, level=level)
                ranges = bootstrap(cast(Any, metric), targets, predictions, extras, **options)
                found["intervals"] |= {f"{k}{suffix}": list(r) for k, r in ranges.items()}
    return found


# ------------------------------------------------------------------------------------------- files


def folder_of(model_dir: str, split: str) -> epath.Path:
    return epath.Path(model_dir) / "eval" / split


def write(folder: epath.Path, key: str, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes a checkpoint's result, its predictions before it: what has a result is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _write(folder / f"{key}.predictions.jsonl", lines)
    _write(folder / f"{key}.json", json.dumps(_finite(dict(result)), indent=1) + "\n")
    results = read_all(folder)
    _write(folder / "table.json", json.dumps([_table_row(r) for r in results], indent=1) + "\n")
    _write(folder / "table.md", markdown(results))


def _write(file: epath.Path, text: str) -> None:
    beside = file.parent / f"{file.name}.tmp"
    beside.write_bytes(text.encode())
    beside.replace(file)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_all(folder: epath.Path) -> list[Row]:
    """The results in a folder by their steps; a file of something else is left out.

    Raises Unreadable: the disk doesn't give one at the moment.
    """
    found = []
    for path in folder.glob("*.json") if evidence.exists(folder) else ():
        if path.name == "table.json":
            continue
        try:
            result = json.loads(evidence.read_text(path) or "null")
        except ValueError:
            continue
        if isinstance(result, dict) and "values" in result:
            found.append(result | {"key": path.name.removesuffix(".json")})
    return sorted(found, key=lambda r: (r["step"], r["key"]))


def read_predictions(folder: epath.Path, key: str) -> list[Row]:
    """The rows of a checkpoint. Raises UserError if there are none."""
    path = folder / f"{key}.predictions.jsonl"
    if not path.exists():
        raise UserError(f"no predictions of {key} in {folder}: run t5x_lite eval first.")
    return [json.loads(line) for line in split_lines(path.read_bytes().decode())]


def _table_row(result: Row) -> Row:
    return {"step": result["step"], "checkpoint": result["checkpoint"]} | result["values"]


def markdown(results: Sequence[Row]) -> str:
    """A table: a line for each checkpoint, a column for each value, the best in bold."""
    names = list(dict.fromkeys(name for r in results for name in r["values"]))
    differing = [n for n in names if len({r["values"].get(n) for r in results}) > 1]
    best = {name: _best(results, name) for name in differing}
    lines = ["| checkpoint | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for result in results:
        cells = []
        for name in names:
            value = result["values"].get(name)
            cell = "" if value is None else f"{value:.5g}"
            interval = result.get("intervals", {}).get(name, [None])
            if None not in interval:
                cell += f" ({interval[0]:.4g} to {interval[1]:.4g})"
            mark = "**" if best.get(name) is result else ""
            cells.append(f"{mark}{cell}{mark}")
        lines.append(f"| {result['key']} | " + " | ".join(cells) + " |")
    notes = {k: v for r in results for k, v in r.get("notes", {}).items()}
    lines += [""] * bool(notes) + [f"- {name}: {note}" for name, note in notes.items()]
    return "\n".join(lines) + "\n"


# -------------------------------------------------------------------------------------------- best


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is one of which less is better, by its name."""
    return metric.rpartition("/")[2].endswith(_SMALLER_IS_BETTER)


def _best(results: Sequence[Row], metric: str) -> Row | None:
    """The result with the best value, the later one among equals; None if none has it."""
    sign = -1 if smaller_is_better(metric) else 1
    having = [r for r in results if r["values"].get(metric) is not None]
    return max(having, key=lambda r: (sign * r["values"][metric], r["step"]), default=None)


def best_step(model_dir: str, metric: str, available: Sequence[int]) -> int:
    """The step with the best value among those evaluated by `eval`, or else while training.

    Of a name that metrics of tokens and of texts have ("accuracy"), the latter is meant.

    Raises:
      UserError: no checkpoint there has such a value, with the names that there are.
    """
    results = read_all(folder_of(model_dir, "validation"))
    results += [r for r in _logged(model_dir) if r["step"] not in {x["step"] for x in results}]
    results = [r for r in results if r["step"] in available]
    names = sorted({name for r in results for name in r["values"]})
    full = TEXT + metric if TEXT + metric in names else metric
    if (found := _best(results, full)) is None:
        raise UserError(
            f"no checkpoint of {model_dir} has a value of {metric!r}"
            + (f"; there are {', '.join(names)}." if names else ": run t5x_lite eval first.")
            + did_you_mean(metric, names)
        )
    return found["step"]


def _logged(model_dir: str) -> list[Row]:
    from t5x_lite.training.trackers import read_json_lines

    path = epath.Path(model_dir) / "metrics.jsonl"
    if "://" in str(path) or not path.exists():
        return []
    found = []
    for line in read_json_lines(path):
        values = {
            k.removeprefix("eval/"): v
            for k, v in line.items()
            if k.startswith("eval/") and isinstance(v, float)
        }
        if values:
            found.append({"step": line["step"], "values": values})
    return found
