"""One run, or several beside each other, as a page with charts."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from t5x_lite import page
from t5x_lite.lines import split_lines
from t5x_lite.page import escape, table
from t5x_lite.report.runs import Run, differences, thin
from t5x_lite.training.goodput import ACCOUNTS
from t5x_lite.units import duration, short

MAIN = 1000  # points of a curve
OTHER = 250  # of those that are one of many
EVALS, SAMPLES = 12, 8  # evaluations and rounds of samples shown
_CHARTS = (  # title, the metrics drawn together, whether logarithmic
    ("Loss", ("loss", "eval/loss"), False),
    ("Learning rate", ("learning_rate",), False),
    ("Gradient norm", ("grad_norm",), True),
    ("Tokens per second", ("tokens_per_second",), False),
)
_STYLE = """
.charts { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)) }
.head { display: flex; gap: 1rem; align-items: baseline; flex-wrap: wrap; margin-top: 1.2rem }
.head label, .legend, fieldset { font-size: 13px; color: var(--soft) }
.head select { max-width: 11rem; color: inherit; background: var(--wash);
  border: 1px solid var(--line) }
.legend { min-height: 1.4em } .legend button { font: inherit; color: inherit; background: none;
  border: 0; padding: 0 .6em 0 0; cursor: pointer } .legend .off { text-decoration: line-through }
[data-chart] { position: relative } [data-chart] svg { width: 100%; height: 240px; display: block;
  touch-action: none; cursor: crosshair }
.tick { font-size: 11px; fill: var(--soft); font-family: inherit } .right { text-anchor: end }
.middle { text-anchor: middle } .grid { stroke: var(--line) } .mark { stroke: var(--soft) }
.band { fill: var(--accent); opacity: .2 } .line { fill: none; stroke-width: 1.6 }
.dotted { stroke-dasharray: 4 3 }
.tip { position: absolute; top: 4.5rem; background: var(--paper); border: 1px solid var(--line);
  border-radius: .3em; padding: .3em .6em; font-size: 13px; pointer-events: none }
fieldset { border: 0; padding: 0; margin: .5rem 0; display: flex; gap: 1rem; align-items: center;
  position: sticky; top: 0; background: var(--paper); z-index: 1 }
