"""Where a model is wrong, as one HTML page: `t5x_lite eval --html=errors.html`.

By task: the confusion matrix, the worst examples, loss and correctness by length and by the fields
of the records; with two checkpoints side by side, and what one got right that the other didn't.
Made of the rows of predictions.py alone.
"""

import collections
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from t5x_lite import page
from t5x_lite.errors import UserError
from t5x_lite.evaluation.predictions import Row
from t5x_lite.evaluation.results import read_all, read_predictions
from t5x_lite.page import escape, table

_WORST = 30
_CLASSES = 20  # a target with more values is no class
_SLICES = 12  # nor is a field with more a slice
_SHOWN = 400  # characters of a text
_STYLE = """
.confusion td { text-align: right; border: 1px solid var(--line); padding: .2rem .5rem }
td { overflow-wrap: anywhere } td:first-child { white-space: normal }
"""
Judged = tuple[str, list[Row]]  # a checkpoint and its rows


def write_error_page(path: str, folder: epath.Path, keys: Sequence[str]) -> None:
    """Writes the page of one or two checkpoints whose predictions are in an `eval/SPLIT` folder.

    Raises:
      UserError: there are no predictions.
    """
    checkpoints = [(key, read_predictions(folder, key)) for key in keys]
    if not any(rows for _, rows in checkpoints):
        raise UserError(
            "no predictions to show: the task names no metrics; set Task.metrics = [@exact_match], "
            "say."
        )
    values = {r["key"]: r["values"] for r in read_all(folder) if r["key"] in keys}
    text = render(checkpoints, values)
    beside = epath.Path(f"{path}.tmp")
    epath.Path(os.path.dirname(path) or ".").mkdir(parents=True, exist_ok=True)
    beside.write_text(text)
    beside.replace(path)


def render(checkpoints: Sequence[Judged], values: dict[str, dict[str, Any]]) -> str:
    """The page. The last checkpoint is the one that is looked at, one before it is beside it."""
    *before, (key, rows) = checkpoints
    parts = [_section("Values", _values(values, [k for k, _ in checkpoints]))]
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [(k, [r for r in found if r["task"] == task]) for k, found in checkpoints]
        parts.append(f"<h2>{escape(task)}</h2>")
        for title, show in _SECTIONS.items():
            if body := show(own):
                parts.append(f"<h3>{title}</h3>{body}")
    beside = f" beside those of {before[0][0]}" if before else ""
    return page.document(f"Errors of checkpoint {key}{beside}", "\n".join(parts), style=_STYLE)


def is_right(row: Row) -> bool | None:
    """Whether the prediction is the target, or one of the references; None without one."""
    if "prediction" not in row:
        return None
    right = row.get("references") or [row["target"]]
    return row["prediction"].strip() in [r.strip() for r in right]


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}"


def _values(values: dict[str, dict[str, Any]], keys: Sequence[str]) -> str:
    names = dict.fromkeys(name for key in keys for name in values.get(key, {}))
    lines = [[n, *(_number(values.get(key, {}).get(n)) for key in keys)] for n in names]
    return table(lines, ["", *keys], range(1, len(keys) + 1))


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.5g}"


def _confusion(own: Sequence[Judged]) -> str:
    rows = own[-1][1]
    targets = sorted({row["target"] for row in rows})
    if len(targets) < 2 or len(targets) > _CLASSES or "prediction" not in rows[0]:
        return ""
    columns = [*targets, None]  # None: an output that is none of them
    counts = collections.Counter(
        (row["target"], row["prediction"] if row["prediction"] in targets else None) for row in rows
    )
    head = "".join(f"<th>{'something else' if c is None else escape(c)}</th>" for c in columns)
    lines = [f"<tr><th>target \\ prediction</th>{head}</tr>"]
    for target in targets:
        total = sum(counts[target, c] for c in columns) or 1
        cells = []
        for column in columns:
            count = counts[target, column]
            colour = "60,169,81" if column == target else "255,114,92"
            shade = f"background:rgba({colour},{count / total:.2f})"
            cells.append(f"<td style='{shade}'>{count}</td>")
        lines.append(f"<tr><th>{escape(target)}</th>{''.join(cells)}</tr>")
    return f"<div class=scroll><table class=confusion>{''.join(lines)}</table></div>"


