"""What `t5x_lite data` shows, as text and as a page: sections of labelled lines."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5x_lite.data.loader import BatchLoader
from t5x_lite.data.streams import TaskReader
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.page import document, escape

Line = tuple[str, str]
Section = tuple[str, list[Line]]

_SHOWN = 600  # characters of a text
_SAMPLE = 200  # documents whose tokens are counted
_ROWS = 64  # rows, at least, whose padding is counted
_TOKEN_FEATURES = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens",
                   "encoder_target_tokens")  # fmt: skip


def sections(
    task: Task | Mixture,
    *,
    lengths: Mapping[str, int],
    architecture: str,
    batch_size: int,
    pack: bool | str,
    seed: int,
    records: int,
) -> list[Section]:
    """Sources; for each task some records, stage by stage; the rows that the model gets."""
    found = [("Sources", list(_sources(task)))]
    for leaf, share in task.leaves:
        reader = TaskReader(leaf, "train", seed, lengths)
        title = f"Task {leaf.name}" + (f", {share:.1%} of the examples" if share < 1 else "")
        found.append((title, list(_task(leaf, reader, records))))
        for number in range(min(records, len(reader.records))):
            found.append((f"{leaf.name}: record {number}", list(_stages(leaf, reader, number))))
    loader = BatchLoader(
        task, lengths=lengths, batch_size=batch_size, seed=seed, architecture=architecture,
        pack=pack, num_workers=0,
    )  # fmt: skip
    features = [next(loader).features for _ in range(max(1, -(-_ROWS // batch_size)))]
    batch = {name: np.concatenate([f[name] for f in features]) for name in features[0]}
    found.append(("Rows", list(_packing(batch, loader.feature_lengths, pack))))
    found.append(("First row of the first batch", list(_row(batch, task.vocabulary))))
    return found


def _sources(task: Task | Mixture) -> Iterator[Line]:
    for leaf, _ in task.leaves:
        described = leaf.source.describe()
        splits = ", ".join(f"{name} {n:,}" for name, n in described["splits"].items())
        lines = [
            f"{described['kind']}: {described['files']:,} files, {described['records']:,} records, "
            f"{_size(described['bytes'])}",
            f"splits: {splits}",
            f"fingerprint: {leaf.source.fingerprint}",
        ]
        if described.get("bad_records"):
            lines.append(f"left out: {described['bad_records']:,} bad records")
            lines += [f"  {message}" for message in getattr(leaf.source, "bad_messages", [])]
        yield leaf.name, "\n".join(lines)


def _task(task: Task, reader: TaskReader, records: int) -> Iterator[Line]:
    yield "objective", repr(task.objective)
    yield "preprocessors", "\n".join(task.steps) or "none"
    vocabulary = task.vocabulary
    yield (
        "vocabulary",
        f"{type(vocabulary).__name__}, {vocabulary.size:,} ids, {vocabulary.num_sentinels} of them "
        f"sentinels, fingerprint {vocabulary.fingerprint}",
    )
    documents = [reader.document(draw) for draw in range(min(_SAMPLE, len(reader.records)))]
    parts: Any = documents if reader.segment_length is not None else None
    names = ["text"] if parts else sorted({key for document in documents for key in document})
    for name in names:
        tokens = parts or [document[name] for document in documents if name in document]
        sizes = np.array([len(t) for t in tokens])
        text = sum(int(vocabulary.byte_lengths[t].sum()) for t in tokens)
        yield (
            f"tokens of {name}",
            f"mean {sizes.mean():,.1f}, median {np.median(sizes):,.0f}, 90% below "
            f"{np.percentile(sizes, 90):,.0f}, most {sizes.max():,}; "
            f"{text / max(sizes.sum(), 1):.2f} bytes per token "
            f"({len(sizes)} documents, {(sizes == 0).sum()} of them empty)",
        )
    if reader.segment_length is not None:
        yield "tokens of an example", f"{reader.segment_length:,}, of one or more documents"


def _stages(task: Task, reader: TaskReader, draw: int) -> Iterator[Line]:
    vocabulary, index = task.vocabulary, reader.index(draw)
    record = reader.records[index]
    yield "record", _record(record, vocabulary)
    for number, (name, function) in enumerate(zip(task.steps, task.preprocessors, strict=True)):
        if task.source.tokenized:
            break
        record = function(record)
        yield f"after {number + 1}. {name}", "dropped" if record is None else _record(record, None)
        if record is None:
            return
    tokens = reader.document(draw)
    if isinstance(tokens, dict):
        for name, ids in tokens.items():
            yield f"tokens of {name}", _tokens(ids, vocabulary)
        example = reader.example(tokens, draw, 0) if tokens else {}
    else:
        yield "tokens", _tokens(tokens, vocabulary)
        # Training joins documents until an example is full; by itself this one makes:
        segment = tokens[: reader.segment_length]
        example = reader.example(segment, draw, 0) if len(segment) else {}
    for name, ids in example.items():
        yield f"{name}, {len(ids):,} tokens", _shown(vocabulary.decode(ids))


def _record(record: Mapping[str, Any], vocabulary: Vocabulary | None) -> str:
    lines = []
    for key, value in record.items():
        if isinstance(value, np.ndarray) and vocabulary is not None:
            value = f"{len(value):,} ids: {vocabulary.decode(value)}"
        lines.append(f"{key}: {_shown(value if isinstance(value, str) else repr(value))}")
    return "\n".join(lines)


def _tokens(ids: np.ndarray, vocabulary: Vocabulary, shown: int = 40) -> str:
    pieces = "|".join(vocabulary.decode([i]) for i in ids[:shown].tolist())
    return f"{len(ids):,}: {pieces}" + ("|..." if len(ids) > shown else "")


def _packing(
    batch: dict[str, np.ndarray], lengths: Mapping[str, int], pack: bool | str
) -> Iterator[Line]:
    rows = len(next(iter(batch.values())))
    yield "lengths", ", ".join(f"{name} {length:,}" for name, length in lengths.items())
    for name in _TOKEN_FEATURES:
        if name not in batch or name == "decoder_input_tokens":
            continue
        padding = (batch[name] == 0).mean()
        word = "packing waste" if pack else "padding"
        yield name, f"{padding:.2%} {word} in {rows} rows"
    for name in ("decoder_segment_ids", "encoder_segment_ids"):
        if name in batch:
            counts = batch[name].max(axis=1)
            yield f"examples per row ({name})", f"mean {counts.mean():.2f}, most {counts.max()}"


def _row(batch: dict[str, np.ndarray], vocabulary: Vocabulary) -> Iterator[Line]:
    for name, values in batch.items():
        row = values[0]
        if name in _TOKEN_FEATURES:
            yield name, _shown(vocabulary.decode(row), 2 * _SHOWN)
        else:
            yield name, _shown(" ".join(map(str, row.tolist())), 200)


def _shown(text: str, limit: int = _SHOWN) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def _size(size: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


# ---- the two forms


def as_text(found: list[Section]) -> str:
    """For a terminal: control characters are shown, not sent."""
    lines = []
    for title, rows in found:
        lines += ["", f"== {title} =="]
        for label, value in rows:
            first, *rest = _printable(value).split("\n")
            lines += [f"{label}: {first}", *(f"    {line}" for line in rest)]
    return "\n".join(lines).lstrip("\n")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


_STYLE = "td:first-child { font-weight: 600; width: 1% }"


def as_html(title: str, found: list[Section]) -> str:
    """One page without scripts or links; all text is escaped."""
    parts = []
    for heading, rows in found:
        cells = "\n".join(
            f"<tr><td>{escape(label)}</td><td><pre>{escape(value)}</pre></td></tr>"
            for label, value in rows
        )
        parts.append(f"<h2>{escape(heading)}</h2>\n<table>\n{cells}\n</table>")
    return document(title, "\n".join(parts), style=_STYLE)
