"""Hugging Face `datasets` as a source, where that package is installed."""

import functools
import os
from collections.abc import Mapping
from typing import Any

from t5x_lite.data.file_source import Keys, MissingKey, normal_keys, pick
from t5x_lite.data.source import Record, Source, Subset, digest
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.ranges import Fraction


class HuggingFace(Source):
    """A dataset of the Hugging Face hub, or one saved with `save_to_disk`.

    Args:
      path: its name on the hub, or a folder.
      name: its config, where it has several.
      keys: {record key: column}, "a/b" for a nested one; a string means {"text": string}; None
        gives all columns.
      splits: {"train": "train[:90%]", ...}, the hub's slicing included. By default its own; if it
        has no "validation", that is the last `held_out` of "train".

    Raises UserError on first use: the package or the dataset is missing, or a column.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        keys: Keys = "text",
        splits: Mapping[str, str] | None = None,
        held_out: Fraction = 0.01,
    ):
        if not 0 <= held_out < 1:
            raise UserError(f"held_out is {held_out}; it must be a share of records in [0, 1).")
        self.path, self.name, self.held_out = path, name, held_out
        self.keys = normal_keys(keys)
        self._given_splits = None if splits is None else dict(splits)

    @functools.cached_property
    def _tables(self) -> dict[str, Any]:
        """split -> datasets.Dataset"""
        try:
            import datasets
        except ImportError as e:
            raise UserError(
                f"HuggingFace needs a package ({e}); pip install 't5x_lite[datasets]'."
            ) from e
        try:
            if os.path.isdir(self.path) and not self._given_splits:
                found = datasets.load_from_disk(self.path)
                return dict(found) if isinstance(found, dict) else {"train": found}
            wanted = self._given_splits
            if wanted is None:
                return dict(datasets.load_dataset(self.path, self.name))
            parts = datasets.load_dataset(self.path, self.name, split=list(wanted.values()))
            return dict(zip(wanted, parts, strict=True))
        except (OSError, ValueError, KeyError) as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"Hugging Face dataset {self.path!r} can't be read: {reason}.") from e

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self._tables, "validation"]))

    def _split(self, name: str) -> Source:
        tables = self._tables
        if name in tables and ("validation" in tables or name != "train"):
            return _Table(self, name, range(len(tables[name])))
        total = len(tables["train"])
        held = min(max(round(total * self.held_out), self.held_out > 0), max(total - 1, 0))
        first = range(total - held)
        return _Table(self, name, first if name == "train" else range(total - held, total), "train")

    def __len__(self) -> int:
        return len(self.split("train"))

    def __getitem__(self, index: int) -> Record:
        return self.split("train")[index]

    @property
    def num_bytes(self) -> int:
        return sum(table.data.nbytes for table in self._tables.values())

    @property
    def fingerprint(self) -> str:
        sizes = [(name, table._fingerprint) for name, table in sorted(self._tables.items())]
        return digest(self.path, self.name, sizes, self.keys)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_tables"}


class _Table(Subset):
    def __init__(self, parent: HuggingFace, name: str, indices: range, table: str | None = None):
        whole = parent._tables[table or name]
        size = whole.data.nbytes * len(indices) // max(len(whole), 1)
        super().__init__(parent, name, indices, size)
        self._table_name = table or name
        for path in (parent.keys or {}).values():
            if path.split("/")[0] not in whole.column_names:
                raise UserError(
                    f"{parent.path} has no column {path!r}, found "
                    f"{', '.join(whole.column_names)}; set HuggingFace.keys."
                    + did_you_mean(path, whole.column_names)
                )

    def __getitem__(self, index: int) -> Record:
        row = int(self.indices[index])
        try:
            return pick(self.parent._tables[self._table_name][row], self.parent.keys)
        except MissingKey as e:
            raise UserError(
                f"{self.parent.path} {self._table_name} row {row}: {e}; filter it out before."
            ) from e
