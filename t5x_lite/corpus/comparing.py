"""Which documents and lines go because they stood before: plain functions that Beam calls.

keys -> repeats of each column and part -> edges between documents -> groups, joined in rounds ->
decisions of each unit. What a task has for others goes by files (exchange.py), so that none holds
more than its part: of the keys, or of the edges that end at its units' documents.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from t5x_lite.corpus.duplicates import groups, line_key, repeated_spans, repeats
from t5x_lite.corpus.exchange import receive, send
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.stages import (
    UNIT_BITS,
    Counts,
    read_documents,
    sizes,
    without_lines,
    write_decisions,
)
from t5x_lite.corpus.store import Layout, read_json, write_json
from t5x_lite.errors import UserError

LINE_BITS = 16
_LOW = (1 << UNIT_BITS) - 1
NEAR, EXACT = 0, 1


def owners(numbers: np.ndarray, layout: Layout) -> np.ndarray:
    """The part that has a document's unit."""
    return (numbers >> np.uint64(UNIT_BITS)).astype(np.int64) % layout.parts


# --------------------------------------------------------------------------------------- documents


def find_edges(corpus: Corpus, layout: Layout, part: int) -> Counts:
    """work/edges/0: (first, later, kind) of documents that share a key, for both ends' owners."""
    names = corpus.duplicates.names
    files = [corpus.work / "clean" / f"{unit:05d}.keys" for unit in range(layout.units)]
    edges, total = [np.zeros((0, 3), np.uint64)], 0
    for column, name in enumerate(names):
        receiver = part * len(names) + column
        rows = receive(files, receiver, layout.parts * len(names), 2)
        first, later = repeats(rows[:, 0], rows[:, 1])
        kind = np.full_like(first, EXACT if name == "exact" else NEAR)
        edges.append(np.stack([first, later, kind], 1))
        total += len(rows)
    found = np.concatenate(edges)
    _send_edges(corpus, layout, 0, part, found)
    return {"keys": total, "pairs": len(found)}


def join(corpus: Corpus, layout: Layout, round_: int, part: int) -> Counts:
    """Replaces what a part knows of each group by edges to its smallest number: round_ + 1.

    A part has all edges of its units' documents. When no part's groups were news to it, each
    document is joined to the smallest of its group and to no other: the groups are whole. A group
    that goes through k parts needs some log k rounds.
    """
    edges = np.unique(_edges(corpus, layout, round_, part)[:, :2], axis=0)
    numbers, smallest = groups(edges[:, 0], edges[:, 1])
    star = np.stack([smallest, numbers], 1)[smallest != numbers]
    star = star[np.lexsort((star[:, 1], star[:, 0]))]
    news = not np.array_equal(star, edges)
    _send_edges(corpus, layout, round_ + 1, part, star)
    folder = _edge_folder(corpus, round_ + 1)
    write_json(folder / f"{part:05d}.json", {"news": news and layout.parts > 1})
    return {"pairs": len(edges)}


def join_rounds(corpus: Corpus, layout: Layout, run: Callable[[int], None]) -> dict[str, int]:
    """Calls run(round) until one has no news; returns {"round": whose edges are the groups}."""
    round_, news = 0, True
    while news:
        folder = _edge_folder(corpus, round_ + 1)
        folder.mkdir(parents=True, exist_ok=True)
        run(round_)
        found = [read_json(folder / f"{part:05d}.json") for part in range(layout.parts)]
        news = any(row["news"] for row in found)
        round_ += 1
    return {"round": round_}


def decide_documents(corpus: Corpus, layout: Layout, part: int) -> Counts:
    """Writes which documents of the part's units go, and work/left: bytes by the mix's group."""
    first = later = exact = np.zeros(0, np.uint64)
    if corpus.compares_documents:
        round_ = read_json(corpus.work / "edges" / "joined.json")["round"]
        edges = np.unique(_edges(corpus, layout, round_, part)[:, :2], axis=0)
        first, later = edges[:, 0], edges[:, 1]
        found = _edges(corpus, layout, 0, part)
        exact = np.unique(found[found[:, 2] == EXACT, 1])
    left: Counter[str] = Counter()
    dropped = 0
    for unit in layout.units_of(part):
        mine = later >> np.uint64(UNIT_BITS) == unit
        same = np.isin(later[mine], exact).tolist()
        decided = {
            number & _LOW: [f"Duplicates/{'exact' if e else 'near'}", start]
            for number, start, e in zip(
                later[mine].tolist(), first[mine].tolist(), same, strict=True
            )
        }
        rows = sizes(corpus, unit)
        for number, (size, group) in enumerate(zip(rows["sizes"], rows["groups"], strict=True)):
            if number not in decided:
                left[group] += size
        if decided:
            write_decisions(corpus, layout, "dropped", unit, decided)
            dropped += len(decided)
    # A group is counted where its smallest number is.
    _, members = np.unique(first[owners(first, layout) == part], return_counts=True)
    histogram = Counter(str(size + 1) for size in members.tolist())
    write_json(corpus.work / "left" / f"{part:05d}.json", {"left": left, "groups": histogram})
    return {"documents": dropped}


