"""What is known of weights beside their numbers: what they read, and with which vocabulary."""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from t5x_lite.data.reading import Reading, default_reading, objective_reading, reading_from
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.interop import huggingface, runs, t5x, tokenizer_files
from t5x_lite.training import checkpoint_layout as layout

log = logging.getLogger(__name__)


class Origin(NamedTuple):
    """reading: None where nothing says it. recorded: the fingerprint of the vocabulary, if it is
    written beside the weights. vocabulary: makes the vocabulary itself, or None where no file has
    it; UserError if its file isn't what it was."""

    path: str
    reading: Reading | None
    recorded: str | None
    vocabulary: Callable[[], Vocabulary | None]

    @property
    def fingerprint(self) -> str | None:
        """Of the vocabulary that the weights were trained with; None: nothing says it."""
        if self.recorded is not None:
            return self.recorded
        try:
            found = self.vocabulary()
        except UserError:
            return None
        return found.fingerprint if found is not None else None


def origin_of(path: str | os.PathLike, architecture: str, rows: int) -> Origin:
    """Looks at a run, a checkpoint, a folder of Hugging Face or a checkpoint of T5X.

    rows: of the embedding. A checkpoint that an earlier version wrote has no reading: its
    configuration's objective then says it.
    """
    path = os.fspath(path)
    local = Path(path).expanduser()
    if "://" not in path and huggingface.is_folder(local):
        read = functools.cache(lambda: tokenizer_files.read(local, rows))
        return Origin(path, default_reading(architecture), None, read)
    if "://" not in path and t5x.find(local) is not None:
        known = None if architecture == "decoder_only" else default_reading(architecture)
        return Origin(path, known, None, lambda: None)
    absolute = layout.absolute(path)
    run = layout.read_description(layout.find_checkpoint(absolute)).get("run", {})
    return Origin(
        path,
        _recorded_reading(run, architecture),
        run.get("vocabulary"),
        lambda: runs.vocabulary(absolute, rows),
    )


def require_exportable(attention: str | None, what: str, as_causal: bool = False) -> None:
    """UserError, or with ``as_causal`` a warning, if transformers has no class that reads so."""
    if attention != "bidirectional":
        return
    told = (
        f"{what} is a prefix LM: its prompts are read with a bidirectional mask, and EOS behind "
        "them. transformers' decoders have a causal mask"
    )
    if not as_causal:
        raise UserError(
            f"{told}: their answers would be others. Train with TextToText.prefix = 'causal', or "
            "write the weights all the same with --as_causal."
        )
    log.warning("%s: answers will be others there.", told)


def _recorded_reading(run: dict[str, Any], architecture: str) -> Reading | None:
    if "reading" in run:
        return reading_from(run["reading"])
    if "converted_from" in run or architecture != "decoder_only":
        return default_reading(architecture)
    objective = _configured(run.get("config"), "objective")
    return objective and objective_reading(objective, architecture)


def _configured(text: str | None, parameter: str) -> Any:
    """`runs.configured`; None if there is no configuration, or it can't be made here."""
    if not text:
        return None
    try:
        return runs.configured(text, parameter)
    except UserError:
        return None
