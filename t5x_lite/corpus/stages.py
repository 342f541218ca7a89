"""What is done with one unit, one set of keys and one shard: plain functions that Beam calls.

Each writes its files whole or not at all and depends on its arguments only, so a runner may call
it again, anywhere.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from t5x_lite.corpus import dataset
from t5x_lite.corpus.duplicates import (
    groups,
    line_key,
    repeated_spans,
    repeats,
    without_spans,
)
from t5x_lite.corpus.mixing import number_of_copies
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.steps import Document
from t5x_lite.corpus.store import BUCKETS, UnitWriter, bucket_of, read_unit, write_json
from t5x_lite.corpus.tally import Tally
from t5x_lite.corpus.text import count_sentences
from t5x_lite.errors import UserError

UNIT_BITS, LINE_BITS = 28, 16
Keys = tuple[np.ndarray, np.ndarray]  # keys and numbers, uint64 each, of the same length


# -------------------------------------------------------------------------------------------- clean


def clean_unit(corpus: Corpus, unit: int, files: list[tuple[str, str, str]]) -> None:
    """Reads (source, path, name) files, takes the steps, and writes work/clean/UNIT.*."""
    folder = corpus.work / "clean"
    if (folder / f"{unit:05d}.json").exists():
        return
    writer, tally, problems = UnitWriter(folder, unit), Tally(), Problems()
    sizes: list[int] = []
    names: list[str] = []
    for source, path, name in files:
        tally.add("input", "files")
        tally.add("input", "file bytes", os.path.getsize(path))
        for document in corpus.reader.read(path, name, source, problems):
            if clean(corpus, document, tally):
                sizes.append(len(document["text"].encode(errors="replace")))
                names.append(document[corpus.mix.by] if corpus.mix else "")
                writer.write(document)
    for kind, number in problems.counts.items():
        tally.add("not read", kind, number)
    writer.close({
        "tally": tally.as_dict(), "problems": problems.examples, "sizes": sizes, "groups": names,
    })  # fmt: skip


def clean(corpus: Corpus, document: Document, tally: Tally) -> bool:
    """Takes all steps with a document; False if one drops it. Everything is counted."""
    size = len(document["text"].encode(errors="replace"))
    tally.add("input", "documents")
    tally.add("input", "bytes", size)
    tally.add("input by source: documents", document["source"])
    tally.add("input by source: bytes", document["source"], size)
    for step in corpus.steps:
        before = document["text"]
        reason = step(document)
        if reason is None and not document["text"]:
            reason = f"{type(step).__name__}/nothing_left"
        if reason is not None:
            tally.dropped(document | {"text": document["text"] or before}, reason)
            return False
    if not document["text"].strip():
        tally.dropped(document, "empty")
        return False
    for name, number in document.pop("counts", {}).items():
        table, _, row = name.partition(": ")
        tally.add(table, row or "documents", number)
    return True


# --------------------------------------------------------------------------------------- duplicates


def unit_keys(corpus: Corpus, unit: int) -> Iterator[tuple[tuple[int, int], Keys]]:
    """((column, partition), keys and numbers) of a unit's documents."""
    rows = list(read_unit(corpus.work / "clean", unit))
    if not rows:
        return
    numbers = np.array([unit << UNIT_BITS | number for number, _ in rows], np.uint64)
    keys = np.stack([corpus.duplicates.keys(document["text"]) for _, document in rows])
    for column in range(keys.shape[1]):
        yield from _partitioned(corpus, column, keys[:, column], numbers)


def unit_line_keys(corpus: Corpus, unit: int) -> Iterator[tuple[tuple[int, int], Keys]]:
    """The same for the lines of the documents that are left; a number is document << 16 | line."""
    gone = decisions(corpus, unit)["dropped"]
    keys, numbers = [], []
    for number, document in read_unit(corpus.work / "clean", unit):
        if str(number) in gone:
            continue
        for line, text in enumerate(document["text"].split("\n")[: 1 << LINE_BITS]):
            if text.strip() and len(text) >= corpus.duplicates.min_line_characters:
                keys.append(line_key(text))
                numbers.append((unit << UNIT_BITS | number) << LINE_BITS | line)
    arrays = np.array(keys, np.uint64), np.array(numbers, np.uint64)
    yield from _partitioned(corpus, 0, *arrays)


