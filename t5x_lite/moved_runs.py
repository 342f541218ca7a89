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
    moved = [_placed(b, places) for b in bindings]
    trained = run_vocabulary.trained_file(folder)
    if trained is not None:
        moved.append(Binding("", _TRAINED, "path", trained, f"{folder}/{run_vocabulary.FILE}"))
    return moved


def with_carried_vocabulary(bindings: Sequence[Binding]) -> list[Binding]:
    """All bindings, with the vocabulary that the run in MODEL_DIR carries where its path is gone.

    For a recipe beside a run that was moved: MODEL_DIR says where it is now.
    """
    named = {b.key: b.value for b in bindings if _names_the_run(b)}.values()
    places: dict[str, str] = {}
    for folder in {value for value in named if isinstance(value, str)}:
        places |= run_vocabulary.places(os.path.expanduser(folder))
    gone = {path: here for path, here in places.items() if not _exists(path)}
    return [_placed(b, gone) for b in bindings]


def _exists(path: str) -> bool:
    return is_url(path) or os.path.exists(os.path.expanduser(path))


def _names_the_run(binding: Binding) -> bool:
    if binding.selector == MACRO:
        return binding.name == "MODEL_DIR"
    return binding.name == "model_dir"


def _placed(binding: Binding, places: dict[str, str]) -> Binding:
    """The binding itself where nothing has moved."""
    value = binding.value
    if not isinstance(value, str) or value not in places:
        return binding
    return dataclasses.replace(binding, value=places[value])


def _same_folder(written: str, folder: str) -> bool:
    if is_url(written) or is_url(folder):
        return written.rstrip("/") == folder.rstrip("/")
    here, there = os.path.expanduser(written), os.path.expanduser(folder)
    return os.path.realpath(here) == os.path.realpath(there)
