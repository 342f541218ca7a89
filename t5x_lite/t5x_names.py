"""T5X's names and what they are called here: for messages, and for the page docs/from_t5x.md.

t5x_names.tsv has a line for each row of the page's table: what T5X has, what there is here, and
the names in gin files that the row answers (with or without modules; one with / at its end is the
beginning of a path).
"""

import functools
from pathlib import Path

FILE = Path(__file__).with_name("t5x_names.tsv")


@functools.cache
def rows() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(theirs, ours, names) of each row, in the page's order."""
    lines = FILE.read_text(encoding="utf-8").split("\n")[1:-1]
    cells = [line.split("\t") for line in lines]
    return tuple((theirs, ours, tuple(names.split())) for theirs, ours, names in cells)


def hint(name: str) -> str:
    """What to add to a message about a name, file or module of T5X; "" for other names."""
    known = {key: ours for _, ours, names in rows() for key in names}
    parts = [] if "/" in name else name.split(".")
    # utils.SaveCheckpointConfig.period: with fewer modules, then without the parameter
    tails = [".".join(parts[i:]) for i in range(len(parts))]
    tails += [".".join(parts[i:-1]) for i in range(len(parts) - 1)]
    begins = [key for key in known if key.endswith("/") and name.startswith(key)]
    found = next((known[key] for key in [name, *tails, *begins, *parts[:1]] if key in known), None)
    return f" In T5X's place: {found.replace('`', '')}." if found else ""


def as_markdown() -> str:
    """The table of the page."""
    cells = [f"| {theirs} | {ours} |" for theirs, ours, _ in rows()]
    return "\n".join(["| T5X | here |", "|---|---|", *cells])