def _partitioned(corpus: Corpus, column: int, keys: np.ndarray, numbers: np.ndarray):
    part = keys % np.uint64(corpus.partitions)
    for p in range(corpus.partitions):
        chosen = part == p
        if chosen.any():
            yield (column, p), (keys[chosen], numbers[chosen])


def find_repeats(parts: Iterable[Keys]) -> np.ndarray:
    """uint64 [n, 2]: pairs (first, later) of numbers that share a key."""
    keys, numbers = zip(*parts, strict=True)
    return np.stack(repeats(np.concatenate(keys), np.concatenate(numbers)), 1)


def decide_documents(corpus: Corpus, pairs: Iterable[tuple[int, np.ndarray]], units: int) -> None:
    """Joins the pairs of all columns to groups, and writes what goes to work/decisions."""
    by_column = list(pairs)
    exact_column = 0 if corpus.duplicates.exact else -1
    empty = np.zeros((0, 2), np.uint64)
    exact = {
        number
        for column, found in by_column
        if column == exact_column
        for number in found[:, 1].tolist()
    }
    found = np.concatenate([empty, *(f for _, f in sorted(by_column, key=lambda x: x[0]))])
    numbers, smallest = groups(found[:, 0], found[:, 1])
    dropped: list[dict[str, list]] = [{} for _ in range(units)]
    sizes: Counter[int] = Counter()
    for number, first in zip(numbers.tolist(), smallest.tolist(), strict=True):
        sizes[first] += 1
        if number != first:
            reason = "exact" if number in exact else "near"
            unit = number >> UNIT_BITS
            dropped[unit][str(number & ((1 << UNIT_BITS) - 1))] = [f"Duplicates/{reason}", first]
    for unit, gone in enumerate(dropped):
        write_json(_decision_file(corpus, unit), {"dropped": gone, "lines": {}, "spans": {}})
    histogram = Counter(str(size) for size in sizes.values())
    write_json(corpus.work / "groups.json", histogram)


def decide_lines(corpus: Corpus, pairs: Iterable[tuple[int, np.ndarray]], units: int) -> None:
    """Adds the lines that go to work/decisions."""
    lines: list[dict[str, list[int]]] = [{} for _ in range(units)]
    for _, found in pairs:
        for value in np.sort(found[:, 1]).tolist():
            number, line = value >> LINE_BITS, value & ((1 << LINE_BITS) - 1)
            inner = str(number & ((1 << UNIT_BITS) - 1))
            lines[number >> UNIT_BITS].setdefault(inner, []).append(line)
    for unit, chosen in enumerate(lines):
        chosen = {number: sorted(found) for number, found in chosen.items()}
        write_json(_decision_file(corpus, unit), decisions(corpus, unit) | {"lines": chosen})


def decide_substrings(corpus: Corpus, units: int) -> None:
    """Adds the spans that go; all text is looked at together, on this machine."""
    places, texts, total = [], [], 0
    for unit in range(units):
        decided = decisions(corpus, unit)
        for number, document in read_unit(corpus.work / "clean", unit):
            if str(number) not in decided["dropped"]:
                text = _without_lines(document["text"], decided["lines"].get(str(number), []))
                places.append((unit, number))
                texts.append(text.encode(errors="replace"))
                total += len(texts[-1])
                if total > corpus.duplicates.max_substring_bytes:
                    raise UserError(
                        f"Duplicates.substrings looks at all text at once and there is more than "
                        f"max_substring_bytes = {corpus.duplicates.max_substring_bytes:,} bytes of "
                        "it; raise that (40 bytes of memory each) or set substrings = None."
                    )
    spans: list[dict[str, list]] = [{} for _ in range(units)]
    found = repeated_spans(texts, corpus.duplicates.substrings)
    for (unit, number), chosen in zip(places, found, strict=True):
        if chosen:
            spans[unit][str(number)] = chosen
    for unit in range(units):
        write_json(_decision_file(corpus, unit), decisions(corpus, unit) | {"spans": spans[unit]})


