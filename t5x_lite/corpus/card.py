"""The data card: what is in a dataset, what was taken out and why; as facts and as a page."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import t5x_lite
from t5x_lite.corpus.language import Language, tag
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.tally import Tally
from t5x_lite.page import document, escape

_PACKAGES = ("apache-beam", "tensorflow-datasets", "array-record", "rensa", "py3langid", "ftfy",
             "resiliparse", "warcio", "pypdf", "icu4py", "phonenumbers")  # fmt: skip
_LIMITS = (
    "Rules of thumb about form: they keep some bad text and drop some good text.",
    "Personal data is found by pattern; names and addresses of people stay.",
    "Languages that the language model doesn't know get the nearest one's name.",
)


def facts(corpus: Corpus, tally: Tally, named: Mapping[str, list[str]]) -> dict[str, Any]:
    """All that the card shows, for JSON."""
    return {
        "name": corpus.name,
        "version": corpus.version,
        "description": corpus.description,
        "settings": corpus.describe(),
        "versions": {"t5x_lite": t5x_lite.__version__, "python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        **tally.as_dict(),
        "not read": dict(named),
        "limits": list(_LIMITS),
        "languages": [tag(name) or name for name in _languages(corpus)],
    }


def _languages(corpus: Corpus) -> tuple[str, ...]:
    """Those that the user named, in that order."""
    for step in corpus.steps:
        if isinstance(step, Language) and step.languages is not None:
            return tuple(step.languages)
    return ()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def summary(found: Mapping[str, Any]) -> str:
    """A few lines for the terminal."""
    tables = found["tables"]
    before, after = tables.get("input", {}), tables.get("result", {})
    dropped = sorted(tables.get("dropped documents", {}).items(), key=lambda row: (-row[1], row[0]))
    lines = [
        f"read {before.get('documents', 0):,} documents, {size(before.get('bytes', 0))}",
        *(f"  dropped {number:,}: {reason}" for reason, number in dropped),
        *(f"  not read {n:,}: {kind}" for kind, n in sorted(tables.get("not read", {}).items())),
        f"wrote {after.get('documents', 0):,} documents, {size(after.get('bytes', 0))}, "
        f"{after.get('words', 0):,} words",
    ]
    return "\n".join(lines)


def size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"


# ---------------------------------------------------------------------------------------- the page

_STYLE = """
td.bar { width: 40%; display: table-cell; background: none; height: auto; border-radius: 0 }
td.bar div { background: #4a7; height: .9em; margin-top: .3em }
"""
_TITLES = {
    "result": "Result",
    "split: documents": "Documents by split",
    "source: documents": "Documents by source",
    "source: bytes": "Bytes by source",
    "language: documents": "Documents by language",
    "language: bytes": "Bytes by language",
    "license: documents": "Documents by licence, as the input names it",
    "license: bytes": "Bytes by licence",
    "domain: documents": "Documents by host",
    "length: documents": "Documents by length",
    "input": "Input",
    "input by source: documents": "Documents of the input by source",
    "not read": "Not read",
    "dropped documents": "Documents dropped, by rule",
    "dropped bytes": "Bytes dropped, by rule",
    "lines removed": "Lines removed, by rule",
    "bytes removed": "Bytes removed",
    "duplicate groups by size": "Groups of duplicates by size",
    "personal data": "Personal data replaced",
    "overlap with evaluation data": "Documents kept that overlap with evaluation data",
    "repaired": "Text repaired",
    "copies by the mix": "Copies of a document by the mix",
}


def page(found: Mapping[str, Any]) -> str:
    """One HTML page without scripts or links; all text is escaped."""
    parts = [f"<p>{escape(found['description'])}</p>"]
    tables = found["tables"]
    for name in [*_TITLES, *sorted(set(tables) - set(_TITLES))]:
        if tables.get(name):
            parts.append(f"<h2>{escape(_TITLES.get(name, name))}</h2>")
            parts.append(_chart(name, tables[name], found.get("languages", ())))
    if "vocabulary" in found:
        parts.append("<h2>Vocabulary</h2>" + _vocabulary(found["vocabulary"]))
    if found["samples"]:
        parts.append("<h2>Samples of what was dropped</h2><p>Personal data is masked.</p>")
        parts += _samples(found["samples"])
    if found["not read"]:
        parts.append("<h2>Not read, by name</h2>")
    for kind, names in sorted(found["not read"].items()):
        shown = escape("\n".join(names))
        parts.append(f"<details><summary>{escape(kind)}</summary><pre>{shown}</pre></details>")
    parts.append("<h2>How it was made</h2>" + _list(found["settings"]))
    parts.append("<h2>Versions</h2>" + _list(found["versions"]))
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in found["limits"])
    parts.append(f"<h2>Known limits</h2><ul>{limits}</ul>")
    title = f"{found['name']} {found['version']}"
    return document(title, "\n".join(parts), style=_STYLE)


def _chart(
    name: str, rows: Mapping[str, int], languages: Sequence[str] = (), most: int = 30
) -> str:
    """A bar for each row, the largest first; sizes, lengths and named languages in their order."""
    if name in ("length: documents", "duplicate groups by size", "copies by the mix"):
        ordered = sorted(rows.items(), key=lambda row: int(row[0]))
    else:
        ordered = sorted(rows.items(), key=lambda row: (-row[1], row[0]))
    if name.startswith("language: "):
        rank = {language: place for place, language in enumerate(languages)}
        ordered.sort(key=lambda row: rank.get(row[0], len(rank)))
    largest, cells = max(rows.values()) or 1, []
    for label, number in ordered[:most]:
        in_bytes = "bytes" in name or (name in ("input", "result") and label.endswith("bytes"))
        value = size(number) if in_bytes else f"{number:,}"
        if name == "length: documents":
            label = f"{2 ** int(label) // 2:,} to {2 ** int(label) - 1:,} bytes"
        bar = "" if name in ("input", "result") else _bar(number / largest)  # of several units
        cells.append(
            f'<tr><td>{escape(label)}</td><td class="number">{value}</td>'
            f'<td class="bar">{bar}</td></tr>'
        )
    if len(ordered) > most:
        rest = sum(number for _, number in ordered[most:])
        cells.append(
            f'<tr><td>{len(ordered) - most:,} more</td><td class="number">{rest:,}</td><td></td>'
            "</tr>"
        )
    return "<table>" + "\n".join(cells) + "</table>"


def _vocabulary(report: Mapping[str, Any]) -> str:
    columns = ("tokens per word", "unknown tokens", "bytes per token")
    head = "".join(f'<td class="number">{name}</td>' for name in ("documents", *columns, "tokens"))
    parts = []
    for by in ("language", "source"):
        rows = [f"<tr><td>{by}</td>{head}<td></td></tr>"]
        tokens = report[by]["estimated tokens"]
        largest = max(tokens.values()) or 1
        for group, number in sorted(tokens.items(), key=lambda row: (-row[1], row[0])):
            row = report[by]["measured"].get(group)
            measured = (f"{row['documents']:,}", *(f"{row[c]:.4g}" for c in columns)) if row else ""
            cells = [*(measured or [""] * 4), f"{number:,}"]
            shown = "".join(f'<td class="number">{cell}</td>' for cell in cells)
            shown += f'<td class="bar">{_bar(number / largest)}</td>'
            rows.append(f"<tr><td>{escape(group)}</td>{shown}</tr>")
        parts.append(f"<table>{''.join(rows)}</table>")
    where = escape(report["split"])
    return "".join(parts) + (
        f"<p>Measured on some documents of the split {where}; tokens are bytes by bytes per "
        "token.</p>"
    )


def _bar(share: float) -> str:
    return f'<div style="width:{100 * share:.1f}%"></div>'


def _samples(samples: Mapping[str, list]) -> Iterator[str]:
    for reason, rows in sorted(samples.items()):
        shown = "".join(
            f"<small>{escape(note)}</small><pre>{escape(text)}</pre>" for _, text, note in rows
        )
        yield f"<details><summary>{escape(reason)}</summary>{shown}</details>"


def _list(values: Mapping[str, Any]) -> str:
    rows = []
    for label, value in values.items():
        text = "\n".join(value) if isinstance(value, list) else str(value)
        rows.append(f"<tr><td>{escape(label)}</td><td><pre>{escape(text)}</pre></td></tr>")
    return "<table>" + "\n".join(rows) + "</table>"
