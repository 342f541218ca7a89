"""Vocabularies as the tokenizer files of a Hugging Face folder, and back."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from t5x_lite.data.chat import ChatTemplate
from t5x_lite.data.chat_export import as_jinja
from t5x_lite.data.huggingface import HuggingFaceVocabulary
from t5x_lite.data.tokenizer_settings import CONFIG, GENERATION, SPECIAL, TEMPLATE
from t5x_lite.data.trained_vocabulary import TrainedVocabulary
from t5x_lite.data.vocabulary import ByteVocabulary, SentencePieceVocabulary, Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.interop.safetensors_files import read_json
from t5x_lite.interop.sentencepiece_json import template, tokenizer_json
from t5x_lite.models.config import TransformerConfig

log = logging.getLogger(__name__)

JSON, PIECES = "tokenizer.json", "spiece.model"
WORDS = "vocab.txt"  # BERT's word pieces
# Without config.json, which is the model's.
FILES = (CONFIG, JSON, PIECES, WORDS, SPECIAL, "added_tokens.json", GENERATION, TEMPLATE)


def check_size(ids: int, rows: int, what: str) -> None:
    """UserError if a vocabulary has more ids than an embedding has rows."""
    if ids > rows:
        raise UserError(
            f"{what} has {ids:,} ids and the embedding only {rows:,} rows: they don't belong "
            f"together."
        )


def write(
    vocabulary: Vocabulary,
    folder: Path,
    config: TransformerConfig,
    template: ChatTemplate | None = None,
) -> dict[str, Any]:
    """Writes the files, `generation_config.json` among them; returns the ids of config.json.

    A tokenizer.json that has files beside it comes back with them, and with what they say: ids,
    lists of EOS ids, how `generate` samples, the chat template.

    template: of the conversations that the model was trained on; what ends an answer in it ends a
      text in transformers, too. None: the one in the vocabulary's files stays.

    Raises UserError for a vocabulary that transformers has no tokenizer for.
    """
    if isinstance(vocabulary, TrainedVocabulary):
        vocabulary = vocabulary.trained
    starts = not config.has_encoder  # a decoder's text begins with the start token, id 0
    special: dict[str, Any] = {"eos_token_id": int(vocabulary.eos_id)}
    special |= {"bos_token_id": 0} if starts else {}
    if row := swapped_row(vocabulary):
        special = {name: theirs(i, row) for name, i in special.items()}
        special["pad_token_id"] = special["eos_token_id"]
    ends = [theirs(i, row) for i in vocabulary.eos_ids]
    generation: dict[str, Any] = {"pad_token_id": 0} | special
    generation |= {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    if isinstance(vocabulary, HuggingFaceVocabulary) and keeps_ids(vocabulary):
        if (
            is_published(vocabulary)
            and vocabulary._model.tokens[0] not in vocabulary.special_tokens
        ):
            for values in (special, generation):  # its texts have no start token
                values.pop("bos_token_id", None)
        special |= {**_named_ids(vocabulary, row), **vocabulary.settings.model}
        generation |= {**_named_ids(vocabulary, row), **vocabulary.settings.generation}
        if vocabulary.eos:  # chosen instead of what the files say
            special["eos_token_id"] = ends[0]
            generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if isinstance(vocabulary, SentencePieceVocabulary):
        _write_pieces(vocabulary, folder, starts)
    elif isinstance(vocabulary, ByteVocabulary):
        _write_bytes(vocabulary, folder)
    elif isinstance(vocabulary, HuggingFaceVocabulary):
        _write_tokenizers(vocabulary, folder, starts)
    else:
        raise UserError(
            f"{type(vocabulary).__name__} can't be written for Hugging Face: SentencePiece, byte "
            f"and Hugging Face vocabularies can."
        )
    if config.has_encoder:
        generation.setdefault("decoder_start_token_id", 0)
    if template is not None:
        _write_template(template, vocabulary, folder)
        found = generation.get("eos_token_id")
        ends = found if isinstance(found, list) else [] if found is None else [found]
        more = [theirs(i, row) for i in template.stop_ids(vocabulary)]
        ends = list(dict.fromkeys([*ends, *more]))
        generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if config.architecture != "encoder_only":
        _write(folder / GENERATION, dict(sorted(generation.items())))
    return special


def read(folder: Path, rows: int) -> Vocabulary | None:
    """The vocabulary of a folder; None if it has no tokenizer files that are known here, or some
    that don't fit: with ordinary text at id 0.

    Raises UserError if it has more ids than the embedding has ``rows``.
    """
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    vocabulary: Vocabulary | None = None
    described = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if described.get("model_type") == "xlnet" and described.get("pad_token_id", 5) != 0:
        log.warning("XLNet's tokenizer in %s has padding at id 5, not 0: it isn't used.", folder)
        return None
    if _is_bytes(settings):
        named = settings.get("additional_special_tokens") or ()
        sentinels = sum("extra_id" in str(name) for name in named)
        vocabulary = ByteVocabulary(sentinels or int(settings.get("extra_ids", 125)))
    elif (folder / PIECES).is_file():
        vocabulary = SentencePieceVocabulary(str(folder / PIECES))
    elif (folder / JSON).is_file() or (folder / WORDS).is_file():
        name = JSON if (folder / JSON).is_file() else WORDS
        vocabulary = HuggingFaceVocabulary(str(folder / name))
        if vocabulary._model.zero and not vocabulary._model.swapped:
            log.warning(
                "%s has ordinary text at id 0, which is padding here: it isn't used. Use it "
                "through transformers, and keep its id 0 out of batches.",
                folder / JSON,
            )
            return None
    if vocabulary is not None:
        check_size(vocabulary.size, rows, f"the tokenizer in {folder}")
    return vocabulary


def text_at_zero(folder: Path) -> str | None:
    """The ordinary text that a folder's tokenizer has at id 0 and that can't change places; None if
    there is none, or no tokenizer that can be read here."""
    if (folder / PIECES).is_file() or not (folder / JSON).is_file():
        return None
    try:
        model = HuggingFaceVocabulary(str(folder / JSON))._model
    except UserError:
        return None
    return model.tokens[-1] if model.zero and not model.swapped else None


def swapped_row(vocabulary: Vocabulary | None) -> int:
    """The id that has changed places with id 0 of the vocabulary's file; 0: none has."""
    if not isinstance(vocabulary, HuggingFaceVocabulary):
        return 0
    return vocabulary._model.zero if vocabulary._model.swapped else 0


