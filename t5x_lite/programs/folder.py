"""The run's folder: whose it is, and what is written beside the checkpoints.

model_dir/
  run.json           what makes this run this run; another can't continue here
  config.gin         the whole configuration, macros resolved: --gin_file takes it
  vocabulary.json    which vocabulary the run has, and its copy here: see run_vocabulary.py
  parameters.txt     every parameter's name, shape, logical axes, mesh axes, dtype
  metrics.jsonl      every logged number; tensorboard/ has the same
  hyperparameters.json, summary.json  what was known at the start and at the end
  report.html        all that as a page, written at the end; see report/
  checkpoints/STEP/  see training/checkpoints.py; damaged ones are in checkpoints/damaged/
  skipped/           batches that ended the run, see training/guards.py
  lock.json          the process that writes here; see lock.py
"""

import dataclasses
import json
from typing import Any

from etils import epath

from t5x_lite import config, evidence, run_vocabulary
from t5x_lite.errors import UserError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.training.setup import Setup

# These change how a model is computed, not what is computed.
FREE_MODEL_FIELDS = ("dtype", "remat", "attention", "dropout_rate")


def identity(setup: Setup, *, seed: int, pack: bool, data: str) -> dict[str, Any]:
    """What must stay as it is for a run to continue: model, data and their order.

    ``data``: the loader's fingerprint, which tells whether files still hold what they held.
    """
    values = {
        "model": _without_free(dataclasses.asdict(setup.model.config)),
        "task": setup.task.name,
        "vocabulary": setup.task.vocabulary.fingerprint,
        "lengths": setup.lengths,
        "batch_size": setup.batch_size,
        "pack": pack,
        "seed": seed,
        "data": data,
    }
    return json.loads(json.dumps(values))


def _without_free(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in FREE_MODEL_FIELDS}


def _default_fields() -> dict[str, Any]:
    fields = dataclasses.fields(TransformerConfig)
    given = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return json.loads(json.dumps(given))


def claim(model_dir: str, wanted: dict[str, Any]) -> None:
    """Makes the folder this run's, or checks that it already is. One process does it for all.

    Raises UserError as `check` does.
    """
    if not check(model_dir, wanted):
        folder = epath.Path(model_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "run.json", json.dumps(wanted, indent=1) + "\n")


def check(model_dir: str, wanted: dict[str, Any]) -> bool:
    """Whether the folder is this run's already; if not, it can become that.

    Raises:
      UserError: it holds another run (what differs is named), or files that are no run's.
    """
    folder = epath.Path(model_dir)
    file = folder / "run.json"
    if (text := evidence.read_text(file)) is not None:
        try:
            found = json.loads(text)
            assert isinstance(found, dict)
            # A field that is newer than the run was then what it is by default.
            found["model"] = _without_free(_default_fields() | dict(found.get("model", {})))
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(
                f"{file} can't be read ({error}): take another model_dir, or remove the file "
                f"if you are sure that the run in this folder is the same."
            ) from error
        differences = _differences(found, wanted | {"data": found.get("data")})
        if differences:
            raise UserError(
                f"{model_dir} holds another run: {'; '.join(differences[:3])}. Take another "
                f"model_dir (train.initial_checkpoint starts from this one's weights)."
            )
        if found.get("data", wanted["data"]) != wanted["data"]:
            raise UserError(
                f"the training data isn't what it was when the run in {model_dir} began (its files "
                f"or the objective have changed): put it back, take another model_dir, or remove "
                f'"data" from {file} to go on with other batches.'
            )
        return True
    if others := _others(folder):
        some = ", ".join(others[:3])
        raise UserError(
            f"{model_dir} exists and is no run's folder (no run.json, but {some}): "
            f"take another model_dir."
        )
    return False


def _write(file: epath.Path, text: str) -> None:
    """Whole or not at all, also on a full disk."""
    beside = file.parent / f"{file.name}.tmp"
    beside.write_text(text)
    beside.replace(file)


def _others(folder: epath.Path) -> list[str]:
    """What is in the folder, except what is made before run.json: the vocabulary, too."""
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    before = (run_vocabulary.MODEL, run_vocabulary.MADE_OF, "run.json.tmp")
    return [name for name in names if name not in before]


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in sorted({*found, *wanted})
            for difference in _differences(
                found.get(key), wanted.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if found == wanted else [f"{name} was {found!r}, now {wanted!r}"]


def write_description(model_dir: str, table: str) -> None:
    """Writes config.gin and parameters.txt, those of the latest start."""
    folder = epath.Path(model_dir)
    _write(folder / "config.gin", config.config_text())
    _write(folder / "parameters.txt", table)
