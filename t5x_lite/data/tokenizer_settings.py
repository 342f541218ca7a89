"""What the files beside a tokenizer.json say: special tokens, what ends a text, the chat template.

Ids here are those of the files; `HuggingFaceVocabulary` may have id 0 elsewhere.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5x_lite.errors import UserError, did_you_mean

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
GENERATION, MODEL, TEMPLATE = "generation_config.json", "config.json", "chat_template.jinja"
# All that is read here; a copy of a tokenizer.json without them is another tokenizer.
COMPANIONS = (CONFIG, SPECIAL, GENERATION, MODEL, TEMPLATE)
# The ids of a config.json, in a run's folder: config.json itself would make it one of weights.
IDS = "special_ids.json"
_IDS: tuple[str, ...] = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """Of a folder of Hugging Face; empty where it has none of `COMPANIONS`.

    tokens: text by name, such as {"eos_token": "</s>", "bos_token": "<s>"}.
    eos_ids: what `generate` of transformers stops at: generation_config.json's eos_token_id, one or
      several, or else config.json's.
    chat_template: Jinja; None: there is none.
    generation, model: generation_config.json and the ids of config.json, as they are.
    """

    tokens: Mapping[str, str]
    eos_ids: tuple[int, ...]
    chat_template: str | None
    generation: Mapping[str, Any]
    model: Mapping[str, Any]


def read_settings(folder: Path) -> TokenizerSettings:
    """Reads the files of `COMPANIONS` that there are.

    Raises:
      UserError: one of them can't be read, is no JSON object, or names something else than text
        where a token's text belongs, or than ids where ids belong.
    """
    config, special = read_json_object(folder / CONFIG), read_json_object(folder / SPECIAL)
    generation = read_json_object(folder / GENERATION)
    model = read_json_object(folder / MODEL) or read_json_object(folder / IDS)
    tokens: dict[str, str] = {}
    for file, found in ((SPECIAL, special), (CONFIG, config)):  # the latter counts, as there
        for name, value in found.items():
            if name.endswith("_token") and (text := _text(value, folder / file, name)) is not None:
                tokens[name] = text
    ids = {name: model[name] for name in _IDS if name in model}
    source = GENERATION if "eos_token_id" in generation else MODEL
    eos = generation.get("eos_token_id", model.get("eos_token_id"))
    return TokenizerSettings(
        tokens, _ids(eos, folder / source), _template(folder, config), generation, ids
    )


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """As transformers: a file of its own counts more than tokenizer_config.json."""
    data = _bytes(folder / TEMPLATE)
    if data is not None:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{folder / TEMPLATE} is not UTF-8: {error}.") from None
    found = config.get("chat_template")
    where = f"{folder / CONFIG}: chat_template"
    if isinstance(found, list):  # of several, named
        try:
            named = {entry["name"]: entry["template"] for entry in found}
        except (TypeError, KeyError):
            raise UserError(
                f"{where} is a list without names: expected [{{'name': ..., 'template': ...}}]."
            ) from None
        if "default" not in named:
            raise UserError(
                f"{where} names {', '.join(map(str, named)) or 'none'}, and none is 'default'."
                + did_you_mean("default", map(str, named))
            )
        found = named["default"]
    if found is not None and not isinstance(found, str):
        raise UserError(f"{where} is {found!r:.60}, expected text.")
    return found


def _text(value: Any, file: Path, name: str) -> str | None:
    """Of a token: its text, or an object with it as "content"."""
    found = value.get("content") if isinstance(value, Mapping) else value
    if found is None or isinstance(found, bool):  # such as "add_bos_token": true
        return None
    if not isinstance(found, str):
        raise UserError(f"{file}: {name} is {value!r:.60}, expected text.")
    return found


def _ids(value: Any, file: Path) -> tuple[int, ...]:
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in found):
        raise UserError(f"{file}: eos_token_id is {value!r:.60}, expected an id or a list of ids.")
    return tuple(dict.fromkeys(found))


def read_json_object(file: Path) -> dict[str, Any]:
    """Empty if there is no such file; UserError if it is no JSON object."""
    data = _bytes(file)
    if data is None:
        return {}
    try:
        found = json.loads(data)
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is {type(found).__name__}, expected a JSON object.")
    return found


def _bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}.") from error
