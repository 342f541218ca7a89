"""Counts and samples of what happened to documents; sums of tallies don't depend on the order."""

import hashlib
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from t5x_lite.corpus.pii import mask
from t5x_lite.corpus.steps import Document
from t5x_lite.corpus.text import words

_SAMPLES, _EXCERPT, _DOMAINS = 5, 300, 1000


class Tally:
    """Nested counts {table: {row: number}} and, for each reason, a few samples.

    The samples are those with the smallest hashes, so the same whoever counted them.
    """

    def __init__(self, tables: dict | None = None, samples: dict | None = None):
        self.tables: dict[str, Counter] = {k: Counter(v) for k, v in (tables or {}).items()}
        self.samples: dict[str, list] = {k: list(map(list, v)) for k, v in (samples or {}).items()}

    def add(self, table: str, row: str, number: int = 1) -> None:
        self.tables.setdefault(table, Counter())[row] += number

    def sample(self, reason: str, key: str, text: str, note: str = "") -> None:
        digest = hashlib.blake2b(key.encode(errors="replace"), digest_size=8).hexdigest()
        kept = self.samples.setdefault(reason, [])
        if len(kept) < _SAMPLES or digest < kept[-1][0]:
            excerpt = text[:_EXCERPT] + ("..." if len(text) > _EXCERPT else "")
            kept.append([digest, mask(excerpt), mask(note)])
            kept.sort()
            del kept[_SAMPLES:]

    def dropped(self, document: Document, reason: str) -> None:
        self.add("dropped documents", reason)
        self.add("dropped bytes", reason, len(document["text"].encode(errors="replace")))
        self.sample(reason, document["id"], document["text"], document["url"])

    def kept(self, document: Document) -> None:
        """A document of the result, by source, language, host, licence and length."""
        size = len(document["text"].encode(errors="replace"))
        for table, row in (
            ("source", document["source"]),
            ("language", document["language"] or "unknown"),
            ("license", document["license"] or "unknown"),
        ):
            self.add(f"{table}: documents", row)
            self.add(f"{table}: bytes", row, size)
        self.add("domain: documents", urlsplit(document["url"]).hostname or "no address")
        self.add("length: documents", str(size.bit_length()))
        self.add("result", "documents")
        self.add("result", "bytes", size)
        self.add("result", "words", len(words(document["text"])))

    def merge(self, other: "Tally") -> None:
        for table, rows in other.tables.items():
            self.tables.setdefault(table, Counter()).update(rows)
        for reason, samples in other.samples.items():
            self.samples[reason] = sorted(self.samples.get(reason, []) + samples)[:_SAMPLES]

    def as_dict(self) -> dict[str, Any]:
        domains = self.tables.get("domain: documents", Counter())
        if len(domains) > _DOMAINS:  # a card needs no more; the rest is one row
            top = dict(sorted(domains.items(), key=lambda r: (-r[1], r[0]))[:_DOMAINS])
            top["others"] = top.get("others", 0) + sum(domains.values()) - sum(top.values())
            self.tables["domain: documents"] = Counter(top)
        return {"tables": {k: dict(v) for k, v in self.tables.items()}, "samples": self.samples}