def _decision_file(corpus: Corpus, unit: int) -> Path:
    return corpus.work / "decisions" / f"{unit:05d}.json"


def decisions(corpus: Corpus, unit: int) -> dict:
    """{"dropped": {number: [reason, first]}, "lines": {number: lines}, "spans": ...} of a unit."""
    file = _decision_file(corpus, unit)
    if not file.exists():
        return {"dropped": {}, "lines": {}, "spans": {}}
    return json.loads(file.read_bytes())


def _without_lines(text: str, lines: list[int]) -> str:
    if not lines:
        return text
    gone = set(lines)
    return "\n".join(t for i, t in enumerate(text.split("\n")) if i not in gone).strip()


# -------------------------------------------------------------------------------------------- write


def write_shard(corpus: Corpus, split: str, shard: int, shards: int, units: int) -> None:
    """Writes one file of the dataset: the documents of its range of buckets, in a hash's order."""
    index = corpus.work / "shards" / f"{split}-{shard:05d}.json"
    if index.exists():
        return
    tally, rows = Tally(), []
    copies = json.loads((corpus.work / "mix.json").read_bytes())
    begin, stop = -(-shard * BUCKETS // shards), -(-(shard + 1) * BUCKETS // shards)
    for unit in range(units):
        decided = decisions(corpus, unit)
        for number, document in read_unit(corpus.work / "clean", unit, range(begin, stop)):
            position = bucket_of(document["text"])[1]
            if (position < corpus.held_out) != (split == "validation"):
                continue
            if finish(corpus, document, str(number), decided, tally):
                times = _times(corpus, document, copies, position)
                tally.add("copies by the mix", str(times))
                rows += [(position, copy, document) for copy in range(times)]
    rows.sort(key=lambda row: (row[1], row[0], row[2]["id"]))  # copies stand apart
    path = corpus.work / "dataset" / dataset.file_name(corpus.name, split, shard, shards)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    number_bytes = dataset.write_file(temporary, (_record(row) for row in rows), corpus.scores)
    os.replace(temporary, path)
    for _, _, document in rows:
        tally.kept(document)
    tally.add("split: documents", split, len(rows))
    write_json(index, {"records": len(rows), "bytes": number_bytes, "tally": tally.as_dict()})


def finish(corpus: Corpus, document: Document, number: str, decided: dict, tally: Tally) -> bool:
    """Applies what was decided about duplicates to one document; False if it goes."""
    if number in decided["dropped"]:
        reason, first = decided["dropped"][number]
        place = f"kept: unit {first >> UNIT_BITS} document {first & ((1 << UNIT_BITS) - 1)}"
        tally.add("dropped documents", reason)
        tally.add("dropped bytes", reason, len(document["text"].encode(errors="replace")))
        tally.sample(reason, document["id"], document["text"], f"{document['url']} {place}")
        return False
    lines, spans = decided["lines"].get(number, []), decided["spans"].get(number, [])
    if not lines and not spans:
        return True
    before = document["text"]
    text = _without_lines(before, lines)
    tally.add("lines removed", "Duplicates/lines", len(lines))
    if spans:
        data = text.encode(errors="replace")
        text = without_spans(data, spans).strip()
        removed = sum(stop - begin for begin, stop in spans)
        tally.add("bytes removed", "Duplicates/substrings", removed)
    document["text"] = text
    few = bool(lines) and count_sentences(text) < corpus.duplicates.min_sentences
    if few or not text:
        tally.dropped(document | {"text": before}, "Duplicates/little_left")
        return False
    return True


def _times(corpus: Corpus, document: Document, copies: dict, position: float) -> int:
    if corpus.mix is None:
        return 1
    # Another part of the hash than the split's, so that both splits are thinned alike.
    other = position * 2**20 % 1.0
    return number_of_copies(copies.get(document[corpus.mix.by], 0.0), other)


def _record(row: tuple[float, int, Document]) -> Document:
    _, copy, document = row
    return document | {"id": f"{document['id']}-{copy}"} if copy else document
