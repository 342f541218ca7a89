"""Entities in sequences of tags (B-PER I-PER O ...), counted by seqeval's rules.

seqeval 1.2.2 is what results are compared with, and no longer maintained: tests compare with what
it computed.
"""

from collections.abc import Sequence

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.evaluation.metrics.base import Values, metric

Entity = tuple[str, int, int]  # type, first and last token


@metric()
def entity_f1(targets: Sequence[str], predictions: Sequence[str], strict: bool = False) -> Values:
    """Precision, recall and F1 of whole entities; "entity_f1_macro" is the mean over their types.

    Texts are tags with spaces between them. A prediction is cut, or filled up with O, to its
    target's length. strict: see `entities`; the two differ on tags that don't go together.
    """
    true: set[tuple[str, int, int, int]] = set()
    found: set[tuple[str, int, int, int]] = set()
    for row, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
        tags = target.split()
        guessed = (prediction.split() + ["O"] * len(tags))[: len(tags)]
        true |= {(*entity, row) for entity in entities(tags, strict)}
        found |= {(*entity, row) for entity in entities(guessed, strict)}
    precision, recall, f1 = _scores(true, found)
    types = sorted({entity[0] for entity in true | found})
    each = [
        _scores({e for e in true if e[0] == t}, {e for e in found if e[0] == t})[2] for t in types
    ]
    return {
        "entity_precision": 100 * precision,
        "entity_recall": 100 * recall,
        "entity_f1": 100 * f1,
        "entity_f1_macro": 100 * float(np.mean(each)) if each else 0.0,
        "entity_signature": f"seqeval's rules, {'strict IOB2' if strict else 'lenient'}",
    }


def _scores(true: set, found: set) -> tuple[float, float, float]:
    right = len(true & found)
    precision = right / len(found) if found else 0.0
    recall = right / len(true) if true else 0.0
    return precision, recall, 2 * right / (len(true) + len(found)) if right else 0.0


def entities(tags: Sequence[str], strict: bool = False) -> list[Entity]:
    """The entities of a sentence's tags, each [first, last].

    Lenient, as conlleval: IOB1, IOB2, IOE or IOBES, and an entity may begin with I. strict: IOB2
    alone: B begins an entity, I of the same type continues it, an I of no entity is none.

    Raises:
      UserError: an empty tag.
    """
    if not all(tags):
        raise UserError("a tag is empty: expected O, or a letter and a type, as B-PER.")
    found: list[Entity] = []
    before, start = ("O", ""), None
    for i, tag in enumerate([*tags, "O"]):
        now = (tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_")
        begins, ends = _strict(before, now, start) if strict else _lenient(before, now)
        if ends and start is not None:
            found.append((before[1], start, i - 1))
            start = None
        if begins:
            start = i
        before = now
    return found


def _lenient(before: tuple[str, str], now: tuple[str, str]) -> tuple[bool, bool]:
    """Whether an entity begins here, and whether one has ended."""
    (last, last_kind), (tag, kind) = before, now
    begins = (
        tag in "BS" or (tag in "EI" and last in "ESO") or (tag not in "O." and kind != last_kind)
    )
    ends = (
        last in "ES" or (last in "BI" and tag in "BSO") or (last not in "O." and kind != last_kind)
    )
    return begins, ends


def _strict(before: tuple[str, str], now: tuple[str, str], start: int | None) -> tuple[bool, bool]:
    continues = start is not None and now == ("I", before[1])
    return now[0] == "B", not continues
