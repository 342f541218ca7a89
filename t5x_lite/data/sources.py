"""Sources in memory and Python's own library. Other sources are in:

text_files.py    TextFiles, ParallelFiles
tables.py        JsonLines, Delimited (CSV, TSV)
parquet.py       Parquet
record_files.py  ArrayRecords, TfRecords
tfds_source.py   Tfds
hub_source.py    HuggingFace
token_cache.py   CachedTokens
open_files.py    open_files: any of the files above, by their names
"""

import functools
import hashlib
import io
import os
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from t5x_lite.data.source import HashSplit, Index, Record, Source, Subset, digest, hash64
from t5x_lite.errors import UserError
from t5x_lite.ranges import Fraction, Positive


class PythonLibrary(HashSplit):
    """The .py files of Python's standard library: a corpus that every machine has.

    Records are `{"text", "path"}`, one a file, the path relative to the library; files are held out
    by the hash of that path. Installed packages are left out, and test suites too unless
    `include_tests`. `root` is the folder to read: by default the running interpreter's library.
    """

    def __init__(
        self, held_out: Fraction = 0.02, include_tests: bool = False, root: str | None = None
    ):
        super().__init__(held_out)
        self.root = Path(root or sysconfig.get_path("stdlib"))
        self._skipped = {"site-packages", "dist-packages", "__pycache__"}
        if not include_tests:
            self._skipped |= {"test", "tests", "idle_test"}

    @functools.cached_property
    def paths(self) -> list[str]:
        """Relative paths, sorted, with '/' on every system; empty files are left out."""
        found = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [s for s in subfolders if s not in self._skipped]
            files = (Path(folder, n) for n in names if n.endswith(".py"))
            found += [f.relative_to(self.root).as_posix() for f in files if f.stat().st_size]
        if not found:
            raise UserError(f"No .py files under {self.root}; give PythonLibrary.root a folder.")
        return sorted(found)

    @property
    def num_files(self) -> int:
        return len(self.paths)

    def make_index(self) -> Index:
        hashes = [hash64(p.encode()) for p in self.paths]
        sizes = [(self.root / p).stat().st_size for p in self.paths]
        return Index(np.array(hashes, np.uint64), np.array(sizes, np.int64))

    @functools.cached_property
    def fingerprint(self) -> str:
        contents = (hashlib.blake2b((self.root / p).read_bytes()).hexdigest() for p in self.paths)
        return digest(self.held_out, *self.paths, *contents)

    def where(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def __getitem__(self, index: int) -> Record:
        path = self.paths[index]
        content = (self.root / path).read_bytes()
        if len(content) != self.index.sizes[index]:
            raise UserError(f"{self.root / path} has changed while it was in use; bring it back.")
        return {"text": decode_python(content), "path": path}


def decode_python(data: bytes) -> str:
    """Source text by its coding cookie (PEP 263); if that is wrong by latin-1, which can't fail."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return data.decode("latin-1")


class InMemory(HashSplit):
    """Records from a list of dicts, or of strings, which become `{"text": string}`.

    `validation` is a list of its own; without it, `held_out` of the records are held out.
    """

    def __init__(
        self,
        records: Sequence[Record | str],
        held_out: Fraction = 0.0,
        validation: Sequence[Record | str] | None = None,
    ):
        super().__init__(held_out, None if validation is None else InMemory(validation, 0.0, None))
        self._records = [{"text": r} if isinstance(r, str) else dict(r) for r in records]

    def make_index(self) -> Index:
        hashes = [hash64(repr(sorted(r.items())).encode()) for r in self._records]
        sizes = [sum(len(str(v).encode()) for v in r.values()) for r in self._records]
        return Index(np.array(hashes, np.uint64), np.array(sizes, np.int64))

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


class FromFunction(Source):
    """Records that a Python function makes.

    Args:
      function: with `length`, `function(i)` is record i, a dict or a string, the same each time;
        without, `function()` yields all records, which are kept in memory.
      length: number of records; they are not kept.
      held_out: share of records held out: those at the end.
      version: change it when the function makes other records: it is in the fingerprint.
    """

    def __init__(
        self,
        function: Callable[..., Record | str | Iterable[Record | str]],
        length: Positive | None = None,
        held_out: Fraction = 0.01,
        version: str = "1",
    ):
        if not 0 <= held_out < 1:
            raise UserError(f"held_out is {held_out}; it must be a share of records in [0, 1).")
        if length is not None and length < 0:
            raise UserError(f"FromFunction.length is {length}; use 0 or more.")
        self.function, self.length = function, length
        self.held_out, self.version = held_out, version

    @functools.cached_property
    def _all(self) -> list[Record]:
        return [_as_record(record) for record in self.function()]

    def __len__(self) -> int:
        return len(self._all) if self.length is None else self.length

    def __getitem__(self, index: int) -> Record:
        if self.length is None:
            return self._all[index]
        return _as_record(cast(Any, self.function(int(index))))

    @property
    def fingerprint(self) -> str:
        function = self.function
        name = getattr(function, "__qualname__", None) or repr(function)
        return digest(getattr(function, "__module__", ""), name, len(self), self.version)

    def _split(self, name: str) -> Source:
        total = len(self)
        held = min(max(round(total * self.held_out), self.held_out > 0), max(total - 1, 0))
        indices = range(total - held, total) if name == "validation" else range(total - held)
        return Subset(self, name, indices, 0)


def _as_record(record: Record | str) -> Record:
    return {"text": record} if isinstance(record, str) else record
