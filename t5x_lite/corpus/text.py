"""What all rules share: how text is repaired, and what a word, a line and a sentence is.

Words: letters, digits and the marks on them, so that a vowel sign or a tone is a part of its word;
any other visible character is a word of its own, and so is a ruled line, much as in spaCy's
English. Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are
split by ICU's dictionaries; where rules want n-grams of them, by characters (`units`).
"""

import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, cast

from t5x_lite.errors import UserError

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u3005-\u3007\u3031-\u3035\u303b"
    "\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f"
    "\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
_NOT_ASCII_WORD = r"|\.+|-+|=+|\*+|#+|~+|\++|[^\w\s]"
_ASCII_WORD = re.compile(r"\w+(?:['-]\w+)*" + _NOT_ASCII_WORD)
_LATIN_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*" + _NOT_ASCII_WORD)
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
# No mark on letters, no script without spaces and no end mark of its own is elsewhere.
_BEYOND_LATIN = re.compile(
    "[\u0300-\u1fff\u200c\u200d\u203c\u203d\u2047-\u2049\u20d0-\u20ff\u2c00-\U0010ffff]"
)
# Sentences end at these before white space, at the others anywhere.
_SPACED_ENDS = ".!?\u2026\u0387"
_OTHER_ENDS = (
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u0f0d\u104a\u104b"
    "\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b5a\u1b5b\u1b5e"
    "\u1b5f\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047-\u2049\u2e2e\u2e3c\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7"
    "\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57\uff01\uff0e"
    "\uff1f\uff61"
)
_LATIN_END = rf"[{_SPACED_ENDS}]+[\"'\u201d\u2019\u00bb)\]]*(?=\s|$)"
_LATIN_SENTENCE_END = re.compile(_LATIN_END)
_SENTENCE_END = re.compile(
    rf"{_LATIN_END}|[{_OTHER_ENDS}]+"
    r"|(?<=[\u0e01-\u0eff])\s+(?=[\u0e01-\u0eff])"  # Thai and Lao: a space
)
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|Fig|vol|[A-Z])\.$")


def _listed(ranges: str) -> tuple[str, ...]:
    return tuple(re.findall(f"[{ranges}]", "".join(map(chr, range(0x21, 0x10000)))))


@functools.cache
def end_marks() -> tuple[str, ...]:
    """Marks that end a sentence in the scripts of the world (Unicode's Sentence_Terminal)."""
    return _listed(_SPACED_ENDS + _OTHER_ENDS)


@functools.cache
def _mark_ranges() -> tuple[str, str]:
    """Combining marks and joiners, as ranges in a character class: (others, those of _UNSPACED)."""
    found: dict[bool, list[list[int]]] = {False: [[0x200C, 0x200D]], True: [[0xE31, 0xE31]]}
    for code in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)):
        if unicodedata.category(chr(code))[0] == "M":
            ranges = found[is_unspaced(chr(code))]
            if ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    others, own = ("".join(f"{chr(a)}-{chr(b)}" for a, b in found[key]) for key in (False, True))
    return others, own


def _marks() -> str:
    return _mark_ranges()[0]


def _unspaced_marks() -> str:
    return _mark_ranges()[1]


@functools.cache
def _word() -> re.Pattern:
    letters = rf"[^\W{_UNSPACED}]+(?:[{_marks()}]+[^\W{_UNSPACED}]*)*"
    return re.compile(
        rf"[{_UNSPACED}][{_UNSPACED}{_marks()}]*|{letters}(?:['\u2019\u05f3\u05f4-]{letters})*"
        rf"{_NOT_ASCII_WORD}"
    )


def words(text: str) -> list[str]:
    """Words and single punctuation marks, in order. Raises UserError if ICU isn't installed."""
    if text.isascii():
        return _ASCII_WORD.findall(text)
    if not _BEYOND_LATIN.search(text):
        return _LATIN_WORD.findall(text)
    found = _word().findall(text)
    if not _HAS_UNSPACED.search(text):
        return found
    return [part for word in found for part in (_split(word) if is_unspaced(word) else (word,))]


