"""A vocabulary that is trained on its task's own text when it is first needed."""

import contextlib
import functools
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite import evidence, run_vocabulary
from t5x_lite.data.files import cache_folder, is_url, local_copy, written_whole
from t5x_lite.data.sentencepiece_training import train_sentencepiece
from t5x_lite.data.source import Source, digest
from t5x_lite.data.vocabulary import SentencePieceVocabulary, Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count, Positive

_RUN = "run.json"  # beside it, once a run has begun


class TrainedVocabulary(Vocabulary):
    """A SentencePiece model, trained on first use on a sample of a source's training split.

    Args:
      source: the strings of its records are the text, also those in lists and in messages.
      size: number of ids, sentinels included; fewer if the text can't fill so many.
      path: a model file: taken if it is there, else written.
      folder: of the run, instead of `path`: the file is its vocabulary.model, so that the run can
        be used where the text isn't. Until a run has begun there, a file that is left of other
        text or settings (by a dry run, say) is trained anew.
      model_type: "unigram" or "bpe".
      extra_ids: number of sentinels.
      sample_bytes: how much text is used, taken evenly from the whole.

    The model is kept in the cache folder too, by the source's fingerprint and these settings. One
    process trains and the others on its machine wait; other machines come to the same model, as
    training is deterministic.

    Raises UserError on first use: the file has another size, or there is no text.
    """

    def __init__(
        self,
        source: Source,
        size: Positive = 8192,
        path: str | None = None,
        folder: str | None = None,
        model_type: str = "unigram",
        extra_ids: Count = 100,
        sample_bytes: Positive = 10_000_000,
    ):
        if path is not None and folder is not None:
            raise UserError("TrainedVocabulary has both a path and a folder; give one of them.")
        self.source, self._size, self.model_type = source, size, model_type
        self.extra_ids, self.sample_bytes = extra_ids, sample_bytes
        self.path = f"{folder.rstrip('/')}/{run_vocabulary.MODEL}" if folder is not None else path
        self._folder = folder

    @functools.cached_property
    def trained(self) -> SentencePieceVocabulary:
        """The model itself, on a local disk."""
        if self.path is not None and _exists(self.path) and not self._left_over():
            found = SentencePieceVocabulary(local_copy(self.path))
            if found.size > self._size:
                raise UserError(
                    f"{self.path} has {found.size:,} ids, expected at most {self._size:,}: set "
                    f"TrainedVocabulary.size (VOCABULARY_SIZE) to {found.size}, or take another "
                    "folder."
                )
            return found
        key = self._key
        kept = cache_folder("vocabularies") / f"{key}.model"
        with _locked(kept.with_suffix(".lock")):
            if not kept.exists():
                self._train(kept)
        if self.path is None:
            return SentencePieceVocabulary(str(kept), self.extra_ids)
        from etils import epath

        _copy(kept, self.path)
        if self._folder is not None:
            note = epath.Path(self._folder) / run_vocabulary.MADE_OF
            note.write_text(f"{key} {digest(kept.read_bytes())}")
        return SentencePieceVocabulary(local_copy(self.path), self.extra_ids)

    @functools.cached_property
    def _key(self) -> str:
        settings = (self._size, self.model_type, self.extra_ids, self.sample_bytes)
        return digest(self.source.fingerprint, *settings)

    def _left_over(self) -> bool:
        """Whether the folder's file was made here of other text, and of no run that has begun.

        A file that something else has put there is never left over.
        """
        from etils import epath

        if self._folder is None or _exists(f"{self._folder.rstrip('/')}/{_RUN}"):
            return False
        note = evidence.read_text(epath.Path(self._folder) / run_vocabulary.MADE_OF) or ""
        if note.split(" ")[1:] != [digest(epath.Path(self.path).read_bytes())]:
            return False
        try:
            return note.split(" ")[0] != self._key
        except UserError:  # the text isn't here
            return False

    def _train(self, path: Path) -> None:
        print(f"training a vocabulary of {self._size:,} ids: up to a minute", flush=True)
        train = functools.partial(
            train_sentencepiece,
            model_path=path,
            model_type=self.model_type,
            extra_ids=self.extra_ids,
            max_bytes=self.sample_bytes,
        )
        try:
            train(self._texts(), size=self._size)
        except UserError as error:
            # A small corpus has fewer pieces than were asked for, which is no reason to stop.
            if not (fits := re.search(r"too few pieces for \d+ ids: at most (\d+)", str(error))):
                raise
            train(self._texts(), size=int(fits[1]))

    def _texts(self) -> Iterator[str]:
        records = self.source.split("train")
        every = max(1, math.ceil(records.num_bytes / self.sample_bytes))
        for i in range(0, len(records), every):
            record = records[i]
            yield from _strings({k: v for k, v in record.items() if k != "path"})

    # ---- as the model it is

    @property
    def size(self) -> int:
        return self.trained.size

    @property
    def num_sentinels(self) -> int:
        return self.trained.num_sentinels

    def encode(self, text: str) -> np.ndarray:
        return self.trained.encode(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.trained.decode(ids)

    @property
    def byte_lengths(self) -> np.ndarray:
        return self.trained.byte_lengths

    @property
    def word_starts(self) -> np.ndarray:
        return self.trained.word_starts

    @property
    def fingerprint(self) -> str:
        return self.trained.fingerprint


def _exists(path: str) -> bool:
    from etils import epath

    return evidence.exists(epath.Path(path))


def _copy(path: Path, to: str) -> None:
    if is_url(to):
        from etils import epath

        epath.Path(to).parent.mkdir(parents=True, exist_ok=True)
        epath.Path(to).write_bytes(path.read_bytes())
        return
    os.makedirs(os.path.dirname(os.path.abspath(to)), exist_ok=True)
    with written_whole(to) as temporary:
        shutil.copyfile(path, temporary)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between the processes of this machine; a killed one gives it back."""
    with open(path, "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: two processes may do the same work
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _strings(value: Any) -> Iterator[str]:
    """The texts in a field, also in lists of words and in messages of conversations."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in ("role", "from"):  # who speaks is no text
                yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
