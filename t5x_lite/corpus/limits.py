"""Steps of no one paper: repair, limits of length, lists of words and hosts, contamination."""

import dataclasses
import functools
import re
from pathlib import Path
from urllib.parse import urlsplit

import gin

from t5x_lite.corpus.steps import Document, Filter, Step, count, rule
from t5x_lite.corpus.text import comparable, repair
from t5x_lite.errors import UserError


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Repair(Step):
    """Mends encodings and normalises Unicode: see `text.repair`. form: "NFC" or "NFKC"."""

    form: str = "NFC"

    def __call__(self, document: Document) -> str | None:
        text = repair(document["text"], self.form)
        count(document, "repaired", int(text != document["text"].strip()))
        document["text"] = text
        return None if text else "Repair/empty"


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Limits(Filter):
    """Length, and symbols against letters."""

    SOURCE = "ours"

    min_characters: int | None = rule(1, "short", "characters, at least")
    max_characters: int | None = rule(1_000_000, "long", "characters, at most")
    max_symbols: float | None = rule(None, "symbols", "share of visible characters, at most")

    def broken(self, text: str) -> str | None:
        if self.min_characters is not None and len(text) < self.min_characters:
            return "short"
        if self.max_characters is not None and len(text) > self.max_characters:
            return "long"
        if self.max_symbols is not None:
            visible = [c for c in text if not c.isspace()]
            symbols = sum(not c.isalnum() for c in visible)
            if symbols / max(len(visible), 1) > self.max_symbols:
                return "symbols"
        return None


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Blocklist(Step):
    """Drops pages of listed hosts, and texts with listed words.

    hosts, words: files with one entry a line; a host stands for its subdomains, too. max_words:
    how many listed words a text may have.
    """

    hosts: str | None = None
    words: str | None = None
    max_words: int = rule(0, "word", "listed words, at most")

    def __call__(self, document: Document) -> str | None:
        if self.hosts and document.get("url"):
            parts = (urlsplit(document["url"]).hostname or "").split(".")
            listed = _lines(self.hosts)
            if any(".".join(parts[i:]) in listed for i in range(len(parts))):
                return "Blocklist/host"
        if self.words:
            found = _any_of(self.words).findall(document["text"].lower())
            if len(found) > self.max_words:
                return "Blocklist/word"
        return None


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Decontaminate(Step):
    """Drops documents that share a run of words with evaluation data.

    files: of evaluation texts, an example a line. n: words in a run; 13 is GPT-3's (Brown et al.
    2020, appendix C). Shorter examples count as a whole. Addresses given as lines of `urls` are
    dropped, too.
    """

    SOURCE = "Brown et al. 2020, C"

    files: tuple[str, ...] = ()
    n: int = rule(13, "overlap", "words of a run in common")
    urls: str | None = None

    def __call__(self, document: Document) -> str | None:
        if self.urls and document.get("url", "").lower() in _lines(self.urls):
            return "Decontaminate/url"
        runs, shortest = _runs(self.files, self.n)
        found = comparable(document["text"]).split()
        for size in range(shortest, self.n + 1):
            if any(gram in runs for gram in zip(*(found[i:] for i in range(size)), strict=False)):
                return "Decontaminate/overlap"
        return None


@functools.lru_cache(maxsize=8)
def _runs(files: tuple[str, ...], n: int) -> tuple[frozenset, int]:
    runs, shortest = set(), n
    for file in files:
        for line in _read(file):
            example = comparable(line).split()
            if 0 < len(example) < n:
                shortest = min(shortest, max(len(example), 4))
                if len(example) >= 4:  # shorter ones are in everything
                    runs.add(tuple(example))
            runs.update(zip(*(example[i:] for i in range(n)), strict=False))
    return frozenset(runs), shortest


@functools.lru_cache(maxsize=8)
def _lines(file: str) -> frozenset[str]:
    return frozenset(line.strip().lower() for line in _read(file) if line.strip())


@functools.lru_cache(maxsize=8)
def _any_of(file: str) -> re.Pattern:
    listed = sorted(map(re.escape, _lines(file)), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(listed) or '(?!)'})(?!\w)")


def _read(file: str) -> list[str]:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {file} can't be read ({error}); expected UTF-8 lines") from None
