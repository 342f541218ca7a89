"""The vocabulary that a run's folder carries with it, and where its config.gin finds it.

  RUN/vocabulary.json     {"fingerprint", "kind", "path", "file"}: written when the run starts
  RUN/vocabulary.model    or tokenizer.json, vocab.txt and what goes with them: the file itself

`path` is what the configuration says, which may be relative to a folder that nobody knows any
more; `file` is its copy beside it. A run can so be moved, copied, and used from anywhere.
"""

import json
import os
from pathlib import Path
from typing import Any

from t5x_lite import evidence

FILE = "vocabulary.json"
MODEL = "vocabulary.model"
MADE_OF = "vocabulary.made_of"  # of what text and settings TrainedVocabulary made the file
# What a Hugging Face tokenizer may have beside its file.
BESIDE = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "chat_template.jinja",
)  # fmt: skip
IDS = "special_ids.json"  # what is read in the place of config.json, which is the model's
CARRIED = (FILE, MODEL, "tokenizer.json", "vocab.txt", *BESIDE, IDS)


def carry(model_dir: str, vocabulary: Any) -> None:
    """Writes a run's vocabulary into its folder; one process does it for all.

    Bytes need no file, and of a user's own class none is known.
    """
    from etils import epath

    folder, kind = epath.Path(model_dir), type(vocabulary).__name__
    record = {"fingerprint": vocabulary.fingerprint, "kind": kind, "path": None, "file": None}
    path = getattr(vocabulary, "path", None)
    if kind in ("SentencePieceVocabulary", "TrainedVocabulary"):
        model = getattr(vocabulary, "trained", vocabulary)
        record |= {"path": path and os.fspath(path), "file": MODEL}
        if not _same_file(path, folder / MODEL):
            _write(folder / MODEL, model._model.data)
    elif kind == "HuggingFaceVocabulary":
        path = epath.Path(path).expanduser()
        name = "vocab.txt" if path.suffix == ".txt" else "tokenizer.json"
        record |= {"path": os.fspath(vocabulary.path), "file": name}
        for source, to in [(path, name), *((path.parent / n, n) for n in BESIDE)]:
            if source.exists() and not _same_file(source, folder / to):
                _write(folder / to, source.read_bytes())
        if ids := vocabulary.settings.model:
            _write(folder / IDS, (json.dumps(dict(ids)) + "\n").encode())
    _write(folder / FILE, (json.dumps(record, indent=1) + "\n").encode())


def _same_file(path: Any, other: Any) -> bool:
    return path is not None and other.exists() and os.path.abspath(path) == os.path.abspath(other)


def _write(file: Any, data: bytes) -> None:
    """Whole or not at all; a file that is right already isn't touched."""
    if file.exists() and file.read_bytes() == data:
        return
    beside = file.parent / f"{file.name}.tmp"
    beside.write_bytes(data)
    beside.replace(file)


def record_of(folder: str) -> dict[str, Any]:
    """What vocabulary.json in a run's folder says; {} if there is none that can be used."""
    if "://" in folder:
        from etils import epath

        file: Any = epath.Path(folder) / FILE
    else:
        file = Path(folder) / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def places(folder: str) -> dict[str, str]:
    """{path in the configuration: where its file is now}, of a run's folder."""
    if "://" in folder:  # reading a configuration asks no network
        return {}
    found = record_of(folder)
    path, file = found.get("path"), found.get("file")
    if not isinstance(path, str) or not isinstance(file, str):
        return {}
    here = file if os.path.isabs(file) else f"{folder.rstrip('/') or '.'}/{file}"
    return {path: here} if evidence.exists(here) else {}


def trained_file(folder: str) -> str | None:
    """The file of a vocabulary that was trained without a place of its own; None: it has one."""
    found = record_of(folder)
    if found.get("kind") != "TrainedVocabulary" or found.get("path") is not None:
        return None
    return f"{folder.rstrip('/') or '.'}/{found.get('file')}"


def refer(folder: Any, other: str) -> None:
    """Makes another folder's config.gin find the vocabulary of the run in `folder`."""
    found = record_of(os.fspath(folder))
    if found.get("file"):
        file = os.path.join(os.path.abspath(folder), found["file"])
        (Path(other) / FILE).write_text(json.dumps(found | {"file": file}))