def _worst(own: Sequence[Judged]) -> str:
    rows = sorted(own[-1][1], key=lambda r: -r["loss"])[:_WORST]
    return _listed(own, rows)


def _listed(own: Sequence[Judged], rows: Sequence[Row]) -> str:
    """Examples, with what each checkpoint made of them."""
    by_index = [{row["index"]: row for row in found} for _, found in own]
    lines = []
    for row in rows:
        line = [row["index"], _cut(row["input"]), _cut(row["target"])]
        for found in by_index:
            other = found.get(row["index"], {})
            line += [_cut(other.get("prediction", "")), _number(other.get("loss"))]
        lines.append(line)
    header = ["record", "input", "target"]
    for key, _ in own:
        header += [f"prediction ({key})", "loss"]
    return table(lines, header, range(4, 4 + 2 * len(own), 2))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _lengths(own: Sequence[Judged]) -> str:
    def power(row: Row) -> int:
        return (row["tokens"] - 1).bit_length()  # 1, 2, 3-4, 5-8, ...

    def name(exponent: int) -> str:
        low, high = (1 << exponent) // 2 + 1, 1 << exponent
        return f"{high}" if exponent < 2 else f"{low} to {high}"

    return _groups(own, power, name, "tokens of the target")


def _fields(own: Sequence[Judged]) -> str:
    rows, parts = own[-1][1], []
    for field in dict.fromkeys(name for row in rows for name in row.get("fields", {})):
        found = {row.get("fields", {}).get(field) for row in rows}
        if 2 <= len(found) <= _SLICES:
            parts.append(_groups(own, _value_of(field), str, field))
    return "".join(parts)


def _value_of(field: str) -> Callable[[Row], str]:
    return lambda row: str(row.get("fields", {}).get(field))


def _groups(
    own: Sequence[Judged], group: Callable[[Row], Any], name: Callable[[Any], str], title: str
) -> str:
    """How many examples each group has, their loss and how many are right, by checkpoint."""
    columns = []
    for _, rows in own:
        found: dict[Any, list[Row]] = {}
        for row in rows:
            found.setdefault(group(row), []).append(row)
        columns.append(found)
    lines = []
    for key in sorted(columns[-1]):
        line = [name(key), len(columns[-1][key])]
        for found in columns:
            some = found.get(key, [])
            tokens = sum(row["tokens"] for row in some) or 1
            line.append(_number(-sum(row["target_score"] for row in some) / tokens))
            right = [r for row in some if (r := is_right(row)) is not None]
            line.append(f"{sum(right) / len(right):.1%}" if right else "")
        lines.append(line)
    header = [title, "examples"]
    for key, _ in own:
        header += [f"nats per token ({key})", "right"]
    return table(lines, header, range(1, len(header)))


def _changes(own: Sequence[Judged]) -> str:
    if len(own) < 2:
        return ""
    before = {row["index"]: row for row in own[0][1]}
    parts = []
    for title, was, now in (("Right before, wrong now", True, False),
                            ("Wrong before, right now", False, True)):  # fmt: skip
        rows = [
            row
            for row in own[-1][1]
            if is_right(row) is now and is_right(before.get(row["index"], {})) is was
        ]
        shown = _listed(own, sorted(rows, key=lambda r: -r["loss"])[:_WORST])
        parts.append(f"<details><summary>{title}: {len(rows)}</summary>{shown}</details>")
    return "".join(parts)


_SECTIONS: dict[str, Callable[[Sequence[Judged]], str]] = {
    "Confusion matrix": _confusion,
    "Changes": _changes,
    "By length": _lengths,
    "By field": _fields,
    f"The {_WORST} worst, by loss": _worst,
}
