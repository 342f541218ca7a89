"""Packing that looks further than one row, and the one that joins documents.

  next_fit    one open row; an example that doesn't fit closes it: seqio's (features.NextFitPacker)
  first_fit   a window of examples, each into the first row of the window with room
  best_fit    ... into the fullest row with room
  concat      for language models: rows are full of text as it is; segments are documents

A window is packed at once, given row by row, and then the next begins. So a row stream that packs
windows has the position

  int64 [2 + 2 * tasks] = [position (streams.py) where the window begins, rows given of it]

and restoring it costs making one window's examples again.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from t5x_lite.data.features import NextFitPacker, Row
from t5x_lite.data.streams import RowStream, TaskChooser, TaskReader
from t5x_lite.errors import UserError, did_you_mean

PACKERS = ("next_fit", "first_fit", "best_fit", "concat")
WINDOW = 16  # rows


def packer_name(pack: bool | str) -> str | None:
    """The packer that `pack` means: True is next_fit, False none. UserError if there is none."""
    if isinstance(pack, bool):
        return "next_fit" if pack else None
    if pack not in PACKERS:
        raise UserError(
            f"pack is {pack!r}, expected True, False or one of {', '.join(PACKERS)}."
            + did_you_mean(pack, PACKERS)
        )
    return pack


def assign_rows(sizes: np.ndarray, room: Sequence[int], rule: str) -> np.ndarray:
    """Which row each example goes to: int64 [examples], rows numbered as they are opened.

    sizes: int [examples, features], none above `room` [features]. In order of the examples, the
    rule "first_fit" takes the first row with room for all features, "best_fit" the one in which
    the least room is left (summed over features); a new one if there is none.
    """
    left = np.tile(np.array(room), (len(sizes), 1))
    rows, opened = np.zeros(len(sizes), np.int64), 0
    for i, size in enumerate(sizes):
        fits = (left[:opened] >= size).all(axis=1)
        row = opened
        if fits.any():
            row = int(fits.argmax())
            if rule == "best_fit":
                places = np.flatnonzero(fits)
                row = int(places[left[places].sum(axis=1).argmin()])
        opened = max(opened, row + 1)
        left[row] -= size
        rows[i] = row
    return rows


def pack_window(
    examples: Sequence[Row], lengths: Mapping[str, int], architecture: str, rule: str
) -> list[Row]:
    """Packs int32 [tokens] examples into rows, as `NextFitPacker` makes them, by `assign_rows`.

    Examples keep their order within a row. Ones without a token are dropped.
    """
    packer = NextFitPacker(lengths, architecture)
    examples = [example for example in examples if packer.sizes(example).any()]
    if not examples:
        return []
    sizes = np.stack([packer.sizes(example) for example in examples])
    rows = assign_rows(sizes, packer.room, rule)
    packed = []
    for row in range(rows.max() + 1):
        for i in np.flatnonzero(rows == row):
            closed = packer.add(examples[i])
            assert closed is None, "the examples of a row must fit it"
        packed.append(packer.flush())
    return packed


def document_segments(tokens: np.ndarray, eos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (segment ids, positions), int32 [length], of text in which documents end with EOS.

    Padding (0) has segment 0. What begins in the row before counts from position 0 too.
    """
    begins = np.zeros(len(tokens), bool)
    begins[:1] = True
    begins[1:] = tokens[:-1] == eos_id
    index = np.arange(len(tokens))
    starts = np.maximum.accumulate(np.where(begins, index, 0))
    real = tokens != 0
    return (begins.cumsum() * real).astype(np.int32), ((index - starts) * real).astype(np.int32)