def _edge_folder(corpus: Corpus, round_: int) -> Path:
    return corpus.work / "edges" / str(round_)


def _send_edges(corpus: Corpus, layout: Layout, round_: int, sender: int, rows: np.ndarray) -> None:
    """To the owners of both ends; once, if that is the same."""
    one, other = owners(rows[:, 0], layout), owners(rows[:, 1], layout)
    apart = one != other
    receivers = np.concatenate([one, other[apart]])
    file = _edge_folder(corpus, round_) / f"{sender:05d}"
    send(file, receivers, np.concatenate([rows, rows[apart]]), layout.parts)


def _edges(corpus: Corpus, layout: Layout, round_: int, part: int) -> np.ndarray:
    files = [_edge_folder(corpus, round_) / f"{sender:05d}" for sender in range(layout.parts)]
    return receive(files, part, layout.parts, 2 if round_ else 3)


# ------------------------------------------------------------------------------------------- lines


def line_keys(corpus: Corpus, layout: Layout, unit: int) -> Counts:
    """work/lines: (key, document << 16 | line) of the lines of a unit's documents that are left."""
    keys, numbers = [], []
    for number, document, decided in read_documents(corpus, layout, unit):
        if "dropped" in decided:
            continue
        for line, text in enumerate(document["text"].split("\n")[: 1 << LINE_BITS]):
            if text.strip() and len(text) >= corpus.duplicates.min_line_characters:
                keys.append(line_key(text))
                numbers.append((unit << UNIT_BITS | number) << LINE_BITS | line)
    rows = np.array([keys, numbers], np.uint64).T
    part = (rows[:, 0] % np.uint64(layout.parts)).astype(np.int64)
    send(corpus.work / "lines" / f"{unit:05d}.keys", part, rows, layout.parts)
    return {"keys": len(keys)}


def find_lines(corpus: Corpus, layout: Layout, part: int) -> Counts:
    """work/lines: the numbers of lines that stood before, for their units' owners."""
    files = [corpus.work / "lines" / f"{unit:05d}.keys" for unit in range(layout.units)]
    rows = receive(files, part, layout.parts, 2)
    _, later = repeats(rows[:, 0], rows[:, 1])
    receivers = owners(later >> np.uint64(LINE_BITS), layout)
    send(corpus.work / "lines" / f"{part:05d}.later", receivers, later[:, None], layout.parts)
    return {"lines": len(later)}


def decide_lines(corpus: Corpus, layout: Layout, part: int) -> Counts:
    files = [corpus.work / "lines" / f"{p:05d}.later" for p in range(layout.parts)]
    later = np.sort(receive(files, part, layout.parts, 1)[:, 0])
    for unit in layout.units_of(part):
        decided: dict[int, list[int]] = {}
        mine = later >> np.uint64(UNIT_BITS + LINE_BITS) == unit
        for value in later[mine].tolist():
            number, line = value >> LINE_BITS & _LOW, value & ((1 << LINE_BITS) - 1)
            decided.setdefault(number, []).append(line)
        if decided:
            write_decisions(corpus, layout, "lines", unit, decided)
    write_json(corpus.work / "lines" / f"{part:05d}.json", {"lines": len(later)})
    return {"lines": len(later)}


# -------------------------------------------------------------------------------------- substrings


def decide_substrings(corpus: Corpus, layout: Layout) -> dict:
    """Writes the spans that go; all text is looked at together, on this machine."""
    places, texts, total = [], [], 0
    for unit in range(layout.units):
        rows = sorted(read_documents(corpus, layout, unit), key=lambda row: row[0])
        for number, document, decided in rows:
            if "dropped" not in decided:
                text = without_lines(document["text"], decided.get("lines", []))
                places.append((unit, number))
                texts.append(text.encode(errors="replace"))
                total += len(texts[-1])
                if total > corpus.duplicates.max_substring_bytes:
                    raise UserError(
                        f"Duplicates.substrings looks at all text at once and there is more than "
                        f"max_substring_bytes = {corpus.duplicates.max_substring_bytes:,} bytes of "
                        "it; raise that (40 bytes of memory each) or set substrings = None."
                    )
    spans: dict[int, dict[int, list]] = {}
    found = repeated_spans(texts, corpus.duplicates.substrings)
    for (unit, number), chosen in zip(places, found, strict=True):
        if chosen:
            spans.setdefault(unit, {})[number] = chosen
    for unit, decided in spans.items():
        write_decisions(corpus, layout, "spans", unit, decided)
    return {"units": len(spans)}
