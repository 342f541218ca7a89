"""Every source: Python's own library and lists, defined here; text files and TFDS beside it."""

import functools
import hashlib
import io
import os
import sysconfig
import tokenize
from collections.abc import Sequence
from pathlib import Path

import gin
import numpy as np

from t5x_lite.data.source import HashSplit, Index, Record, Source, Subset, digest, hash64
from t5x_lite.data.text_files import TextFiles
from t5x_lite.data.tfds_source import Tfds
from t5x_lite.errors import UserError

__all__ = ["InMemory", "PythonLibrary", "Record", "Source", "Subset", "TextFiles", "Tfds"]


@gin.configurable(module="t5x_lite")
class PythonLibrary(HashSplit):
    """The .py files of Python's standard library: a corpus that every machine has.

    Records are `{"text", "path"}`, one a file, the path relative to the library; files are held out
    by the hash of that path. Installed packages are left out, and test suites too unless
    `include_tests`. `root` is the folder to read: by default the running interpreter's library.
    """

    def __init__(
        self, held_out: float = 0.02, include_tests: bool = False, root: str | None = None
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

    def __getitem__(self, index: int) -> Record:
        path = self.paths[index]
        return {"text": decode_python((self.root / path).read_bytes()), "path": path}


def decode_python(data: bytes) -> str:
    """Source text by its coding cookie (PEP 263); if that is wrong by latin-1, which can't fail."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return data.decode("latin-1")


@gin.configurable(module="t5x_lite")
class InMemory(HashSplit):
    """Records from a list of dicts, or of strings, which become `{"text": string}`.

    `validation` is a list of its own; without it, `held_out` of the records are held out.
    """

    def __init__(
        self,
        records: Sequence[Record | str],
        held_out: float = 0.0,
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
