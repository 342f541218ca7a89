"""FineWeb's additions to Gopher and C4 (Penedo et al. 2024, https://arxiv.org/abs/2406.17557)."""

import dataclasses

from t5x_lite.corpus.steps import Filter, rule
from t5x_lite.corpus.text import end_marks, repeated, words


@dataclasses.dataclass(frozen=True)
class FineWeb(Filter):
    """Lists, short lines, and repeated lines; as in datatrove 0.10."""

    SOURCE = "Penedo et al. 2024, 3.4; datatrove 0.10"

    min_end_mark_lines: float | None = rule(0.12, "end_mark_lines", "share of lines, at least")
    max_short_lines: float | None = rule(0.67, "short_lines", "share of lines, at most")
    short_line_length: int = rule(30, "short_lines", "characters of a short line, at most")
    max_repeated_characters: float | None = rule(
        0.01, "repeated_line_characters", "share in repeated lines, at most"
    )
    max_newlines: float | None = rule(0.3, "newlines", "line ends per word, at most")

    def broken(self, text: str) -> str | None:
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return "empty"
        if self.min_end_mark_lines is not None:
            ended = sum(line.endswith(end_marks()) for line in lines)
            if ended / len(lines) < self.min_end_mark_lines:
                return "end_mark_lines"
        if self.max_short_lines is not None:
            short = sum(len(line) <= self.short_line_length for line in lines)
            if short / len(lines) > self.max_short_lines:
                return "short_lines"
        if self.max_repeated_characters is not None:
            characters = len(text) - text.count("\n")
            if repeated(lines)[1] / characters > self.max_repeated_characters:
                return "repeated_line_characters"
        if self.max_newlines is not None:
            found = words(text)
            if text.count("\n") / max(len(found), 1) > self.max_newlines:
                return "newlines"
        return None
