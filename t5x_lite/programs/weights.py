"""Weights for a set-up: their parameters, read as they were trained to read, or a refusal."""

import dataclasses
import re
import sys
from typing import TYPE_CHECKING, Any

import jax

from t5x_lite.data.features import feature_lengths
from t5x_lite.data.reading import Reading, task_reading
from t5x_lite.data.same_vocabulary import Difference, difference
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.models.model import Model
from t5x_lite.parallel import distributed
from t5x_lite.training import checkpoint_layout as layout
from t5x_lite.training.setup import Setup
from t5x_lite.training.state import abstract_params

if TYPE_CHECKING:
    from t5x_lite.interop.origin import Origin

_said: set[str] = set()  # lines that were said already


def open_weights(
    setup: Setup, path: str, *, accept_other_vocabulary: bool = False, verb: str = "infer"
) -> tuple[Setup, dict[str, Any]]:
    """The parameters at a path, and the set-up with a task that reads as they do.

    Args:
      path: what `checkpoint_paths` gives.
      accept_other_vocabulary: say what is lost instead of refusing them.
      verb: the configurable that has this argument, for the message.

    Raises:
      UserError: as `restore_params`; or their vocabulary isn't the task's.
    """
    from t5x_lite.interop.origin import origin_of
    from t5x_lite.interop.pretrained import restore_params

    origin = origin_of(path, setup.architecture, setup.model.config.vocab_size)
    check_vocabulary(
        origin, setup.task.vocabulary, accept_other_vocabulary,
        f"To use them all the same, set {verb}.accept_other_vocabulary = True.",
    )  # fmt: skip
    abstract = abstract_params(setup.model, setup.mesh, setup.rules)
    params = restore_params(
        path, abstract, model=setup.model.config, vocabulary=setup.task.vocabulary
    )
    return read_as(setup, origin), params


def read_as(setup: Setup, origin: "Origin") -> Setup:
    """The set-up with a task that these weights read as they were trained to."""
    if setup.model.encoder_only:
        return setup
    reading = origin.reading
    if reading is None:
        _say_once(
            f"{origin.path} doesn't say how its prompts were read: {_described(setup.reading)}, as "
            f"the task {setup.task.name} says"
        )
        return setup
    task = setup.task.read_as(reading)
    sizes = feature_lengths(
        setup.lengths, setup.architecture, task.objective.features, False, reading.attention
    )
    return dataclasses.replace(setup, task=task, feature_lengths=sizes)


def check_exports(reading: Reading, export_every: int | None) -> None:
    """Before a run that exports: UserError if transformers has no class that reads as it does."""
    if export_every is not None:
        from t5x_lite.interop.origin import require_exportable

        require_exportable(reading.attention, "this run")


def check_start(
    path: str, model: Model, task: Any, include: str | None, accept_other_vocabulary: bool
) -> None:
    """Before a run starts from weights: UserError if their vocabulary is another.

    `include`, as of `restore_params`: not if it leaves out all that is bound to the vocabulary.
    """
    axes = layout.by_name(jax.tree.map(str, model.logical_axes(), is_leaf=_is_axes))
    bound = sorted(name for name, which in axes.items() if "'vocab'" in which)
    from t5x_lite.interop.origin import origin_of

    origin = origin_of(path, model.config.architecture, model.config.vocab_size)
    if not model.encoder_only and origin.reading is not None:
        _compare_readings(origin, task, model.config.architecture)
    if include is not None and not any(re.search(include, name) for name in bound):
        return
    without = f"^(?!{'|'.join(bound)})"
    check_vocabulary(
        origin, task.vocabulary, accept_other_vocabulary,
        f"To start without what is bound to it ({', '.join(bound)}), set train.initial_params = "
        f"'{without}'; to take all the same, train.accept_other_vocabulary = True.",
    )  # fmt: skip


def has_checkpoint(model_dir: str) -> bool:
    """Whether a run goes on from a checkpoint of its own."""
    return bool(layout.scan(layout.absolute(model_dir) / "checkpoints")[0])


def _is_axes(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, str | None) for v in value)


def _compare_readings(origin: "Origin", task: Any, architecture: str) -> None:
    there, here = origin.reading, task_reading(task, architecture)
    asks = "inputs" in task.objective.features  # else nothing is asked and answered
    if there is not None and asks and there.attention != here.attention:
        _say_once(
            f"warning: {origin.path} was trained on {_described(there)}; this task has "
            f"{_described(here)} (TextToText.prefix)"
        )


def _described(reading: Reading) -> str:
    if reading.attention == "encoder":
        return "inputs in an encoder"
    eos = "EOS behind them" if reading.inputs_eos else "no EOS behind them"
    return f"{reading.attention} prompts, {eos}"


def check_vocabulary(origin: "Origin", vocabulary: Vocabulary, accept: bool, way_out: str) -> None:
    """UserError, or with ``accept`` a line, if weights have another vocabulary than this one."""
    fingerprint = origin.fingerprint
    if fingerprint is None:
        _say_once(
            f"{origin.path} doesn't say which vocabulary it was trained with: it is taken for that "
            f"of the task"
        )
        return
    if fingerprint == vocabulary.fingerprint:
        return
    try:
        theirs = origin.vocabulary()
    except UserError:  # its file has changed or is gone; that it was another one is certain
        theirs = None
    found = difference(theirs, vocabulary) if theirs is not None else None
    if found is not None and not found.ids and not found.fewer:
        if found:
            _say_once(f"warning: the vocabulary of {origin.path} is another: {_told(found)}")
        return
    told = _told(found) if found is not None else (
        f"its fingerprint is {fingerprint[:12]}, here {vocabulary.fingerprint[:12]}"
    )  # fmt: skip
    if not accept:
        raise UserError(
            f"the vocabulary of {origin.path} is another than the task's: {told}. Its embeddings "
            f"mean other text; use the vocabulary that the weights were trained with (--gin_file="
            f"RUN/config.gin has it). {way_out}"
        )
    _say_once(
        f"warning: the vocabulary of {origin.path} is another than the task's: {told}. What its "
        "embeddings and logits have learnt of those ids is lost."
    )


def _told(found: Difference) -> str:
    told = []
    if found.ids:
        told.append(f"{found.ids:,} ids stand for other text ({found.example})")
    if found.fewer:
        told.append(f"{found.fewer:,} of its ids are missing here")
    if found.more:
        told.append(f"{found.more:,} ids here are unknown to it")
    if found.texts:
        told.append(f"texts are cut into other tokens ({found.texts[:30]!r}...)")
    return "; ".join(told)


def _say_once(line: str) -> None:
    """On stderr: what `infer` prints are records."""
    if line not in _said and distributed.is_main_process():
        _said.add(line)
        print(line, file=sys.stderr, flush=True)
