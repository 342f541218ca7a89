"""Text <-> token ids: SentencePiece models (T5, mT5) and bytes (ByT5).

Every vocabulary has T5's layout: pad 0, EOS 1, unknown 2, and sentinels `<extra_id_0>`,
`<extra_id_1>`, ... at the top of the ids, counting down.
"""

import abc
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from t5x_lite.data.tokenizer_settings import read_settings
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.ranges import Count

REPLACEMENT = "\ufffd"
_SENTINEL = re.compile(r"<extra_id_(\d+)>")
# mT5's sentinel pieces carry SentencePiece's space mark.
_SENTINEL_PIECE = re.compile(r"\u2581?<extra_id_(\d+)>")


class Vocabulary(abc.ABC):
    """Maps text to int32 ids and back. Frozen, picklable, safe to share between threads."""

    pad_id = 0
    eos_id = 1
    unk_id = 2

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids of which each ends a text that a model writes. The first is `eos_id`, which ends
        the texts of training."""
        return (self.eos_id,)

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of ids, sentinels included, not rounded up to what a model likes."""

    @property
    @abc.abstractmethod
    def num_sentinels(self) -> int:
        """How many of the top ids are sentinels."""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Returns int32 [tokens] without EOS; a literal `<extra_id_7>` becomes sentinel 7.

        The array may be read-only. Lone surrogates, which UTF-8 can't hold, are read as "?".
        """

    def special_id(self, token: str) -> int | None:
        """The id of a special token, which no text encodes to, such as "[MASK]"; None if it has
        none of this name."""
        return None

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """{text: id} of the special tokens that a chat template may name."""
        return {}

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """What a chat template knows some of them as: {"eos_token": text, ...}."""
        return {}

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in the files beside this vocabulary's; None: there is none."""
        return None

    @abc.abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of `ids`: pad and all EOS skipped, sentinels as `<extra_id_i>`.

        Never raises on what a model may emit: ids outside the vocabulary and broken UTF-8 show
        as U+FFFD.
        """

    def token_bytes(self, i: int) -> bytes:
        """What one id stands for in UTF-8, which may be a part of a character: `byte_lengths[i]`
        bytes. b"" for pad, EOS, unknown, sentinels and ids outside the vocabulary."""
        known = 0 <= i < self.size and self.byte_lengths[i]
        return self.decode([i]).encode() if known else b""

    @property
    @abc.abstractmethod
    def byte_lengths(self) -> np.ndarray:
        """int32 [size], read-only: UTF-8 bytes of the text that each id stands for.

        0 for pad, EOS, unknown and sentinels. `byte_lengths[encode(text)].sum()` is the UTF-8
        length of the text as the vocabulary keeps it: of `text` itself for bytes and for lossless
        SentencePiece models; where a SentencePiece model normalises, of the normalised text, plus
        one byte where it puts a space before the text (T5's do both). SentencePiece writes a
        space as U+2581, so a U+2581 in the text comes back, and counts, as one space.
        """

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of what the vocabulary does, the same wherever its file lies."""

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        """bool [size], read-only: ids that begin a word, for whole-word masking.

        Those that stand for a space, punctuation or nothing, and text that begins so; a letter,
        digit, underscore or byte beyond ASCII goes on with a word.
        """
        starts = np.array([_begins_word(self.decode([i])) for i in range(self.size)])
        starts.flags.writeable = False
        return starts

    def sentinel(self, i: int) -> int:
        """Id of `<extra_id_i>`: `size - 1 - i`, as in T5."""
        if not 0 <= i < self.num_sentinels:
            raise UserError(
                f"sentinel {i} asked of a vocabulary with {self.num_sentinels} sentinels: "
                f"use a vocabulary with at least {i + 1} extra ids"
            )
        return self.size - 1 - i


@dataclasses.dataclass(frozen=True)
class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model, read on first use.

    path: the `.model` file. Its pad, EOS and unknown ids must be 0, 1, 2.
    extra_ids: number of sentinels; None means the `<extra_id_*>` pieces in the file, or, if it
      has none, 100 added above its pieces (T5: 32,000 + 100 -> 32,100).

    Raises UserError on first use if the file is missing, is no SentencePiece model, or has other
    special ids or its sentinels elsewhere than at the top.
    """

    path: str | os.PathLike[str]
    extra_ids: Count | None = None

    @functools.cached_property
    def _model(self) -> "_Model":
        model = _read(_local(self.path))
        processor = _processor(model, self.path)
        pieces = _pieces(processor)
        held = sum(bool(_SENTINEL_PIECE.fullmatch(piece)) for piece in pieces)
        wanted = (held or 100) if self.extra_ids is None else self.extra_ids
        if held == 0 and wanted:
            model = add_sentinels(model, wanted)
            processor = _processor(model, self.path)
            pieces = _pieces(processor)
        elif held != wanted:
            raise UserError(
                f"{self.path} holds {held} <extra_id_*> pieces, extra_ids is {wanted}: "
                "leave extra_ids out"
            )
        for i in range(wanted):
            found = _SENTINEL_PIECE.fullmatch(pieces[len(pieces) - 1 - i])
            if not found or int(found[1]) != i:
                raise UserError(
                    f"{self.path} has {pieces[len(pieces) - 1 - i]!r} at id {len(pieces) - 1 - i}, "
                    f"expected <extra_id_{i}>: train the model without <extra_id_*> pieces, "
                    "they are added when it is read"
                )
        return _Model(model, processor, pieces, wanted)

    @property
    def size(self) -> int:
        return len(self._model.pieces)

    @property
    def num_sentinels(self) -> int:
        return self._model.sentinels

    @property
    def special_tokens(self) -> dict[str, int]:
        return {self._model.pieces[i]: i for i in (self.pad_id, self.eos_id)}

    @property
    def named_tokens(self) -> dict[str, str]:
        pad, eos = self._model.pieces[: self.unk_id]
        return {"bos_token": pad, "eos_token": eos, "pad_token": pad}

    @functools.cached_property
    def chat_template(self) -> str | None:
        return read_settings(Path(self.path).expanduser().parent).chat_template

    def encode(self, text: str) -> np.ndarray:
        return self._model.processor.encode(without_surrogates(text), return_type="numpy")

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        pieces = self._model.pieces
        shown = [
            pieces[i] if 0 <= i < len(pieces) else REPLACEMENT
            for i in np.asarray(ids).tolist()
            if i not in (self.pad_id, self.eos_id)
        ]
        # Decoding pieces, not ids: an unknown piece is copied where an unknown id would raise.
        return self._model.processor.decode(shown) if shown else ""

    def token_bytes(self, i: int) -> bytes:
        _, processor, pieces, sentinels = self._model
        if not 0 <= i < len(pieces) - sentinels:
            return b""
        if processor.is_byte(i):
            return bytes([int(pieces[i][1:-1], 16)])
        if processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i):
            return b""
        return pieces[i].replace("\u2581", " ").encode()

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        lengths = np.array([len(self.token_bytes(i)) for i in range(self.size)], np.int32)
        lengths.flags.writeable = False
        return lengths

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        _, processor, pieces, _ = self._model

        # Decoding a single piece may lose the space in front of it, so the pieces are asked.
        def text(i: int) -> str:
            if not processor.is_byte(i):
                return pieces[i]
            byte = int(pieces[i][1:-1], 16)
            return chr(byte) if byte < 128 else REPLACEMENT

        starts = np.array([_begins_word(text(i)) for i in range(len(pieces))])
        starts.flags.writeable = False
        return starts

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._model.data).hexdigest()[:32]

    def __getstate__(self) -> dict:
        return {"path": self.path, "extra_ids": self.extra_ids}  # workers read the file again


@dataclasses.dataclass(frozen=True)
class ByteVocabulary(Vocabulary):
    """UTF-8 bytes at ids 3..258, then `extra_ids` sentinels: ByT5's ids (arXiv:2105.13626).

    The default makes 384 ids, a multiple of 128.
    """

    extra_ids: Count = 125

    special_tokens: ClassVar = {"<pad>": 0, "</s>": 1}
    named_tokens: ClassVar = {"bos_token": "<pad>", "eos_token": "</s>", "pad_token": "<pad>"}

    @property
    def size(self) -> int:
        return 3 + 256 + self.extra_ids

    @property
    def num_sentinels(self) -> int:
        return self.extra_ids

    def encode(self, text: str) -> np.ndarray:
        parts, start = [], 0
        for match in _SENTINEL.finditer(text):
            if int(match[1]) < self.extra_ids:
                parts.append(_byte_ids(text[start : match.start()]))
                parts.append(np.array([self.sentinel(int(match[1]))], np.int32))
                start = match.end()
        return np.concatenate([*parts, _byte_ids(text[start:])])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        unknown = REPLACEMENT.encode()
        table = [b"", b"", unknown, *(bytes([b]) for b in range(256))]
        table += [f"<extra_id_{i}>".encode() for i in reversed(range(self.extra_ids))]
        shown = (table[i] if 0 <= i < len(table) else unknown for i in np.asarray(ids).tolist())
        return b"".join(shown).decode(errors="replace")

    def token_bytes(self, i: int) -> bytes:
        return bytes([i - 3]) if 3 <= i < 3 + 256 else b""

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        lengths = np.zeros(self.size, np.int32)
        lengths[3 : 3 + 256] = 1
        lengths.flags.writeable = False
        return lengths

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"bytes+{self.extra_ids}".encode()).hexdigest()[:32]


class _Model(NamedTuple):
    data: bytes
    processor: Any  # sentencepiece.SentencePieceProcessor
    pieces: list[str]  # by id
    sentinels: int


def add_sentinels(model: bytes, count: int) -> bytes:
    """Appends user-defined pieces `<extra_id_{count-1}>` .. `<extra_id_0>` to a model file.

    Joining two protocol buffers appends their repeated fields, so the pieces are written behind
    the model as `ModelProto.pieces` (field 1): {1: piece, 2: score 0.0, 3: type USER_DEFINED = 4}.
    """
    parts = [model]
    for i in reversed(range(count)):
        piece = f"<extra_id_{i}>".encode()
        message = b"\x0a" + bytes([len(piece)]) + piece + b"\x15" + bytes(4) + b"\x18\x04"
        parts.append(b"\x0a" + bytes([len(message)]) + message)
    return b"".join(parts)


def _local(path: str | os.PathLike[str]) -> Path:
    """A file on this machine: of a URL, a copy."""
    from t5x_lite.data.files import is_url, local_copy

    return Path(local_copy(os.fspath(path)) if is_url(os.fspath(path)) else path).expanduser()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        near = os.listdir(path.parent) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) or " Train one, or give the path of a .model file."
        raise UserError(f"can't read vocabulary {path}: {error.strerror}.{hint}") from error


def _processor(model: bytes, path):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a SentencePiece model: give a .model file") from error
    found = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if found != (Vocabulary.pad_id, Vocabulary.eos_id, Vocabulary.unk_id):
        raise UserError(
            f"{path} has pad, EOS, unknown ids {found}, expected (0, 1, 2): "
            "use a T5-style model or train one"
        )
    return processor


def _pieces(processor) -> list[str]:
    try:
        return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    except UnicodeDecodeError as error:
        raise UserError(f"a SentencePiece model has a piece that isn't UTF-8: {error}") from error


def _begins_word(text: str) -> bool:
    return not text or not (text[0].isalnum() or text[0] in "_" + REPLACEMENT)


def _byte_ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int32) + 3


def without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text