def units(text: str) -> list[str]:
    """What stands between spaces; of scripts without spaces each character, with its marks."""
    found = text.split()
    if text.isascii() or not _HAS_UNSPACED.search(text):
        return found
    return [unit for part in found for unit in _characters().findall(part)]


def is_unspaced(word: str) -> bool:
    """Whether it begins with a character of a script without spaces between words."""
    return bool(_HAS_UNSPACED.match(word))


@functools.cache
def _characters() -> re.Pattern:
    return re.compile(rf"[{_UNSPACED}][{_marks()}{_unspaced_marks()}]*|[^{_UNSPACED}]+")


def _split(run: str) -> list[str]:
    return [run] if len(run) == 1 else list(_breaker()(run, "en"))


@functools.cache
def _breaker() -> Any:
    try:
        from icu4py.breakers import WordBreaker
    except ImportError as error:
        raise UserError(
            f"Words of Chinese, Japanese, Thai, Lao, Khmer and Burmese need ICU ({error}): "
            "pip install icu4py, or 't5x_lite[corpus]'."
        ) from None
    return WordBreaker


def count_sentences(text: str) -> int:
    """Sentences by their end marks; text after the last mark counts as one."""
    count, end = 0, 0
    latin = text.isascii() or not _BEYOND_LATIN.search(text)
    for match in (_LATIN_SENTENCE_END if latin else _SENTENCE_END).finditer(text):
        if not _ABBREVIATION.search(text, max(0, match.start() - 6), match.end()):
            count, end = count + 1, match.end()
    return count + bool(text[end:].strip())


# ------------------------------------------------------------------------------------------ repair

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufdd0-\ufdef\ufffe\uffff]")
_INVISIBLE = re.compile(r"[\u200b\u2060\ufeff\u00ad]")  # zero-width joiners carry meaning: kept
_BLANK_LINES = re.compile(r"\n{3,}")
_LINE_SPACE = re.compile(r"[^\S\n]+\n")


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


def repair_code(text: str) -> str:
    """Mends ends of lines and control characters: all else may mean something in source code."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text).strip("\n") + "\n" if text.strip() else ""


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


# ------------------------------------------------------------------------------ what is the same

_DIGITS = re.compile(r"\d+")
_ACCENTS = re.compile("[\u0300-\u036f]+")
_QUOTES = "\"'\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a"
_OPENING = _QUOTES + "([\u00a1\u00bf\u300c\u300e\uff08"
_CLOSING = (
    _QUOTES
    + ")].,;:!?\u2026\u3001\u3002\uff0c\uff0e\uff01\uff1f\uff1a\uff1b\u300d\u300f\uff09"
    + ("\u0964\u0965\u060c\u061b\u061f\u06d4")
)


@functools.cache
def _between() -> re.Pattern:
    return re.compile(rf"(?:[^\w{_marks()}{_unspaced_marks()}]|_)+")


_ASCII_BETWEEN = re.compile(r"[\W_]+")


def comparable(text: str, digits: bool = False) -> str:
    """For near-duplicates: lower case without punctuation and, in Latin, Greek and Cyrillic,
    without accents.

    Numbers become 0 unless `digits`. Vowel signs and tone marks of other scripts stay.
    """
    text = text.lower() if digits else _DIGITS.sub("0", text.lower())
    if text.isascii():
        return _ASCII_BETWEEN.sub(" ", text).strip()
    text = _ACCENTS.sub("", unicodedata.normalize("NFD", text))
    text = unicodedata.normalize("NFC", text)
    between = _between() if _BEYOND_LATIN.search(text) else _ASCII_BETWEEN
    return between.sub(" ", text).strip()


def exact_form(text: str, code: bool = False) -> str:
    """What exact duplicates share: the text but for case, spaces and marks at the ends of words.

    Letters, their marks, digits, operators and what stands within a word count. Of source code all
    does, but for white space at the ends of lines.
    """
    if code:
        return "\n".join(line.rstrip() for line in text.strip().split("\n"))
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(map(_without_edges, text.casefold().split()))


@functools.lru_cache(maxsize=1 << 16)
def _without_edges(word: str) -> str:
    bare = word.lstrip(_OPENING).rstrip(_CLOSING)
    return bare if any(map(str.isalnum, bare)) else word  # an operator, or marks alone


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
