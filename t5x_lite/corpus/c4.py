"""C4's rules, of which there are two public versions, and mC4's (Raffel et al. 2020, 2.2)."""

import dataclasses
import heapq
import re

from t5x_lite.corpus.code_languages import is_code
from t5x_lite.corpus.steps import Document, Filter, Step, count, rule
from t5x_lite.corpus.text import count_sentences
from t5x_lite.lines import split_lines

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICIES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class C4(Step):
    """Drops lines that aren't sentences, then pages with too few of them.

    The defaults are the paper's and datatrove 0.10's. TFDS's c4, which made the dataset, is
    `C4Tfds`. `end_marks = None` keeps lines without an end mark, as FineWeb does.
    """

    SOURCE = "Raffel et al. 2020, 2.2; datatrove 0.10"

    max_word_length: int | None = rule(1000, "long_word", "characters, at most, or the line goes")
    end_marks: tuple[str, ...] | None = rule(
        (".", "?", "!", '"', "'"), "no_end_mark", "how a line ends, or it goes; never with ..."
    )
    min_line_words: int | None = rule(3, "short_line", "words, at least, or the line goes")
    min_sentences: int | None = rule(5, "too_few_sentences", "in the page, at least")
    lorem_ipsum: bool | None = rule(True, "lorem_ipsum", "the page goes")
    curly_bracket: bool | None = rule(True, "curly_bracket", "the page goes")
    javascript: bool | None = rule(True, "javascript", "the line goes")
    policies: tuple[str, ...] | None = rule(_POLICIES, "policy", "the line goes")
    citations: bool = True  # strip [1], [edit], [citation needed]

    def clean(self, text: str) -> tuple[str, str | None, dict[str, int]]:
        """(the lines that are left, the rule that the page breaks, lines removed by rule)."""
        kept, removed, sentences = [], {}, 0
        for line in split_lines(text):
            line = line.strip()
            number = len(line.split())
            too_long = self.max_word_length is not None and any(
                len(word) > self.max_word_length for word in line.split()
            )
            if self.citations:
                line = _CITATION.sub("", line)
            reason = "long_word" if too_long else self._line_reason(line, number)
            lower = line.lower()
            if reason is None:
                if self.lorem_ipsum and "lorem ipsum" in lower:
                    return text, "lorem_ipsum", removed
                if self.javascript and "javascript" in lower:
                    reason = "javascript"
                elif self.curly_bracket and "{" in line:
                    return text, "curly_bracket", removed
                elif any(policy in lower for policy in self.policies or ()):
                    reason = "policy"
            if reason is not None:
                if line:
                    removed[reason] = removed.get(reason, 0) + 1
                continue
            sentences += count_sentences(line)
            kept.append(line)
        few = self.min_sentences is not None and sentences < self.min_sentences
        return "\n".join(kept).strip(), "too_few_sentences" if few else None, removed

    def _line_reason(self, line: str, number: int) -> str | None:
        if self.end_marks is not None and (
            not line.endswith(tuple(self.end_marks)) or line.endswith("...")
        ):
            return "no_end_mark"
        if self.min_line_words is not None and number < self.min_line_words:
            return "short_line"
        return None

    def __call__(self, document: Document) -> str | None:
        if is_code(document):
            return None
        name = type(self).__name__
        text, broken, removed = self.clean(document["text"])
        if broken:
            return f"{name}/{broken}"
        for reason, number in removed.items():
            count(document, f"lines removed: {name}/{reason}", number)
        document["text"] = text
        return None


@dataclasses.dataclass(frozen=True)
class C4Tfds(C4):
    """C4 with the thresholds of TFDS's c4 (4.9), which made the published dataset."""

    SOURCE = "TFDS 4.9 text/c4_utils.py"

    end_marks: tuple[str, ...] | None = rule(
        (".", "?", "!", '"'), "no_end_mark", "how a line ends, or it goes; never with ..."
    )
    min_line_words: int | None = rule(5, "short_line", "words, at least, or the line goes")
    min_sentences: int | None = rule(3, "too_few_sentences", "in the page, at least")
    max_page_length: int | None = rule(190_000, "long_page", "characters, at most")

    def clean(self, text: str) -> tuple[str, str | None, dict[str, int]]:
        if self.max_page_length is not None and len(text) > self.max_page_length:
            return text, "long_page", {}
        return super().clean(text)


@dataclasses.dataclass(frozen=True)
class C4Paragraphs(Filter):
    """mC4's rule of three long lines."""

    SOURCE = "Xue et al. 2021 (mT5), 3.1"

    min_paragraphs: int = rule(3, "too_few_paragraphs", "long lines, at least")
    min_length: int = rule(200, "too_few_paragraphs", "characters of a long line, at least")

    def broken(self, text: str) -> str | None:
        longest = heapq.nlargest(self.min_paragraphs, map(len, text.split("\n")))
        if len(longest) < self.min_paragraphs or longest[-1] < self.min_length:
            return "too_few_paragraphs"
        return None
