"""What all pages share: one self-contained HTML file, that loads nothing and escapes everything.

Its content security policy forbids every load, so a page works offline and tells nobody that it
was opened.
"""

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #6b6b70; --paper: #fff; --line: #ddd;
  --wash: #f3f3f5; --bad: #b00020; --accent: #4269d0 }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --soft: #96969c; --paper: #17181a;
  --line: #3a3b3f; --wash: #222327; --bad: #ff7b7b; --accent: #84a2ff } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.4rem; margin: .5rem 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
h3 { font-size: .95rem; margin: 1rem 0 .3rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line) }
td:first-child { white-space: nowrap } th { font-weight: 600; color: var(--soft) }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto } small, .soft { color: var(--soft) } .bad { color: var(--bad) }
pre { margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px }
summary { cursor: pointer } details { margin: .3rem 0 }
.bar { display: flex; height: 1.6em; background: var(--wash); border-radius: .3em;
  overflow: hidden } .bar div { height: 100% }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em; border-radius: .2em }
"""
COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2", "#6cc5b0", "#9c6b4e", "#9498a0")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def escape(text: Any) -> str:
    """As text between tags, or in a quoted attribute; control characters are shown as escapes."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(text))
    return html.escape(shown)


def document(
    title: str,
    body: str,
    *,
    style: str = "",
    script: str = "",
    data: Any = None,
    calls: bool = False,
) -> str:
    """A whole page. ``title`` is escaped here, ``body`` is HTML.

    Args:
      script: JavaScript, run at the end; it finds ``data`` (JSON values) in the element "data".
      calls: whether it may call the server that the page came from; nobody else, even so.
    """
    policy = f"{_POLICY}; connect-src 'self'" if calls else _POLICY
    title, end = escape(title), ""
    if data is not None:
        end += f"<script type='application/json' id='data'>{embedded(data)}</script>\n"
    if script:
        end += f"<script>\n{script}</script>\n"
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f"<title>{title}</title>\n<meta name='viewport' content='width=device-width'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n{end}"
        "</body>\n</html>\n"
    )


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or opens another."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def table(
    rows: Iterable[Sequence[Any]], header: Sequence[str] = (), numbers: Iterable[int] = ()
) -> str:
    """A table of text; columns whose index is among ``numbers`` stand right."""
    right = set(numbers)

    def line(cells: Sequence[Any], tag: str) -> str:
        shown = [
            f"<{tag}{' class=number' if i in right else ''}>{escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(shown)}</tr>\n"

    head = line(header, "th") if header else ""
    body = "".join(line(row, "td") for row in rows)
    return f"<div class='scroll'><table>{head}{body}</table></div>"
