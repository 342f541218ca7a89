"""What all rules share: how text is repaired, and what a word, a line and a sentence is."""

import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, cast

# Letters, digits and marks inside a word; any other visible character is a word of its own, and so
# is a ruled line, much as in spaCy's English. Chinese, Japanese and Thai have no spaces: each
# character counts as a word.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(
    rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+(?:['\u2019-](?:(?![{_UNSPACED}])\w)+)*"
    r"|\.+|-+|=+|\*+|#+|~+|\++|[^\w\s]"
)
_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*(?=\s|$)|[\u3002\uff01\uff1f\u0964]+")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|Fig|vol|[A-Z])\.$")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_INVISIBLE = re.compile(r"[\u200b\u2060\ufeff\u00ad]")  # zero-width joiners carry meaning: kept
_BLANK_LINES = re.compile(r"\n{3,}")
_LINE_SPACE = re.compile(r"[^\S\n]+\n")


def words(text: str) -> list[str]:
    """Words and single punctuation marks, in order."""
    return _WORD.findall(text)


def count_sentences(text: str) -> int:
    """Sentences by their end marks; text after the last mark counts as one."""
    count, end = 0, 0
    for match in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text, max(0, match.start() - 6), match.end()):
            count, end = count + 1, match.end()
    return count + bool(text[end:].strip())


def repair(text: str, form: str = "NFC") -> str:
    """Mends mojibake (ftfy), line ends, control and invisible characters, and normalises.

    form: Unicode's NFC, which keeps meaning, or NFKC, which also folds ligatures and full-width.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n")
    text = text.replace("\u2029", "\n\n")
    if not text.isascii():
        text = _ftfy()(text)
        text = _INVISIBLE.sub("", unicodedata.normalize(cast(Any, form), text))
    text = _CONTROL.sub("", text)
    return _BLANK_LINES.sub("\n\n", _LINE_SPACE.sub("\n", text)).strip()


@functools.cache
def _ftfy():
    import ftfy

    # Quotes, ligatures and width stay as they were written; only damage is mended.
    options = ftfy.TextFixerConfig(
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        unescape_html=False,
        normalization=None,
        explain=False,
    )
    return functools.partial(ftfy.fix_text, config=options)


_PUNCTUATION_SPACE = re.compile(r"[\W_]+")
_DIGITS = re.compile(r"\d+")


def comparable(text: str) -> str:
    """Lower case, without accents, punctuation and numbers: what near-duplicates share."""
    if not text.isascii():
        text = unicodedata.normalize("NFD", text)
        text = "".join(c for c in text if not unicodedata.combining(c))
    return _PUNCTUATION_SPACE.sub(" ", _DIGITS.sub("0", text.lower())).strip()


def repeated(parts: Iterable[str]) -> tuple[int, int]:
    """(how many parts stood there before, their characters)."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count, characters = count + 1, characters + len(part)
        else:
            seen.add(part)
    return count, characters
