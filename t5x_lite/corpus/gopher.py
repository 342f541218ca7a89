"""Gopher's rules (Rae et al. 2021, https://arxiv.org/abs/2112.11446, section A.1 and table A1)."""

import dataclasses
import re
import statistics
import string
import unicodedata
from collections import Counter

from t5x_lite.corpus.steps import Filter, rule
from t5x_lite.corpus.text import repeated, words
from t5x_lite.lines import split_lines

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


@dataclasses.dataclass(frozen=True)
class GopherQuality(Filter):
    """Length, word length, symbols, bullets, ellipses, letters, stop words; as in datatrove 0.10.

    Public implementations differ in what a word is. `by_spaces` False: those of `text.words`,
    punctuation marks among them but for lengths (datatrove, FineWeb); text with much of them, even
    verse, then comes near the limit of `min_alphabetic`. True: what stands between white space, and
    the median of their lengths instead of the mean (Dolma 1.2).
    """

    SOURCE = "Rae et al. 2021, A.1"

    min_words: int | None = rule(50, "too_few_words", "words that aren't punctuation, at least")
    max_words: int | None = rule(100_000, "too_many_words", "words that aren't punctuation at most")
    min_word_length: float | None = rule(3, "short_words", "mean length of a word, at least")
    max_word_length: float | None = rule(10, "long_words", "mean length of a word, at most")
    max_hashes: float | None = rule(0.1, "hashes", "# per word, at most")
    max_ellipses: float | None = rule(0.1, "ellipses", "... per word, at most")
    max_bullet_lines: float | None = rule(0.9, "bullet_lines", "share of lines, at most")
    max_ellipsis_lines: float | None = rule(0.3, "ellipsis_lines", "share of lines, at most")
    min_alphabetic: float | None = rule(0.8, "alphabetic_words", "share of words, at least")
    min_stop_words: int | None = rule(2, "stop_words", "different ones, at least")
    stop_words: tuple[str, ...] = STOP_WORDS
    by_spaces: bool = False

    def broken(self, text: str) -> str | None:
        found = spoken = text.split()
        if not self.by_spaces:
            found = words(text)
            spoken = [w for w in found if not all(map(is_punctuation, w))]
        if self.min_words is not None and len(spoken) < self.min_words:
            return "too_few_words"
        if self.max_words is not None and len(spoken) > self.max_words:
            return "too_many_words"
        average = statistics.median if self.by_spaces else statistics.fmean
        mean = average(map(len, spoken)) if spoken else 0
        if self.min_word_length is not None and mean < self.min_word_length:
            return "short_words"
        if self.max_word_length is not None and mean > self.max_word_length:
            return "long_words"
        total = max(len(found), 1)
        if self.max_hashes is not None and text.count("#") / total > self.max_hashes:
            return "hashes"
        ellipses = text.count("...") + text.count("\u2026")
        if self.max_ellipses is not None and ellipses / total > self.max_ellipses:
            return "ellipses"
        return self._broken_by_lines(text) or self._broken_by_words(found, total)

    def _broken_by_lines(self, text: str) -> str | None:
        lines = split_lines(text) or [""]
        bullets = sum(line.lstrip().startswith(("\u2022", "-")) for line in lines)
        if self.max_bullet_lines is not None and bullets / len(lines) > self.max_bullet_lines:
            return "bullet_lines"
        ends = sum(line.rstrip().endswith(("...", "\u2026")) for line in lines)
        if self.max_ellipsis_lines is not None and ends / len(lines) > self.max_ellipsis_lines:
            return "ellipsis_lines"
        return None

    def _broken_by_words(self, found: list[str], total: int) -> str | None:
        if self.min_alphabetic is not None:
            alphabetic = sum(w.isalpha() or any(map(str.isalpha, w)) for w in found)
            if alphabetic / total < self.min_alphabetic:
                return "alphabetic_words"
        if (
            self.min_stop_words
            and len(set(self.stop_words).intersection(found)) < self.min_stop_words
        ):
            return "stop_words"
        return None


