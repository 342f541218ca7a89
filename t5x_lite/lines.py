"""Lines of text. A line ends with "\\n" or "\\r\\n", as for wc, grep and every tokenizer's file.

`str.splitlines` also ends lines at U+2028, U+0085, form feeds and more, and `open` at a lone "\\r":
both give a file more lines than it has. Nothing in the package uses them.
"""

import os
from pathlib import Path

from t5x_lite.errors import UserError


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends; a last line needs no end. "" has no line."""
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    return [line.removesuffix("\r") for line in lines]


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a UTF-8 file; a byte order mark at its beginning is no text.

    Raises OSError or UnicodeDecodeError.
    """
    return split_lines(Path(path).expanduser().read_bytes().decode("utf-8-sig"))


def check_whole(text: str, place: str) -> None:
    """Refuses half a character, which JSON and a command line can hold, and UTF-8 can't."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise UserError(f"{place} holds half a character, {half}: write it whole.") from None