def theirs(i: int, row: int) -> int:
    """An id, as the file has it that has `swapped_row` ``row``."""
    return {0: row, row: 0}.get(i, i)


def swapped_row_of(folder: Path) -> int | None:
    """`swapped_row` of a folder's vocabulary; None if it has no file of one that is read here."""
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if _is_bytes(settings) or (folder / PIECES).is_file():
        return 0
    if (folder / JSON).is_file():
        return swapped_row(HuggingFaceVocabulary(str(folder / JSON)))
    return 0 if (folder / WORDS).is_file() else None


def _is_bytes(settings: dict[str, Any]) -> bool:
    return str(settings.get("tokenizer_class", "")).startswith("ByT5")


# ------------------------------------------------------------------------------------ the kinds


def _write_pieces(vocabulary: SentencePieceVocabulary, folder: Path, starts: bool) -> None:
    model = vocabulary._model
    (folder / PIECES).write_bytes(model.data)  # with its sentinels, for whoever reads it directly
    _write(folder / JSON, tokenizer_json(model.data, start=starts))
    pad, eos, unknown = model.pieces[:3]
    sentinels = [f"<extra_id_{i}>" for i in range(vocabulary.num_sentinels)]
    _write_settings(folder, "PreTrainedTokenizerFast", (pad, eos, unknown), sentinels, starts)


def _write_settings(folder: Path, kind: str, tokens, sentinels: list[str], starts: bool, **more):
    pad, eos, unknown = tokens
    special: dict[str, Any] = {"pad_token": pad, "eos_token": eos, "unk_token": unknown}
    if starts:
        special["bos_token"] = pad
    if sentinels:
        special["additional_special_tokens"] = sentinels
    _write(folder / "special_tokens_map.json", special)
    settings = special | {
        "tokenizer_class": kind,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**9,
        "model_input_names": ["input_ids", "attention_mask"],
        **more,
    }
    if starts:
        settings["padding_side"] = "left"  # texts are continued at their right end
    _write(folder / CONFIG, settings)


def _write_bytes(vocabulary: ByteVocabulary, folder: Path) -> None:
    sentinels = [f"<extra_id_{i}>" for i in range(vocabulary.num_sentinels)]
    tokens = ("<pad>", "</s>", "<unk>")
    # Its own order of sentinels would be from the bottom up.
    added = {str(i): token for i, token in enumerate(tokens)}
    added |= {str(vocabulary.sentinel(i)): token for i, token in enumerate(sentinels)}
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {i: {"content": token, "special": True, **flags} for i, token in added.items()}
    _write_settings(
        folder, "ByT5Tokenizer", tokens, sentinels, False, extra_ids=len(sentinels),
        added_tokens_decoder=decoder,
    )  # fmt: skip