@dataclasses.dataclass(frozen=True)
class GopherRepetition(Filter):
    """Repeated lines, paragraphs and n-grams of words, as shares of the text's characters.

    Two public implementations differ in what a repeat is. `count_all` False: the second and later
    copies (datatrove 0.10, FineWeb). True: all copies, the first too (Dolma 1.2), and n-gram shares
    are of the words' characters instead of the text's.
    """

    SOURCE = "Rae et al. 2021, table A1"

    max_lines: float | None = rule(0.3, "repeated_lines", "share of lines, at most")
    max_paragraphs: float | None = rule(0.3, "repeated_paragraphs", "share of paragraphs, at most")
    max_line_characters: float | None = rule(0.2, "repeated_line_characters", "share, at most")
    max_paragraph_characters: float | None = rule(
        0.2, "repeated_paragraph_characters", "share, at most"
    )
    top_n_grams: tuple | None = rule(
        ((2, 0.2), (3, 0.18), (4, 0.16)), "top_n_gram", "share of the most frequent one, at most"
    )
    repeated_n_grams: tuple | None = rule(
        ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)),
        "repeated_n_grams", "share of characters, at most",
    )  # fmt: skip
    count_all: bool = False

    def broken(self, text: str) -> str | None:
        if not text:
            return "empty"
        for name, parts, most, most_characters in (
            ("paragraph", _PARAGRAPHS.split(text.strip()), self.max_paragraphs,
             self.max_paragraph_characters),
            ("line", _LINES.split(text), self.max_lines, self.max_line_characters),
        ):  # fmt: skip
            number, characters = _copies(parts) if self.count_all else repeated(parts)
            if most is not None and number / len(parts) > most:
                return f"repeated_{name}s"
            if most_characters is not None and characters / len(text) > most_characters:
                return f"repeated_{name}_characters"
        return self._broken_by_n_grams(text)

    def _broken_by_n_grams(self, text: str) -> str | None:
        found = words(text)
        total = sum(map(len, found)) if self.count_all else len(text)
        for n, most in self.top_n_grams or ():
            if len(found) < n:
                continue
            top, number = Counter(zip(*(found[i:] for i in range(n)), strict=False)).most_common(1)[
                0
            ]
            spaces = 0 if self.count_all else n - 1
            if (sum(map(len, top)) + spaces) * number / total > most:
                return f"top_{n}_gram"
        for n, most in self.repeated_n_grams or ():
            grams = list(zip(*(found[i:] for i in range(n)), strict=False))
            if len(set(grams)) == len(grams):
                break  # then no longer one repeats
            covered = _covered if self.count_all else _repeated_after
            if covered(grams, [len(w) for w in found], n) / total > most:
                return f"repeated_{n}_grams"
        return None


def is_punctuation(character: str) -> bool:
    """Unicode's punctuation and symbols."""
    if character.isalnum():
        return False
    return character in string.punctuation or unicodedata.category(character)[0] in "PSZC"


def _copies(parts: list[str]) -> tuple[int, int]:
    counts = Counter(parts)
    found = [part for part in parts if counts[part] > 1]
    return len(found), sum(map(len, found))


def _repeated_after(grams: list[tuple], lengths: list[int], n: int) -> int:
    """Characters of n-grams seen before; a repeat is stepped over, so none counts twice."""
    seen, characters, i = set(), 0, 0
    while i < len(grams):
        if grams[i] in seen:
            characters += sum(lengths[i : i + n])
            i += n
        else:
            seen.add(grams[i])
            i += 1
    return characters


def _covered(grams: list[tuple], lengths: list[int], n: int) -> int:
    """Characters of all words that stand in any n-gram with a copy."""
    counts = Counter(grams)
    inside = bytearray(len(lengths))
    for i, gram in enumerate(grams):
        if counts[gram] > 1:
            inside[i : i + n] = b"\1" * n
    return sum(length for length, yes in zip(lengths, inside, strict=True) if yes)
