"""What is done with one unit and one shard: plain functions that Beam calls.

Each writes its files whole or not at all and depends on its arguments only, so a runner may call
it again, anywhere. It returns what it counted, for the runner's counters.
"""

import contextlib
import gzip
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from t5x_lite.corpus import dataset
from t5x_lite.corpus.apart import batches
from t5x_lite.corpus.duplicates import without_spans
from t5x_lite.corpus.exchange import send
from t5x_lite.corpus.mixing import number_of_copies
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.steps import Document
from t5x_lite.corpus.store import (
    BucketWriter,
    Layout,
    bucket_of,
    read_json,
    read_rows,
    whole_file,
    write_json,
)
from t5x_lite.corpus.tally import Tally
from t5x_lite.corpus.text import count_sentences

UNIT_BITS = 28  # a document is unit << UNIT_BITS | its number in the unit
Counts = dict[str, int]


# -------------------------------------------------------------------------------------------- clean


def clean_unit(
    corpus: Corpus, layout: Layout, unit: int, files: list[tuple[str, str, str]]
) -> Counts:
    """Reads (source, path, name) files, takes the steps, and writes work/clean/UNIT.*.

    Its documents (.zst), their sizes, groups and buckets (.sizes.json), their keys if duplicates
    are looked for (.keys), and last, as the sign that it is done, what was counted (.json).
    """
    folder = corpus.work / "clean"
    if (folder / f"{unit:05d}.json").exists():
        return {}
    writer = BucketWriter(documents_file(corpus, unit), layout.buckets)
    tally, problems = Tally(), Problems()
    kept: dict[str, list] = {"sizes": [], "groups": [], "buckets": []}
    keys: list[np.ndarray] = []
    milliseconds = 0
    with dropped_file(corpus, f"clean-{unit:05d}") as drop:
        for source, path, name in files:
            tally.add("input", "files")
            tally.add("input", "file bytes", _size(path))
            for batch in batches(corpus, source, path, name):
                tally.merge(Tally(**batch.tally))
                problems.merge(*batch.problems)
                milliseconds += batch.milliseconds
                for document, reason in batch.dropped:
                    drop(document, reason)
                for document, its_keys in batch.kept:
                    text = document["text"]
                    bucket, _ = bucket_of(text, layout.buckets)
                    writer.write(bucket, len(kept["sizes"]), document)
                    kept["sizes"].append(len(text.encode(errors="replace")))
                    kept["groups"].append(document[corpus.mix.by] if corpus.mix else "")
                    kept["buckets"].append(bucket)
                    if its_keys is not None:
                        keys.append(its_keys)
    for kind, number in problems.counts.items():
        tally.add("not read", kind, number)
    writer.close()
    write_json(folder / f"{unit:05d}.sizes.json", kept)
    if corpus.compares_documents:
        send_keys(corpus, layout, unit, keys)
    found = tally.as_dict()
    write_json(folder / f"{unit:05d}.json", {"tally": found, "problems": problems.examples})
    rows = found["tables"].get("input", {})
    counted = {"documents": rows.get("documents", 0), "bytes": rows.get("bytes", 0)}
    return counted | ({"milliseconds": milliseconds} if corpus.max_seconds is not None else {})


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # it is gone; the reader says so
        return 0


@contextlib.contextmanager
def dropped_file(corpus: Corpus, name: str) -> Iterator[Callable[[Document, str], None]]:
    """A function that writes a dropped document with its reason, if they are to be kept."""
    if not corpus.keep_dropped:
        yield lambda document, reason: None
        return
    path = corpus.work / "dataset" / "dropped" / f"{name}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:

        def write(document: Document, reason: str) -> None:
            row = {key: document[key] for key in dataset.TEXTS} | {"reason": reason}
            line = json.dumps(row, ensure_ascii=False)
            file.write(line.encode("utf-8", errors="replace") + b"\n")

        yield write


def send_keys(corpus: Corpus, layout: Layout, unit: int, keys: list[np.ndarray]) -> None:
    """To the task of each part, column by column: (key, number) of a unit's documents."""
    columns = len(corpus.duplicates.names)
    flat = np.array(keys, np.uint64).reshape(-1, columns).ravel()
    numbers = np.arange(len(keys), dtype=np.uint64) + np.uint64(unit << UNIT_BITS)
    part = (flat % np.uint64(layout.parts)).astype(np.int64)
    receivers = part * columns + np.tile(np.arange(columns), len(keys))
    rows = np.stack([flat, np.repeat(numbers, columns)], 1)
    file = corpus.work / "clean" / f"{unit:05d}.keys"
    send(file, receivers, rows, columns * layout.parts)


def documents_file(corpus: Corpus, unit: int) -> Path:
    return corpus.work / "clean" / f"{unit:05d}.zst"


# -------------------------------------------------------------------------------------- decisions

# {kind: what it says about a document}, each in files of its own as they are made one by one.
DECISIONS = ("dropped", "lines", "spans")


