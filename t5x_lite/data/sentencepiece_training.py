"""Training of SentencePiece models with T5's layout of ids."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from t5x_lite.data.vocabulary import (
    SentencePieceVocabulary,
    Vocabulary,
    add_sentinels,
    without_surrogates,
)
from t5x_lite.errors import UserError
from t5x_lite.ranges import Count, Positive, Share


def train_sentencepiece(
    texts: Iterable[str],
    model_path: str | os.PathLike[str],
    size: Positive,
    model_type: str = "unigram",
    extra_ids: Count = 100,
    lossless: bool = True,
    character_coverage: Share = 0.9995,
    max_bytes: Positive = 100_000_000,
    user_symbols: Sequence[str] = (),
) -> SentencePieceVocabulary:
    """Trains a SentencePiece model on `texts`, writes it to `model_path` and returns it.

    size: final number of ids: pad, EOS, unknown, 256 bytes (what no piece covers is spelt in
      them), learned pieces and `extra_ids` sentinels.
    model_type: "unigram" (Kudo, arXiv:1804.10959) or "bpe", which trains ten times as fast.
    lossless: keep every character, so that `decode(encode(text)) == text` (save U+2581); False
      prepares text as T5's models do: NFKC, runs of whitespace to one space, a space in front.
    max_bytes: `texts` are read up to so many UTF-8 bytes; training holds them all in memory.
    user_symbols: strings that are single pieces wherever they occur in a text, such as the mode
      tokens of UL2 or the marks of fill-in-the-middle; they get the ids from 3 on.

    The same texts and arguments give the same file on any number of cores. The file appears whole
    or not at all. Raises UserError if it exists, or if the texts can't fill `size` ids.
    """
    path = Path(model_path).expanduser()
    if path.exists():
        raise UserError(f"{path} exists already: delete it or give another path")
    if model_type not in ("unigram", "bpe"):
        raise UserError(f"model_type is {model_type!r}, expected 'unigram' or 'bpe'")
    sentences = list(_sentences(texts, max_bytes))
    if not sentences:
        raise UserError("no text to train a vocabulary on: the texts are empty")
    try:
        model = _train(
            sentences,
            vocab_size=size - extra_ids,
            model_type=model_type,
            character_coverage=character_coverage,
            user_defined_symbols=list(user_symbols),
            normalization_rule_name="identity" if lossless else "nmt_nfkc",
            remove_extra_whitespaces=not lossless,
            add_dummy_prefix=not lossless,
            allow_whitespace_only_pieces=lossless,
        )
    except RuntimeError as error:
        raise UserError(_training_advice(str(error), size, extra_ids)) from error

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(add_sentinels(model, extra_ids))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return SentencePieceVocabulary(str(path), extra_ids)


def _train(sentences: list[str], **options: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        byte_fallback=True,
        pad_id=Vocabulary.pad_id,
        eos_id=Vocabulary.eos_id,
        unk_id=Vocabulary.unk_id,
        bos_id=-1,
        num_threads=4,  # fixed: the sums, and so the pieces, depend on it
        # Half the time of SentencePiece's 2 and 0.75, and no longer texts (0.2 % shorter on
        # 12 MB of Python).
        num_sub_iterations=1,
        shrinking_factor=0.6,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def _sentences(texts: Iterable[str], max_bytes: int, length: int = 1000) -> Iterator[str]:
    """Cuts texts after line ends (else anywhere) to `length` characters: SentencePiece silently
    skips what is over 4,192 bytes."""
    left = max_bytes
    for text in texts:
        text, start = without_surrogates(text), 0
        while start < len(text):
            end = start + length
            if end < len(text):
                end = text.rfind("\n", start, end) + 1 or end
            sentence = text[start:end]
            start, left = end, left - len(sentence.encode())
            if left < 0:
                return
            yield sentence


def _training_advice(error: str, size: int, extra_ids: int) -> str:
    if too_high := re.search(r"value <= (\d+)", error):
        fits = int(too_high[1]) + extra_ids
        return f"the texts hold too few pieces for {size} ids: at most {fits}, or more text"
    if too_low := re.search(r"required_chars\. \d+ vs (\d+)", error):
        needed = int(too_low[1]) + extra_ids
        return f"{size} ids are too few for the characters of the texts: at least {needed}"
    return f"SentencePiece can't train {size} ids ({extra_ids} of them sentinels): {error.strip()}"