class ConcatPacker:
    """Rows of one example, "targets" of running text, whose documents are the segments.

    A token then reads those of its own document only. For objectives of which an example fills a
    row by itself (CausalLM, FillInTheMiddle).
    """

    def __init__(self, lengths: Mapping[str, int], eos_id: int):
        if set(lengths) != {"targets"}:
            raise UserError(
                f"pack is 'concat' with features {', '.join(lengths)}, expected only targets: use "
                "it with CausalLM or FillInTheMiddle, or pack = 'best_fit'"
            )
        self._length, self._eos_id = lengths["targets"], eos_id

    def row(self, example: Row) -> Row:
        tokens = np.zeros(self._length, np.int32)
        text = example["targets"][: self._length]
        tokens[: len(text)] = text
        ids, positions = document_segments(tokens, self._eos_id)
        return {"targets": tokens, "targets_segment_ids": ids, "targets_positions": positions}


class ConcatStream(RowStream):
    """A row stream whose every example is a row, with documents as segments."""

    def __init__(self, *args, packer: ConcatPacker):
        super().__init__(*(*args, None))
        self._concat = packer

    def next_row(self) -> Row:
        """int32 [length] features of a packed row."""
        example = self._next_example(self._chooser(self._row, self._examples))
        self._examples += 1
        self.position = self._state()
        return self._concat.row(example)


class WindowStream(RowStream):
    """A row stream that packs windows of examples by first_fit or best_fit.

    A window is as many examples as fill `window` rows without a gap. The first of row r is shorter,
    so that windows end at different times in the rows of a batch.
    """

    def __init__(
        self,
        readers: Sequence[TaskReader],
        chooser: TaskChooser,
        row: int,
        batch_size: int,
        *,
        architecture: str,
        rule: str,
        window: int = WINDOW,
    ):
        self._architecture, self._rule, self._window = architecture, rule, window
        super().__init__(readers, chooser, row, batch_size, None)

    def restore(self, position: np.ndarray) -> None:
        count = 1 + 2 * len(self._readers)
        self._start, given = position[:count].copy(), position[count:]
        super().restore(self._start)
        self._given, self._rows = int(given.sum()), []  # none at the very beginning
        self.position = np.append(self._start, self._given)

    def next_row(self) -> Row:
        """int32 [length] features of a packed row."""
        if not self._rows:
            self._rows = self._make_window()
            if self._given >= len(self._rows):
                raise UserError(
                    f"the position to restore has given {self._given} rows of a window of "
                    f"{len(self._rows)}; the data or the vocabulary changed since: start a new "
                    "run, or bring them back"
                )
        row = self._rows[self._given]
        self._given += 1
        if self._given == len(self._rows):
            self._start, self._given, self._rows = self._state(), 0, []
        self.position = np.append(self._start, self._given)
        return row

    def _make_window(self) -> list[Row]:
        lengths = self._readers[0].lengths
        packer = NextFitPacker(lengths, self._architecture)
        wanted = self._window if self._start[0] else 1 + self._row % self._window
        examples: list[Row] = []
        filled = np.zeros(len(packer.room))
        while filled.max() < wanted:
            task = self._chooser(self._row, self._examples)
            examples.append(self._next_example(task))
            self._examples += 1
            filled += packer.sizes(examples[-1]) / packer.room
        return pack_window(examples, lengths, self._architecture, self._rule)


def row_stream(
    pack: bool | str,
    readers: Sequence[TaskReader],
    chooser: TaskChooser,
    row: int,
    batch_size: int,
    architecture: str,
) -> RowStream:
    """The stream of a row of the batches, packed as `pack` says (see `packer_name`)."""
    arguments, lengths = (readers, chooser, row, batch_size), readers[0].lengths
    match packer_name(pack):
        case None:
            return RowStream(*arguments, None)
        case "next_fit":
            return RowStream(*arguments, NextFitPacker(lengths, architecture))
        case "concat":
            eos_id = readers[0].task.vocabulary.eos_id
            return ConcatStream(*arguments, packer=ConcatPacker(lengths, eos_id))
        case rule:
            return WindowStream(*arguments, architecture=architecture, rule=rule)