def write_decisions(
    corpus: Corpus, layout: Layout, kind: str, unit: int, decided: dict[int, list]
) -> None:
    """decided: {number in the unit: [reason, number that stays], lines, or spans}."""
    buckets = sizes(corpus, unit)["buckets"]
    file = BucketWriter(corpus.work / "decisions" / f"{unit:05d}.{kind}", layout.buckets)
    for number, value in sorted(decided.items()):
        file.write(buckets[number], number, value)
    file.close()


def read_documents(
    corpus: Corpus, layout: Layout, unit: int, buckets: range | None = None
) -> Iterator[tuple[int, Document, dict[str, list]]]:
    """(number in the unit, document, {kind: decision}), bucket by bucket."""
    chosen = range(layout.buckets) if buckets is None else buckets
    decided: dict[int, dict[str, list]] = {}
    for kind in DECISIONS:
        file = corpus.work / "decisions" / f"{unit:05d}.{kind}"
        for number, value in read_rows(file, chosen, layout.buckets):
            decided.setdefault(number, {})[kind] = value
    for number, document in read_rows(documents_file(corpus, unit), chosen, layout.buckets):
        yield number, document, decided.get(number, {})


def sizes(corpus: Corpus, unit: int) -> dict[str, list]:
    """{"sizes": bytes, "groups": of the mix, "buckets"} of a unit's documents."""
    return read_json(corpus.work / "clean" / f"{unit:05d}.sizes.json")


def without_lines(text: str, lines: list[int]) -> str:
    if not lines:
        return text
    gone = set(lines)
    return "\n".join(t for i, t in enumerate(text.split("\n")) if i not in gone).strip()


# -------------------------------------------------------------------------------------------- write


def write_shard(corpus: Corpus, layout: Layout, split: str, shard: int, shards: int) -> Counts:
    """Writes one file of the dataset: the documents of its range of buckets, in a hash's order."""
    index = corpus.work / "shards" / f"{split}-{shard:05d}.json"
    if index.exists():
        return {}
    tally, rows = Tally(), []
    copies = read_json(corpus.work / "mix.json")
    begin, stop = (-(-s * layout.buckets // shards) for s in (shard, shard + 1))
    with dropped_file(corpus, f"{split}-{shard:05d}") as drop:
        for unit in range(layout.units):
            for _, document, decided in read_documents(corpus, layout, unit, range(begin, stop)):
                _, position = bucket_of(document["text"], layout.buckets)
                if (position < corpus.held_out) != (split == "validation"):
                    continue
                reason = finish(corpus, document, decided, tally)
                if reason is None:
                    times = _times(corpus, document, copies, position)
                    tally.add("copies by the mix", str(times))
                    rows += [(position, copy, document) for copy in range(times)]
                else:
                    drop(document, reason)
    rows.sort(key=lambda row: (row[1], row[0], row[2]["id"]))  # copies stand apart
    path = corpus.work / "dataset" / dataset.file_name(corpus.name, split, shard, shards)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    number_bytes = dataset.write_file(temporary, (_record(row) for row in rows), corpus.scores)
    os.replace(temporary, path)
    for _, _, document in rows:
        tally.kept(document)
    tally.add("split: documents", split, len(rows))
    write_json(index, {"records": len(rows), "bytes": number_bytes, "tally": tally.as_dict()})
    return {"documents": len(rows), "bytes": number_bytes}


def finish(
    corpus: Corpus, document: Document, decided: dict[str, list], tally: Tally
) -> str | None:
    """Applies what was decided about duplicates to one document; the reason if it goes."""
    if "dropped" in decided:
        reason, first = decided["dropped"]
        place = f"kept: unit {first >> UNIT_BITS} document {first & ((1 << UNIT_BITS) - 1)}"
        tally.add("dropped documents", reason)
        tally.add("dropped bytes", reason, len(document["text"].encode(errors="replace")))
        tally.sample(reason, document["id"], document["text"], f"{document['url']} {place}")
        return reason
    lines, spans = decided.get("lines", []), decided.get("spans", [])
    if not lines and not spans:
        return None
    before = document["text"]
    text = without_lines(before, lines)
    tally.add("lines removed", "Duplicates/lines", len(lines))
    if spans:
        data = text.encode(errors="replace")
        text = without_spans(data, spans).strip()
        removed = sum(stop - begin for begin, stop in spans)
        tally.add("bytes removed", "Duplicates/substrings", removed)
    document["text"] = text
    few = bool(lines) and count_sentences(text) < corpus.duplicates.min_sentences
    if few or not text:
        document["text"] = before
        tally.dropped(document, "Duplicates/little_left")
        return "Duplicates/little_left"
    return None


def _times(corpus: Corpus, document: Document, copies: dict, position: float) -> int:
    if corpus.mix is None:
        return 1
    # Another part of the hash than the split's, so that both splits are thinned alike.
    other = position * 2**20 % 1.0
    return number_of_copies(copies.get(document[corpus.mix.by], 0.0), other)


def _record(row: tuple[float, int, Document]) -> Document:
    _, copy, document = row
    return document | {"id": f"{document['id']}-{copy}"} if copy else document
