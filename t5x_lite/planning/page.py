"""A plan, or a search's result, as one HTML page without scripts or external files."""

from collections.abc import Sequence
from typing import Any

from t5x_lite.page import COLOURS, document, escape, table
from t5x_lite.planning import report
from t5x_lite.units import gib


def render(result: dict[str, Any]) -> str:
    """Returns the HTML page of a result of `report.make` or `search.main`."""
    if "candidates" not in result:
        title = f"{result['topology']}: {result['parameters']:,} parameters"
        return document(title, _plan(result))
    title = f"Layouts on {result['topology']}"
    counted = (
        f"{result['candidates']} layouts, {result['compiled']} examined, "
        f"{result['not_compiled']} not reached"
    )
    if any(plan["source"] == "read" for plan in result["plans"]):
        counted += "; memory after a ~ is without the program itself, as no code was generated"
    body = f"<p>{counted}.</p>" + _chart(result["plans"]) + _layouts(result)
    if result["best"]:
        body += "<h2>The fastest</h2>" + _plan(result["best"])
    return document(title, body)


def _plan(plan: dict[str, Any]) -> str:
    parts = ["<h2>Memory of one chip</h2>", _memory_bar(plan)]
    for title, rows in report.sections(plan):
        parts += [f"<h2>{escape(title)}</h2>", table(rows)]
    if plan["fits"] and plan["buffers"]:
        parts += ["<h2>Largest buffers</h2>", table(report.buffer_rows(plan))]
    return "\n".join(parts)


def _memory_bar(plan: dict[str, Any]) -> str:
    memory = plan["memory"]
    scale = max(memory["limit"], memory["total"])
    bars, keys = [], []
    for (name, label), colour in zip(report.MEMORY, COLOURS, strict=False):
        share = memory.get(name, 0) / scale
        bars.append(f"<div style='width:{share:.2%};background:{colour}'></div>")
        keys.append(f"<span class=key style='background:{colour}'></span>{label}")
    share = f"{memory['total'] / memory['limit']:.1%} of {gib(memory['limit'])}"
    verdict = share if plan["fits"] else f"<b class='bad'>{share}: doesn't fit</b>"
    return f"<div class='bar'>{''.join(bars)}</div><p>{' '.join(keys)}<br>{verdict}</p>"


def _layouts(result: dict[str, Any]) -> str:
    header, *rows = report.layout_rows(result["plans"])
    return "<h2>Layouts examined</h2>" + table(rows, header)


def _chart(plans: Sequence[dict[str, Any]]) -> str:
    """An SVG chart of time against memory; layouts that don't fit are hollow."""
    points = [p for p in plans if "time" in p]
    if not points:
        return ""
    width, height, edge = 640, 320, 50
    limit = points[0]["memory"]["limit"]
    right = 1.05 * max(limit, *(p["memory"]["total"] for p in points))
    speeds = [p["tokens_per_second"] for p in points]
    top = 1.05 * max(speeds)

    def x(bytes_: float) -> float:
        return edge + (width - edge - 10) * bytes_ / right

    def y(speed: float) -> float:
        return height - edge + (20 - (height - edge)) * speed / top

    marks = []
    for p in points:
        colour = COLOURS[0] if p["fits"] else "none"
        title = f"{p['layout']['text']}, remat {p['remat']}, {gib(p['memory']['total'])}"
        across, up = x(p["memory"]["total"]), y(p["tokens_per_second"])
        marks.append(
            f"<circle cx='{across:.1f}' cy='{up:.1f}' r='5' "
            f"fill='{colour}' stroke='{COLOURS[0]}'><title>{escape(title)}</title></circle>"
        )
    line = (
        f"<line x1='{x(limit):.1f}' x2='{x(limit):.1f}' y1='10' y2='{height - edge}' "
        f"stroke='{COLOURS[3]}' stroke-dasharray='4'/>"
    )
    axes = (
        f"<path d='M{edge} 10V{height - edge}H{width}' fill='none' stroke='currentColor'/>"
        f"<text x='{width / 2}' y='{height - 15}' fill='currentColor'>memory per chip; dashed: "
        f"{gib(limit)}</text><text x='{edge + 6}' y='20' fill='currentColor'>"
        f"tokens/s (up to {max(speeds):,.0f})</text>"
    )
    return (
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='speed against memory'>"
        f"{axes}{line}{''.join(marks)}</svg>"
    )
