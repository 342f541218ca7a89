"""Where a published task's data is: a TFDS dataset by name, or local files with the same fields."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from t5x_lite.data.open_files import _Unusable, open_files
from t5x_lite.data.source import Record, Source
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tables import Delimited
from t5x_lite.data.text_files import ParallelFiles
from t5x_lite.data.tfds_source import Tfds
from t5x_lite.errors import UserError
from t5x_lite.ranges import Fraction, Positive

_ENDS = ("", ".gz", ".zst", ".zstd", ".xz", ".bz2")


def when_used(function: Callable[..., Source]) -> Callable[..., Source]:
    """What is wrong with the files is said when they are read: a model needs none to be used."""

    @functools.wraps(function)
    def make(*args, **kwargs) -> Source:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            return _Unusable(error)

    return make


@when_used
def task_data(
    name: str | None = None,
    files: str | Sequence[str] | None = None,
    validation_files: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    data_dir: str | None = None,
    splits: Mapping[str, str] | None = None,
    held_out: Fraction = 0.05,
    document: str = "line",
    download: bool = False,
) -> Source:
    """A task's data: local files with the fields that its template reads, else a TFDS dataset.

    files, validation_files, held_out, document: as of `open_files`; all fields of their records.
    columns: their names, of CSV and TSV files whose first row is data.
    name, data_dir, splits, download: as of `Tfds`.
    """
    if files is None:
        if name is None:
            raise UserError("the task has no data: set DATA to a file with the fields it reads.")
        return Tfds(name, data_dir, None, splits, held_out, download)
    if columns is not None:
        return Delimited(
            files, keys=None, columns=columns, delimiter=None, quoting=None, held_out=held_out,
            validation_files=validation_files, max_bad_records=0, max_record_bytes=10_000_000,
        )  # fmt: skip
    return open_files(
        files, keys=None, held_out=held_out, validation_files=validation_files, document=document,
        max_document_bytes=None, max_bad_records=0,
    )  # fmt: skip


class _ParallelFolder(Source):
    """`ParallelFiles` of a folder, with a split for each name that its files have."""

    def __init__(self, folder: str, languages: Sequence[str], train: str, validation: str):
        self.folder, self.languages = epath.Path(folder).expanduser(), tuple(languages)
        self._names = {"train": train, "validation": validation}
        self._main = ParallelFiles(
            self._files(train), held_out=0.0, validation_files=self._files(validation)
        )

    @functools.cached_property
    def splits(self) -> tuple[str, ...]:
        found = {p.name.split(f".{self.languages[0]}")[0] for p in self._of_first_language()}
        return ("train", "validation", *sorted(found - set(self._names.values())))

    def _of_first_language(self) -> list[epath.Path]:
        pattern = re.compile(rf"[^.]+\.{re.escape(self.languages[0])}({'|'.join(_ENDS)})")
        return [path for path in self.folder.iterdir() if pattern.fullmatch(path.name)]

    def _files(self, name: str) -> dict[str, str]:
        found = {}
        for language in self.languages:
            names = [f"{name}.{language}{end}" for end in _ENDS]
            paths = [path for n in names if (path := self.folder / n).exists()]
            if not paths:
                holds = "isn't there: set DATA to the folder"
                if self.folder.is_dir():
                    holds = f"holds {', '.join(sorted(p.name for p in self.folder.iterdir())[:8])}"
                raise UserError(f"no {' or '.join(names)} in {self.folder}, which {holds}.")
            found[language] = str(paths[0])
        return found

    def _split(self, name: str) -> Source:
        if name in self._names:
            return self._main.split(name)
        return ParallelFiles(self._files(name), held_out=0.0, validation_files=None).split("train")

    def __len__(self) -> int:
        return len(self._main)

    def __getitem__(self, index: int) -> Record:
        return self._main[index]

    def where(self, index: int) -> str:
        return self._main.where(index)

    num_files = property(lambda self: self._main.num_files)
    num_bytes = property(lambda self: self._main.num_bytes)
    fingerprint = property(lambda self: self._main.fingerprint)


@when_used
def parallel_folder(
    folder: str, languages: Sequence[str], train: str = "train", validation: str = "val"
) -> Source:
    """The files FOLDER/NAME.LANGUAGE, plain or compressed, a sentence a line, as of Multi30k.

    train, validation: the names of those splits; the others keep theirs.
    """
    return _ParallelFolder(folder, languages, train, validation)


@when_used
def text_in_order(file: str, held_out: Fraction = 0.1, characters: Positive = 4096) -> Source:
    """One text file whose end is held out, as character language models are compared on.

    The first 1 - `held_out` of its characters are cut into documents of `characters`, which are
    what is shuffled; the rest is one document.
    """
    if not 0 <= held_out < 1:
        raise UserError(f"held_out is {held_out}; it must be a share of the characters in [0, 1).")
    try:
        whole = epath.Path(file).expanduser().read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {file}: {error}.") from error
    end = int(len(whole) * (1 - held_out))
    pieces = [whole[i : min(i + characters, end)] for i in range(0, end, characters)]
    return InMemory(pieces, held_out=0.0, validation=[whole[end:]] if whole[end:] else [])
