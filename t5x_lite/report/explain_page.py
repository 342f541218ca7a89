"""What `t5x_lite explain` found, as a page: tokens as a heat map, alternatives, attention."""

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from t5x_lite import page
from t5x_lite.page import escape, table

MOST = 1_500_000  # bytes of attention; more layers or tokens than that are left out
_STYLE = """
.tokens { font: 14px/1.8 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.token { border-radius: .2em; cursor: pointer; padding: .15em 0; border: 0 solid transparent }
.span { border-bottom: 3px solid }
.unseen { color: var(--soft) }
#details { min-height: 9em; font: 13px/1.6 ui-monospace, monospace; white-space: pre-wrap }
.probability { display: inline-block; height: .7em; background: var(--accent) }
.attention { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)) }
.small { display: flex; gap: .4rem; align-items: center; margin: .3rem 0; font-size: 12px;
  color: var(--soft); flex-wrap: wrap }
canvas { image-rendering: pixelated; background: var(--wash) }
.small canvas { width: 4rem; height: 4rem; cursor: pointer }
.chosen { outline: 2px solid var(--accent) }
#large { width: 100%; max-height: 34rem; cursor: crosshair }
.scale { display: inline-block; width: 8rem; height: .9em; vertical-align: middle;
  border-radius: .2em }
"""
# (name of the map, what asks, what is asked), as ids of elements
_SIDES = {"encoder": ("inputs", "inputs"), "decoder": ("targets", "targets"),
          "cross": ("targets", "inputs")}  # fmt: skip
_RED, _GREEN = "220,50,47", "40,150,80"


def render(result: Mapping[str, Any], attention: Mapping[str, np.ndarray]) -> str:
    """The page; ``result`` and ``attention`` as `programs.explain.explain` makes them."""
    paths = result["weights"]
    two = len(paths) == 2
    header = ["", "tokens", "log-likelihood", "mean", "perplexity", "first choices"]
    rows = [
        [path, row["tokens"], f"{row['log_likelihood']:.4f}", f"{row['mean_log_prob']:.4f}",
         f"{row['perplexity']:.5g}", row["first"]]
        for path, row in zip(paths, result["summary"]["weights"], strict=True)
    ]  # fmt: skip
    parts = [table(rows, header, range(1, len(header)))]
    if result["inputs"]:
        parts.append("<h2>Input</h2>" + _tokens("inputs", result["inputs"], two))
    parts.append("<h2>Target, token by token</h2>" + _legend(two))
    parts.append(_tokens("targets", result["targets"], two))
    parts.append("<p id=details class=soft>Click a token: what the model expected instead, and "
                 "what it attends to.</p>")  # fmt: skip
    maps, left_out = _maps(attention, "encoder" if not result["inputs"] else "")
    if maps:
        options = "".join(f"<option>{escape(kind)}</option>" for kind in maps)
        parts.append(
            f"<h2>Attention of {escape(paths[0])}</h2><p><select id=kind aria-label=kind>{options}"
            "</select> <span class=soft>rows: layers, columns: heads; in a map, rows are what "
            f"attends, columns what is attended to.{left_out}</span></p><div class=attention>"
            "<div id=maps class=scroll></div><div><b id=which></b><canvas id=large></canvas>"
            "<div id=cell class=soft>&nbsp;</div></div></div>"
        )
    script = resources.files("t5x_lite.report").joinpath("explain.js").read_text(encoding="utf-8")
    title = "What the model sees" if not two else "What two sets of weights see"
    data = {"attention": maps, "result": result}
    return page.document(title, "\n".join(parts), style=_STYLE, script=script, data=data)


def _legend(two: bool) -> str:
    colours, ends = f"transparent, rgba({_RED},.8)", ("likely", "unlikely")
    if two:
        colours = f"rgba({_RED},.8), transparent, rgba({_GREEN},.8)"
        ends = ("likelier to the first weights", "to the second")
    scale = f"<span class=scale style='background:linear-gradient(90deg, {colours})'></span>"
    return f"<p class=soft>{ends[0]} {scale} {ends[1]}</p>"


def _tokens(side: str, tokens: Sequence[Mapping[str, Any]], two: bool) -> str:
    return f"<div class=tokens id={side}>{''.join(_token(t, two) for t in tokens)}</div>"


def _token(token: Mapping[str, Any], two: bool) -> str:
    style, classes, more = "", "token", ""
    if "span" in token:
        colour = page.COLOURS[token["span"] % len(page.COLOURS)]
        style, classes = f"border-color:{colour};", "token span"
    if "log_prob" in token:
        about = (
            f"{token['text']!r}: log-probability {token['log_prob']:.3f}, rank {token['rank']}, "
        )
        about += f"entropy {token['entropy']:.3f}"
        heat, colour = min(1.0, -token["log_prob"] / 10), _RED
        if two and "other" in token:
            change = token["other"]["log_prob"] - token["log_prob"]
            about += f"; {token['other']['log_prob']:.3f} to the second weights"
            heat, colour = min(1.0, abs(change) / 5), _GREEN if change > 0 else _RED
        style += f"background:rgba({colour},{0.8 * heat:.2f})"
        listed = json.dumps([[repr(a["text"]), a["log_prob"]] for a in token["alternatives"]])
        more = f' data-about="{escape(about)}" data-alternatives="{escape(listed)}"'
        more += f' title="{escape(about)}" data-heat="{heat:.3f}"'
    else:
        classes += " unseen" if "span" not in token else ""
    shown = escape(token["text"]).replace("\n", "↵\n")
    return f'<span class="{classes}" style="{style}"{more}>{shown}</span>'


def _maps(attention: Mapping[str, np.ndarray], alone: str) -> tuple[dict[str, Any], str]:
    """Attention [L, N, queries, keys] as bytes (255 x root), as much as the page may hold."""
    maps, left, said = {}, MOST, ""
    for kind in [kind for kind in _SIDES if kind in attention]:
        weights = attention[kind]
        layers, heads, queries, keys = weights.shape
        fit = min(layers, left * 3 // 4 // max(1, heads * queries * keys))
        if fit < layers:
            said = " The page has room for the first layers only."
        if fit == 0:
            continue
        asks, asked = ("targets", "targets") if kind == alone else _SIDES[kind]
        packed = np.rint(255 * np.sqrt(weights[:fit])).astype(np.uint8).tobytes()
        maps[kind] = {
            "layers": fit, "heads": heads, "queries": queries, "keys": keys, "query_side": asks,
            # A decoder reads the token before the one that it predicts.
            "key_side": asked, "shift": int(asked == "targets" and kind != alone),
            "weights": base64.b64encode(packed).decode(),
        }  # fmt: skip
        left -= len(maps[kind]["weights"])
    return maps, said