.numbers td:first-child { width: 14rem; color: var(--soft) }
.goodput + p { font-size: 13px; margin: .2rem 0 .8rem }
.wide { white-space: pre } .sample td:first-child { width: 8rem; color: var(--soft) }
"""


def render(runs: Sequence[Run]) -> str:
    """The page of the runs; their names are told apart, if two folders are called the same."""
    names = _names(runs)
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs: {', '.join(names)}"
    charts: list[dict[str, Any]] = []
    parts = [_section("What differs", _differences(runs, names))]
    parts.append(_section("At a glance", _glance(runs, names)))
    how = "<p class=soft>Drag in a chart to zoom, double-click to zoom out.</p>"
    parts.append(_section("Curves", how + _curves(runs, names, charts)))
    parts.append(_section("Time", _time(runs, names)))
    parts.append(_section("Data", _data(runs, names)))
    parts.append(_section("Evaluation", "".join(_evaluation(runs, names))))
    parts.append(_section("Samples", "".join(_samples(runs, names))))
    parts.append(_section("Predicted and measured", _checked(runs, names)))
    parts.append(_section("Configuration", "".join(_configuration(runs, names))))
    parts.append(_section("Parameters", "".join(_parameters(runs, names))))
    script = resources.files("t5x_lite.report").joinpath("chart.js").read_text(encoding="utf-8")
    data = {"charts": charts, "colours": page.COLOURS, "runs": data_of(runs, names)}
    return page.document(title, "\n".join(parts), style=_STYLE, script=script, data=data)


def data_of(runs: Sequence[Run], names: Sequence[str]) -> list[dict[str, Any]]:
    """What the charts draw of each run: name, tokens_per_step and its thinned series."""
    main = {metric for _, metrics, _ in _CHARTS for metric in metrics}
    found = []
    for run, name in zip(runs, names, strict=True):
        series = {}
        for metric, points in run.series.items():
            points = thin(points, MAIN if metric in main else OTHER)
            steps = [step for step, _ in points]
            series[metric] = {
                "step": steps,
                "value": [float(f"{value:.6g}") for _, value in points],
                "seconds": [None if s is None else round(s, 3) for s in run.seconds(steps)],
            }
        found.append({"name": name, "tokens_per_step": run.tokens_per_step, "series": series})
    return found


def _names(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    clash = len(set(names)) < len(names)
    return [str(run.folder) for run in runs] if clash else names


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def _differences(runs: Sequence[Run], names: Sequence[str]) -> str:
    if len(runs) == 1:
        return ""
    rows = differences(runs)
    return table(rows, ["", *names]) if rows else "<p>Nothing: config.gin is the same.</p>"


def _side_by_side(rows: Sequence[Sequence[str]], names: Sequence[str]) -> str:
    """Rows [label, value of each run]; those without any value are left out."""
    rows = [row for row in rows if any(row[1:])]
    header = ["", *names] if len(names) > 1 else ()
    return f"<div class=numbers>{table(rows, header)}</div>" if rows else ""


def _glance(runs: Sequence[Run], names: Sequence[str]) -> str:
    def each(function) -> list[str]:
        return [function(run) or "" for run in runs]

    def value(name: str, form: str):
        return lambda run: form.format(run.last[name]) if name in run.last else ""

    def rate(run: Run) -> str:
        found = run.median("tokens_per_second")
        return f"{short(found)} tokens/s" if found else ""

    def steps(run: Run) -> str:
        last = max((points[-1][0] for points in run.series.values()), default=0)
        tokens = f" = {short(last * run.tokens_per_step)} tokens" if run.tokens_per_step else ""
        return f"{last:,}{tokens}"

    rows = [
        ["steps made", *each(steps)],
        ["loss", *each(value("loss", "{:.4f}"))],
        ["held-out loss", *each(value("eval/loss", "{:.4f}"))],
        ["held-out bits per byte", *each(value("eval/bits_per_byte", "{:.4f}"))],
        ["unigram entropy", *each(value("eval/unigram_loss", "{:.4f}"))],
        ["held-out accuracy", *each(value("eval/accuracy", "{:.2%}"))],
        ["speed (median)", *each(rate)],
        ["MFU", *each(value("mfu", "{:.1%}"))],
        ["goodput", *each(value("goodput", "{:.1%}"))],
        ["training", *each(lambda r: duration(r.last.get("train_seconds", 0.0)))],
        ["restarts after crashes", *each(value("restarts", "{:.0f}"))],
        ["skipped steps", *each(value("skipped_steps", "{:.0f}"))],
    ]
    derived = [key for run in runs for key in run.hyperparameters
               if key not in ("config", "tokens_per_step")]  # fmt: skip
    for key in dict.fromkeys(derived):
        rows.append([key, *(str(run.hyperparameters.get(key, "")) for run in runs)])
    return _side_by_side(rows, names)


def _curves(runs: Sequence[Run], names: Sequence[str], charts: list[dict[str, Any]]) -> str:
    boxes = [
        f"<label><input type=radio name=x value={x}{' checked' if x == 'step' else ''}> {label}"
        "</label>"
        for x, label in (("step", "steps"), ("tokens", "tokens"), ("seconds", "time of training"))
    ]
    parts = [f"<fieldset><span>along</span>{''.join(boxes)}</fieldset><div class=charts>"]

    def add(spec: dict[str, Any]) -> None:
        parts.append(f"<div data-chart={len(charts)}></div>")
        charts.append(spec)

    for title, metrics, log in _CHARTS:
        lines = []
        for i, run in enumerate(runs):
            there = [metric for metric in metrics if metric in run.series]
            for metric in there:
                kind = "held out" if metric.startswith("eval/") else "training"
                label = names[i] if len(metrics) == 1 else f"{names[i]} {kind}"
                if len(runs) == 1:
                    label = kind if len(metrics) > 1 else metric.replace("_", " ")
                colour = len(runs) * metrics.index(metric) + i if len(runs) == 1 else i
                dots = metric.startswith("eval/")
                lines.append({"run": i, "metric": metric, "label": label, "dots": dots,
                              "colour": colour})  # fmt: skip
        if lines:
            add({"title": title, "lines": lines, "log": log})
    drawn = {metric for _, metrics, _ in _CHARTS for metric in metrics}
    others = sorted({name for run in runs for name in run.series} - drawn)
    if others:
        add({"title": "Any other value", "choice": others, "lines": [], "log": False})
    return "\n".join(parts) + "</div>"


def _time(runs: Sequence[Run], names: Sequence[str]) -> str:
    parts = []
    for run, name in zip(runs, names, strict=True):
        seconds = {a: run.last.get(f"seconds/{a}", 0.0) for a in ACCOUNTS}
        total = sum(seconds.values())
        if not total:
            continue
        bars, keys = [], []
        for (account, label), colour in zip(ACCOUNTS.items(), page.COLOURS, strict=True):
            share = seconds[account] / total
            bars.append(f"<div style='width:{share:.2%};background:{colour}'></div>")
            if share >= 0.005:
                key = f"<span class=key style='background:{colour}'></span>"
                keys.append(f"{key}{escape(label)} {share:.1%}, {duration(seconds[account])}")
        bar = f"<div class='bar goodput'>{''.join(bars)}</div><p>{' '.join(keys)}</p>"
        parts.append(f"<h3>{escape(name)}</h3>{bar}" if len(runs) > 1 else bar)
    return "\n".join(parts)


def _data(runs: Sequence[Run], names: Sequence[str]) -> str:
    tasks = sorted({n.removeprefix("drawn/") for run in runs for n in run.last
                    if n.startswith("drawn/")})  # fmt: skip

    def share(run: Run, name: str) -> str:
        return f"{run.last[name]:.2%}" if name in run.last else ""

    rows = [[f"drawn: {task}", *(share(run, f"drawn/{task}") for run in runs)] for task in tasks]
    rows.append(["padding", *(share(run, "padding_share") for run in runs)])
    for key in ("task", "batch_size", "lengths", "pack", "seed"):
        rows.append([key.replace("_", " "), *(str(run.identity.get(key, "")) for run in runs)])
    return _side_by_side(rows, names)


def _evaluation(runs: Sequence[Run], names: Sequence[str]) -> Iterator[str]:
    for run, name in zip(runs, names, strict=True):
        found = {n.removeprefix("eval/"): dict(points) for n, points in run.series.items()
                 if n.startswith("eval/") and "unigram" not in n}  # fmt: skip
        if found:
            yield f"<h3>{escape(name)}: while training</h3>"
            yield _by_step({n: p for n, p in found.items() if "/" not in n})
        tasks = dict.fromkeys(n.rpartition("/")[0] for n in found if "/" in n)
        if tasks:
            metrics = list(dict.fromkeys(n.rpartition("/")[2] for n in found if "/" in n))
            rows = [[t, *(_last(found.get(f"{t}/{m}")) for m in metrics)] for t in tasks]
            yield "<h3>By task, at the last evaluation</h3>"
            yield table(rows, ["task", *metrics], range(1, len(metrics) + 1))
        if run.evals:
            steps = {line["step"]: line for line in run.evals}
            metrics = [m for m in run.evals[-1] if m not in ("step", "checkpoint")]
            points = {m: {s: line[m] for s, line in steps.items() if m in line} for m in metrics}
            yield f"<h3>{escape(name)}: by t5x_lite eval, on all held-out data</h3>"
            yield _by_step(points)


def _by_step(found: Mapping[str, Mapping[int, float]]) -> str:
    steps = sorted({step for points in found.values() for step in points})
    if len(steps) > EVALS:  # evenly, the first and the last among them
        last = len(steps) - 1
        steps = [steps[round(i * last / (EVALS - 1))] for i in range(EVALS)]
    rows = [[f"{s:,}", *(_number(points.get(s)) for points in found.values())] for s in steps]
    header = ["step", *(name.replace("_", " ") for name in found)]
    return table(rows, header, range(len(header)))


def _last(points: Mapping[int, float] | None) -> str:
    return _number(points[max(points)]) if points else ""


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.5g}"


def _samples(runs: Sequence[Run], names: Sequence[str]) -> Iterator[str]:
    for run, name in zip(runs, names, strict=True):
        found: dict[str, dict[str, dict[int, str]]] = {}  # sample_0 -> prediction -> step -> text
        for key, points in run.texts.items():
            sample, _, part = key.partition("/")
            if sample.startswith("sample_"):
                found.setdefault(sample, {})[part] = dict(points)
        for number, parts in enumerate(found.values()):
            rows = []
            for part, points in parts.items():
                steps = sorted(points)[-SAMPLES:]
                texts = [points[step] for step in steps]
                if len(set(texts)) == 1:
                    rows.append([part, texts[0]])
                else:
                    rows += [[f"{part}, step {s:,}", t] for s, t in zip(steps, texts, strict=True)]
            cells = "".join(f"<tr><td>{escape(label)}</td><td><pre>{escape(text)}</pre></td></tr>"
                            for label, text in rows)  # fmt: skip
            which = f"{escape(name)}: " if len(runs) > 1 else ""
            first = " open" if number == 0 else ""
            yield (
                f"<details{first}><summary>{which}sample {number}</summary>"
                f"<table class=sample>{cells}</table></details>\n"
            )


def _checked(runs: Sequence[Run], names: Sequence[str]) -> str:
    checked = [run.summary.get("checked") or {} for run in runs]
    labels = dict.fromkeys(label for found in checked for label in found)
    rows = [[label, *(str(found.get(label, "")) for found in checked)] for label in labels]

    def step(run: Run) -> str:
        median = run.median("seconds_per_step")
        if median is None:
            return ""
        used = run.median("mfu")
        peak = f"; {median * used:.4g} s if the devices reached their peak" if used else ""
        return f"measured {median:.4g} s (median){peak}"

    rows.append(["time of a step", *map(step, runs)])
    return _side_by_side(rows, names)


def _configuration(runs: Sequence[Run], names: Sequence[str]) -> Iterator[str]:
    for run, name in zip(runs, names, strict=True):
        if run.config_text:
            yield _folded(f"{name}: config.gin", run.config_text)


def _parameters(runs: Sequence[Run], names: Sequence[str]) -> Iterator[str]:
    for run, name in zip(runs, names, strict=True):
        if lines := split_lines(run.parameters):
            yield _folded(f"{name}: {lines[-1]}", run.parameters, "class=wide")


def _folded(title: str, text: str, kind: str = "") -> str:
    pre = f"<div class=scroll><pre {kind}>{escape(text)}</pre></div>"
    return f"<details><summary>{escape(title)}</summary>{pre}</details>\n"
