"""A run's config.gin read where the run is now: its folder may have been moved or copied."""

import dataclasses
import os
from collections.abc import Sequence

from t5x_lite import run_vocabulary
from t5x_lite.config_checks import MACRO, Binding
from t5x_lite.gin_files import is_url

_TRAINED = "t5x_lite.TrainedVocabulary"


def run_folder(path: str) -> str | None:
    """The folder of the run whose config.gin a file is; None if it is another file."""
    folder, name = os.path.split(path)
    if name != "config.gin" or path.startswith(("http://", "https://")):  # no folders there
        return None
    if is_url(path):
        from etils import epath

        return folder if (epath.Path(folder) / "run.json").exists() else None
    return folder or "." if os.path.isfile(os.path.join(folder, "run.json")) else None


def relocated(bindings: Sequence[Binding], folder: str) -> list[Binding]:
    """The bindings of a run's config.gin, with the run's folder and vocabulary where they are.

    What was written for MODEL_DIR (or train.model_dir) becomes `folder`, unless it is that folder
    already; the vocabulary's path becomes that of the copy that the folder carries.
    """
    places = run_vocabulary.places(folder)
    for written in [b.value for b in bindings if _names_the_run(b)]:
        if isinstance(written, str) and not _same_folder(written, folder):
            places[written.rstrip("/")] = folder
            places[written] = folder
    moved = [dataclasses.replace(b, value=_place(b.value, places)) for b in bindings]
    trained = run_vocabulary.trained_file(folder)
    if trained is not None:
        moved.append(Binding("", _TRAINED, "path", trained, f"{folder}/{run_vocabulary.FILE}"))
    return moved


def _names_the_run(binding: Binding) -> bool:
    if binding.selector == MACRO:
        return binding.name == "MODEL_DIR"
    return binding.name == "model_dir"


def _place(value: object, places: dict[str, str]) -> object:
    return places.get(value, value) if isinstance(value, str) else value


def _same_folder(written: str, folder: str) -> bool:
    if is_url(written) or is_url(folder):
        return written.rstrip("/") == folder.rstrip("/")
    here, there = os.path.expanduser(written), os.path.expanduser(folder)
    return os.path.realpath(here) == os.path.realpath(there)
