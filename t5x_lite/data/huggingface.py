"""Vocabularies in the formats of Hugging Face's `tokenizers`: GPT-2, Llama, BERT, T5, ..."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5x_lite.data.chat_jinja import END, MARK
from t5x_lite.data.tokenizer_settings import (
    CONFIG,
    TokenizerSettings,
    read_json_object,
    read_settings,
)
from t5x_lite.data.vocabulary import REPLACEMENT, Vocabulary, _begins_word, _read
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.lines import split_lines
from t5x_lite.ranges import Count

_SENTINEL = re.compile(r"<extra_id_(\d+)>")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Names that tokenizers without any file beside them give to their end of text.
_EOS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]", "<|im_end|>")


@dataclasses.dataclass(frozen=True)
class HuggingFaceVocabulary(Vocabulary):
    """A `tokenizer.json` or BERT's `vocab.txt`, read on first use. Needs the package `tokenizers`.

    path: the file. With a `vocab.txt` goes the do_lower_case of the tokenizer_config.json beside
      it, true if there is none.
    extra_ids: sentinels added above its ids; None: none, or those `<extra_id_*>` that it holds.
    eos: text of the token that ends a document; None: what the files beside it say (eos_token of
      tokenizer_config.json or special_tokens_map.json, eos_token_id of generation_config.json or
      config.json, sep_token), or else the first there is of </s>, <|endoftext|>, <|end_of_text|>,
      <eos>, [SEP], <|im_end|>.

    Ids are the file's, with one exception: 0 is padding, and what a decoder's text starts
    with. So the file's token 0 changes places with the one that its own texts start with (Llama's
    <s>); else, if a text may hold it (GPT-2's "!") or end with it, with a byte that UTF-8 doesn't
    have. Where there is no such byte it moves behind the file's last id, below the added sentinels.
    No special token is ever made of a text: a "</s>" in it is read letter by letter.
    What a model writes ends at `eos_ids`: its EOS, and each eos_token_id of those files.

    Raises UserError on first use if the package or the file is missing, if it is no tokenizer, has
    no such `eos`, or has sentinels elsewhere than at the top.
    """

    path: str | os.PathLike[str]
    extra_ids: Count | None = None
    eos: str | None = None

    @functools.cached_property
    def _model(self) -> "_Model":
        path = Path(self.path).expanduser()
        data = _word_pieces(path) if path.suffix == ".txt" else _read(path)
        tokenizer, spec = _tokenizer(data, self.path)
        tokens = tokenizer.get_vocab(with_added_tokens=True)
        special = {t["content"] for t in spec.get("added_tokens", ()) if t["special"]}
        size = max(tokens.values(), default=0) + 1
        by_id: list[str | None] = [None] * size
        for token, i in tokens.items():
            by_id[i] = token
        held = self._held_sentinels(by_id)
        eos = self._end_of_text(tokens, by_id, special)
        model = spec.get("model", {})
        unknown = model.get("unk_token")
        if (unk_id := model.get("unk_id")) is not None:  # unigram models name it so
            unknown = by_id[unk_id]
        kinds = json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
        byte_level, byte_fallback = '"ByteLevel"' in kinds, bool(model.get("byte_fallback"))
        # A text can hold id 0 unless it is special; an unknown token can, without byte fallback.
        held_at_0 = by_id[0] not in special or (by_id[0] == unknown and not byte_fallback)
        zero = _place_of_zero(spec, tokens, eos, byte_level, held_at_0)
        if zero == size and held:
            raise UserError(
                f"{self.path} has {by_id[0]!r} at id 0, where padding is, and sentinels at the top"
            )
        if zero == size:
            by_id.append(None)
        by_id[0], by_id[zero] = by_id[zero], by_id[0]
        added = 0 if held else self.extra_ids or 0
        return _Model(
            tokenizer, data, by_id, special, held + added, added, zero,
            swapped=0 < zero < size, eos=eos or zero, unk=tokens.get(unknown, eos) or zero or eos,
            byte_level=byte_level, byte_fallback=byte_fallback,
        )  # fmt: skip

    @functools.cached_property
    def settings(self) -> TokenizerSettings:
        """What the files beside it say."""
        return read_settings(Path(self.path).expanduser().parent)

    def _end_of_text(self, tokens: dict[str, int], by_id: list, special: set[str]) -> int:
        """The file's id of EOS. Raises UserError if nothing says it."""
        named, ids = self.settings.tokens, self.settings.eos_ids
        wanted = self.eos or named.get("eos_token")
        if wanted is None:
            known = [i for i in ids if 0 <= i < len(by_id) and by_id[i] is not None]
            sep = tokens.get(named.get("sep_token", ""))
            found = known[0] if known else _first(tokens, _EOS) if sep is None else sep
        else:
            found = tokens.get(wanted)
        if found is None:
            who = "" if self.eos or wanted is None else ", which the files beside it name"
            raise UserError(
                f"{self.path} has no end-of-text token {wanted or ' or '.join(_EOS)!r}{who}: set "
                f"HuggingFaceVocabulary.eos to one of its special tokens"
                f"{did_you_mean(wanted or '', special)}"
            )
        return found

    def _held_sentinels(self, by_id: list[str | None]) -> int:
        held, last = sum(bool(_SENTINEL.fullmatch(token or "")) for token in by_id), len(by_id) - 1
        if held and any(by_id[last - i] != f"<extra_id_{i}>" for i in range(held)):
            raise UserError(
                f"{self.path} has {held} <extra_id_*> tokens that aren't its last ids, counting "
                "down: take them out, sentinels are added when it is read"
            )
        if held and self.extra_ids not in (None, held):
            raise UserError(
                f"{self.path} holds {held} <extra_id_*> tokens, extra_ids is {self.extra_ids}: "
                "leave extra_ids out"
            )
        return held

    @property
    def eos_id(self) -> int:  # type: ignore[override]
        return self._model.eos

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:  # type: ignore[override]
        more = [self._ours(i) for i in self.settings.eos_ids]
        return tuple(dict.fromkeys((self.eos_id, *more)))

    def _ours(self, i: int) -> int:
        """An id of the file's as this vocabulary has it."""
        zero, swapped = self._model.zero, self._model.swapped
        return zero if i == 0 else 0 if swapped and i == zero else i

    @property
    def unk_id(self) -> int:  # type: ignore[override]
        return self._model.unk

    @property
    def size(self) -> int:
        return len(self._model.tokens) + self._model.added

    def special_id(self, token: str) -> int | None:
        return self._special_ids.get(token)

    @functools.cached_property
    def _special_ids(self) -> dict[str, int]:
        held = self._model.special
        return {t: i for i, t in enumerate(self._model.tokens) if t is not None and t in held}

    @property
    def special_tokens(self) -> dict[str, int]:
        return self._special_ids

    @functools.cached_property
    def named_tokens(self) -> dict[str, str]:
        eos = self._model.tokens[self.eos_id]
        return {**self.settings.tokens, "eos_token": self.eos or eos}

    @property
    def chat_template(self) -> str | None:
        return self.settings.chat_template

    def encode_marked(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of marked text (see `chat_jinja`), both int32 [tokens], and where each begins.

        All in one go, as transformers tokenizes a rendered chat template, so that what is around a
        special token is read as there.
        """
        tokenizer, ours = self._marking
        found = tokenizer.encode(text.encode(errors="replace").decode(), add_special_tokens=False)
        starts = np.array([start for start, _ in found.offsets], np.int32)
        return ours[np.array(found.ids, np.int32)], starts

    @functools.cached_property
    def _marking(self) -> tuple[Any, np.ndarray]:
        """A tokenizer whose special tokens are spelt between marks, and our ids by its own."""
        spec = json.loads(self._model.data)
        for token in spec.get("added_tokens", ()):
            if token["special"]:
                token["content"] = f"{MARK}{token['content']}{END}"
        spec["post_processor"] = None  # it may name them, and would trim offsets
        tokenizer, _ = _tokenizer(json.dumps(spec).encode(), self.path)
        tokenizer.encode_special_tokens = False
        known = tokenizer.get_vocab(with_added_tokens=True)
        ours = np.zeros(max(known.values()) + 1, np.int32)
        for token, i in known.items():
            name = token.removeprefix(MARK).removesuffix(END)
            ours[i] = self._ours(self._model.tokenizer.token_to_id(name))
        return tokenizer, ours

    @property
    def num_sentinels(self) -> int:
        return self._model.sentinels

    def encode(self, text: str) -> np.ndarray:
        text = text.encode(errors="replace").decode()
        parts, start = [], 0
        for match in _SENTINEL.finditer(text):
            if int(match[1]) < self.num_sentinels:
                parts.append(self._ids(text[start : match.start()]))
                parts.append(np.array([self.sentinel(int(match[1]))], np.int32))
                start = match.end()
        return np.concatenate([*parts, self._ids(text[start:])])

    def _ids(self, text: str) -> np.ndarray:
        if not text:
            return np.zeros(0, np.int32)
        found = self._model.tokenizer.encode(text, add_special_tokens=False).ids
        ids = np.array(found, np.int32)
        ids[ids == 0] = self._model.zero
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        model, size, shown = self._model, self.size, []
        left_out = (self.pad_id, *self.eos_ids)
        kept = [i for i in np.asarray(ids).tolist() if i not in left_out]

        def kind(i: int) -> str:
            if not 0 <= i < size:
                return "none"
            return "sentinel" if i >= size - model.sentinels else "text"

        for what, group in itertools.groupby(kept, kind):
            if what == "none":
                shown += [REPLACEMENT] * len(list(group))
            elif what == "sentinel":
                shown += [f"<extra_id_{size - 1 - i}>" for i in group]
            else:
                text = [0 if i == model.zero else i for i in group]
                shown.append(model.tokenizer.decode(text, skip_special_tokens=False))
        return "".join(shown)

    def token_bytes(self, i: int) -> bytes:
        ends = i in (self.pad_id, *self.eos_ids)
        return b"" if ends or not 0 <= i < len(self._texts) else self._texts[i]

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """As of every `Vocabulary`; where the tokenizer drops spaces (BERT), without these."""
        lengths = np.zeros(self.size, np.int32)
        for i, text in enumerate(self._texts):
            lengths[i] = len(text)
        lengths[[self.pad_id, *(i for i in self.eos_ids if 0 <= i < self.size)]] = 0
        lengths.flags.writeable = False
        return lengths

    @functools.cached_property
    def word_starts(self) -> np.ndarray:
        starts = np.ones(self.size, bool)
        for i, (token, text) in enumerate(zip(self._model.tokens, self._texts, strict=True)):
            first = chr(text[0]) if text and text[0] < 128 else REPLACEMENT * len(text[:1])
            starts[i] = _begins_word(first) or _is_word_piece_start(self._model, token)
        starts.flags.writeable = False
        return starts

    @functools.cached_property
    def _texts(self) -> list[bytes]:
        """What each id of the file stands for: b"" for special tokens and unused ids."""
        model, table = self._model, _byte_of_character()
        texts = []
        for token in model.tokens:
            if token is None or token in model.special or _SENTINEL.fullmatch(token):
                texts.append(b"")
            elif model.byte_level and all(c in table for c in token):
                texts.append(bytes(table[c] for c in token))
            elif model.byte_fallback and (found := _BYTE.fullmatch(token)):
                texts.append(bytes([int(found[1], 16)]))
            else:
                texts.append(token.removeprefix("##").replace("\u2581", " ").encode())
        return texts

    @functools.cached_property
    def fingerprint(self) -> str:
        settings = f"{self._model.added} {self.eos_id}"
        if self._model.swapped:
            settings += f" {self._model.zero}"
        return hashlib.sha256(self._model.data + settings.encode()).hexdigest()[:32]

    def __getstate__(self) -> dict:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


class _Model(NamedTuple):
    tokenizer: Any  # tokenizers.Tokenizer
    data: bytes
    tokens: list[str | None]  # by id, without added sentinels
    special: set[str]
    sentinels: int
    added: int  # of the sentinels
    zero: int  # where the file's token 0 is in `tokens`
    swapped: bool  # it has changed places with another; False: it stayed, or is behind the last
    eos: int
    unk: int
    byte_level: bool
    byte_fallback: bool


def _package() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "HuggingFaceVocabulary needs the package tokenizers: pip install 't5x_lite[hf]'"
        ) from error
    return tokenizers


_BERT_FLAGS = {"do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize"}
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _word_pieces(path: Path) -> bytes:
    """The tokenizer.json of BERT's tokenizer with the pieces of a vocab.txt, one a line."""
    tokenizers = _package()
    try:
        lines = split_lines(_read(path).decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}; convert or fetch it again.") from error
    pieces = {line: i for i, line in enumerate(lines)}  # its line number is a piece's id
    missing = [token for token in BERT_TOKENS if token not in pieces]
    if missing or pieces["[PAD]"] != 0:
        raise UserError(
            f"{path} isn't a vocabulary of BERT's: expected [PAD] in its first line, and "
            f"{', '.join(missing or BERT_TOKENS[1:])} below."
        )
    settings = read_json_object(path.with_name(CONFIG))
    for name in _BERT_FLAGS & settings.keys():
        found = settings[name]
        if not isinstance(found, bool) and (found is not None or name != "strip_accents"):
            raise UserError(
                f"{path.with_name(CONFIG)}: {name} is {found!r:.60}, expected true or false."
            )
    if settings.get("do_basic_tokenize") is False:
        raise UserError(
            f"{path.with_name(CONFIG)}: do_basic_tokenize = false isn't supported: words are "
            "always cut at punctuation here; give a tokenizer.json."
        )
    model = tokenizers.models.WordPiece(pieces, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),  # None: as lowercase
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, pieces[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(BERT_TOKENS))
    return tokenizer.to_str().encode()


def _tokenizer(data: bytes, path) -> tuple[Any, dict]:
    tokenizers = _package()
    try:
        tokenizer, spec = tokenizers.Tokenizer.from_str(data.decode()), json.loads(data)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(
            f"{path} is not a tokenizer of Hugging Face: give a tokenizer.json ({error})"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer, spec


def _first(tokens: dict[str, int], names: Sequence[str]) -> int | None:
    return next((tokens[name] for name in names if name in tokens), None)


def _place_of_zero(
    spec: dict, tokens: dict[str, int], eos: int, byte_level: bool, held_at_0: bool
) -> int:
    """The id of the file's token 0: 0, or of the token with which it changes places, or a new one.

    held_at_0: whether a text may hold it.
    """
    start = _start(spec.get("post_processor") or {})
    if start is not None and start not in (0, eos):
        return start
    if not held_at_0 and eos != 0:
        return 0
    character = {byte: character for character, byte in _byte_of_character().items()}
    free = (tokens.get(character[b]) for b in (0xC0, 0xC1, *range(0xF5, 0x100)))
    found = next((i for i in free if i), None) if byte_level else None
    return max(tokens.values()) + 1 if found is None else found


def _start(processor: dict) -> int | None:
    """The id of the special token that a decoder's texts begin with; None if they don't."""
    for each in processor.get("processors", [processor]):
        parts = each.get("single") if each.get("type") == "TemplateProcessing" else None
        if parts and "SpecialToken" in parts[0] and "SpecialToken" not in parts[-1]:
            return each["special_tokens"][parts[0]["SpecialToken"]["id"]]["ids"][0]
    return None


def _is_word_piece_start(model: _Model, token: str | None) -> bool:
    """BERT's marks what goes on with a word, not what begins one."""
    kind = type(model.tokenizer.model).__name__
    return kind == "WordPiece" and token is not None and not token.startswith("##")


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's stand-ins for bytes: printable ones for themselves, others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
