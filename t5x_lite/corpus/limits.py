"""Steps of no one paper: repair, limits of length, lists of words and hosts, contamination."""

import dataclasses
import functools
import re
from pathlib import Path
from urllib.parse import urlsplit

from t5x_lite.corpus.code_languages import is_code
from t5x_lite.corpus.steps import Document, Filter, Step, count, rule
from t5x_lite.corpus.text import comparable, is_unspaced, repair, repair_code, units
from t5x_lite.errors import UserError
from t5x_lite.lines import read_lines


@dataclasses.dataclass(frozen=True)
class Repair(Step):
    """Mends encodings and normalises Unicode: see `text.repair`. form: "NFC" or "NFKC".

    Of source code only the ends of lines, and control characters.
    """

    form: str = "NFC"

    def __call__(self, document: Document) -> str | None:
        code = is_code(document)
        text = repair_code(document["text"]) if code else repair(document["text"], self.form)
        count(document, "repaired", int(text != document["text"].strip()))
        document["text"] = text
        return None if text else "Repair/empty"


@dataclasses.dataclass(frozen=True)
class Limits(Filter):
    """Length, and symbols against letters."""

    SOURCE = "ours"
    PROSE = False

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


@dataclasses.dataclass(frozen=True)
class Decontaminate(Step):
    """Drops, or counts, documents that share a run of words or an address with evaluation data.

    files: of evaluation texts, an example a line. n: words in a run; 13 is GPT-3's (Brown et al.
    2020, appendix C). A character of a script without spaces counts as half a word. Shorter
    examples, of four words or more, count as a whole. Case, punctuation and accents don't count,
    numbers do. urls: a file of addresses. drop: False only counts, for the data card, which names
    each file either way.
    """

    SOURCE = "Brown et al. 2020, C"

    files: tuple[str, ...] = ()
    n: int = rule(13, "overlap", "words of a run in common")
    urls: str | None = None
    drop: bool = True

    def __call__(self, document: Document) -> str | None:
        found = None
        if self.urls and document.get("url", "").lower() in _lines(self.urls):
            found = f"url in {Path(self.urls).name}"
        elif self.files and (file := self._overlap(document["text"])):
            found = f"overlap with {Path(file).name}"
        if found is None or self.drop:
            return None if found is None else f"Decontaminate/{found}"
        count(document, f"overlap with evaluation data: {found}")
        return None

    def _overlap(self, text: str) -> str | None:
        """The first file with a run of the text."""
        runs = _runs(self.files, self.n)
        found = _run_units(text)
        for size, known in sorted(runs.items()):
            for gram in zip(*(found[i:] for i in range(size)), strict=False):
                if gram in known:
                    return self.files[known[gram]]
        return None


def _run_units(text: str) -> list[str]:
    return units(comparable(text, digits=True))


@functools.lru_cache(maxsize=8)
def _runs(files: tuple[str, ...], n: int) -> dict[int, dict[tuple[str, ...], int]]:
    """{units of a run: {run: number of the first file that has it}}."""
    runs: dict[int, dict[tuple[str, ...], int]] = {}
    for number, file in enumerate(files):
        for line in _read(file):
            example = _run_units(line)
            characters = sum(map(is_unspaced, example))
            size = 2 * n if 2 * characters > len(example) else n
            if len(example) < size:
                if len(example) - characters / 2 < 4:  # shorter ones are in everything
                    continue
                size = len(example)
            known = runs.setdefault(size, {})
            for gram in zip(*(example[i:] for i in range(size)), strict=False):
                known.setdefault(gram, number)
    return runs


@functools.lru_cache(maxsize=8)
def _lines(file: str) -> frozenset[str]:
    return frozenset(line.strip().lower() for line in _read(file) if line.strip())


@functools.lru_cache(maxsize=8)
def _any_of(file: str) -> re.Pattern:
    listed = sorted(map(re.escape, _lines(file)), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(listed) or '(?!)'})(?!\w)")


def _read(file: str) -> list[str]:
    try:
        return read_lines(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {file} can't be read ({error}); expected UTF-8 lines") from None
