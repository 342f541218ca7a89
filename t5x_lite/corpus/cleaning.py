"""Documents of one file, cleaned: what is kept of them, and what is counted."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from t5x_lite.corpus.code_languages import is_code
from t5x_lite.corpus.opening import Problems
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.steps import Document
from t5x_lite.corpus.tally import Tally
from t5x_lite.errors import UserError

_BATCH_BYTES = 1 << 20


@dataclasses.dataclass
class Batch:
    """Some items of a file, up to and with the one at `position`.

    kept: (document, its keys if duplicates are looked for). dropped: (document, reason), if they
    are asked for. tally, problems: of these items. milliseconds: of processor time.
    """

    position: int
    kept: list[tuple[Document, np.ndarray | None]]
    dropped: list[tuple[Document, str]]
    tally: dict[str, Any]
    problems: tuple[dict[str, int], dict[str, list[str]]]
    milliseconds: int = 0

    @classmethod
    def of(cls, position: int, problems: Problems) -> "Batch":
        return cls(position, [], [], {}, problems.take())


def clean_file(
    corpus: Corpus, source: str, path: str, name: str, start: int = 0, several: int = 64,
    before_each: Callable[[], None] = lambda: None,
) -> Iterator[Batch]:  # fmt: skip
    """Reads a file from item `start` on and takes the steps; batches of at most `several` items.

    before_each: called before each item is read.
    """
    position, problems, tally, kept, dropped = start - 1, Problems(), Tally(), [], []
    items = size = 0
    began = time.process_time()

    def batch() -> Batch:
        nonlocal began
        now = time.process_time()
        took, began = now - began, now
        counted = problems.take()
        return Batch(position, kept, dropped, tally.as_dict(), counted, round(1000 * took))

    before_each()
    for item in corpus.reader.items(path, name, source, problems, start):
        position, document = item
        items += 1
        if document is not None:
            size += len(document["text"])
            reason = clean(corpus, document, tally)
            if reason is None:
                keys = None
                if corpus.compares_documents:
                    keys = corpus.duplicates.keys(document["text"], is_code(document))
                document.pop("code", None)
                kept.append((document, keys))
            elif corpus.keep_dropped:
                dropped.append((document, reason))
        if items >= several or size > _BATCH_BYTES:
            yield batch()
            tally, kept, dropped = Tally(), [], []
            items = size = 0
        before_each()
    yield batch()


def clean(corpus: Corpus, document: Document, tally: Tally) -> str | None:
    """Takes all steps with a document; returns why it was dropped, if it was.

    Everything is counted. An error of a step drops the document; UserError, which is about the
    settings, is raised.
    """
    size = len(document["text"].encode(errors="replace"))
    tally.add("input", "documents")
    tally.add("input", "bytes", size)
    tally.add("input by source: documents", document["source"])
    tally.add("input by source: bytes", document["source"], size)
    for step in corpus.steps:
        before = document["text"]
        try:
            reason = step(document)
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(step).__name__}/error: {type(error).__name__}"
        if reason is None and not document["text"]:
            reason = f"{type(step).__name__}/nothing_left"
        if reason is not None:
            document["text"] = document["text"] or before
            break
    else:
        reason = None if document["text"].strip() else "empty"
    if reason is not None:
        tally.dropped(document, reason)
        return reason
    for name, number in document.pop("counts", {}).items():
        table, _, row = name.partition(": ")
        tally.add(table, row or "documents", number)
    return None