def _write_tokenizers(vocabulary: HuggingFaceVocabulary, folder: Path, starts: bool) -> None:
    model = vocabulary._model
    spec = json.loads(model.data)
    moved = model.zero and not model.swapped
    if moved:
        _move_first(spec, model.tokens, Path(vocabulary.path))
    for i in range(model.added):
        spec.setdefault("added_tokens", []).append(
            _token(vocabulary.size - 1 - i, f"<extra_id_{i}>")
        )
    spec.get("added_tokens", []).sort(key=lambda token: token["id"])
    published = is_published(vocabulary)
    eos, start = model.tokens[vocabulary.eos_id], model.tokens[0] or "<pad>"
    framed = special_names(vocabulary)  # a text is put between two of them, as BERT's is
    if not published and not (framed and spec.get("post_processor")):
        begin, end = (theirs(i, swapped_row(vocabulary)) for i in (0, vocabulary.eos_id))
        spec["post_processor"] = (
            template(start, begin, True) if starts else template(eos, end, False)
        )
    if spec == json.loads(model.data):
        (folder / JSON).write_bytes(model.data)  # to the byte: its digest is the vocabulary's
    else:
        _write(folder / JSON, spec)
    if published:  # with its settings beside it: as its makers want it
        beside = Path(vocabulary.path).expanduser().parent
        for name in (SPECIAL, TEMPLATE):
            if (beside / name).is_file():
                shutil.copyfile(beside / name, folder / name)
        said = read_json(beside / CONFIG)
        _write(folder / CONFIG, said | ({"eos_token": vocabulary.eos} if vocabulary.eos else {}))
        return
    sentinels = [f"<extra_id_{i}>" for i in range(vocabulary.num_sentinels)]
    # A byte isn't named: wherever a text has its name, that would be the token.
    pad = eos if model.swapped else start
    tokens = (pad, eos, framed.pop("unk_token", eos))
    if starts and start in model.special:
        framed["bos_token"] = start
    _write_settings(folder, "PreTrainedTokenizerFast", tokens, sentinels, starts, **framed)


def _write_template(template: ChatTemplate, vocabulary: Vocabulary, folder: Path) -> None:
    """As a file of its own, which counts more than what tokenizer_config.json may say."""
    text = as_jinja(template, vocabulary)
    (folder / TEMPLATE).write_text(text, encoding="utf-8", newline="")
    settings = read_json(folder / CONFIG)
    if settings.pop("chat_template", text) != text:
        _write(folder / CONFIG, settings)


def is_published(vocabulary: HuggingFaceVocabulary) -> bool:
    """Whether a tokenizer is written as it was, with its settings: they lie beside it, and padding
    has a place."""
    settings = Path(vocabulary.path).expanduser().with_name(CONFIG)
    return settings.is_file() and keeps_ids(vocabulary)


def keeps_ids(vocabulary: HuggingFaceVocabulary) -> bool:
    """Whether a tokenizer is written with the ids of its file."""
    return vocabulary._model.swapped or not vocabulary._model.zero


def _named_ids(vocabulary: HuggingFaceVocabulary, row: int) -> dict[str, int]:
    """The ids of the tokens that the settings name."""
    known = {token: i for i, token in enumerate(vocabulary._model.tokens)}
    named = {name: known.get(vocabulary.settings.tokens.get(f"{name}_token", ""))
             for name in ("bos", "eos", "pad")}  # fmt: skip
    return {f"{name}_token_id": theirs(i, row) for name, i in named.items() if i is not None}


def special_names(vocabulary: HuggingFaceVocabulary) -> dict[str, str]:
    """{"mask_token": "[MASK]", ...} of those that BERT has; {} unless it has them all."""
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names["mask_token"] = "[MASK]"
    known = all(vocabulary.special_id(token) is not None for token in names.values())
    return names if known else {}


def _move_first(spec: dict[str, Any], tokens: list, path: Path) -> None:
    """Padding takes id 0, and the token that was there goes to the end, as it does here."""
    vocab = spec["model"].get("vocab")
    if not isinstance(vocab, dict) or "<pad>" in vocab:
        raise UserError(f"{path} has an ordinary token at id 0 and can't be written with padding.")
    vocab[tokens[-1]] = len(tokens) - 1
    vocab["<pad>"] = 0
    added = spec.setdefault("added_tokens", [])
    # Named in the model, too: the ids of others are counted from its size, whatever the file says.
    vocab.update({token["content"]: token["id"] for token in added})
    added.append(_token(0, "<pad>"))


def _token(i: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": content, "special": True, **flags}


def _write(file: Path, values: Any) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
