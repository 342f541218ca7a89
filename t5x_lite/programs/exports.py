"""A run that leaves folders of Hugging Face on its way: model_dir/exports/STEP."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any

from t5x_lite import evidence, parent
from t5x_lite.errors import UserError
from t5x_lite.lines import split_lines
from t5x_lite.models.config import TransformerConfig
from t5x_lite.parallel import distributed
from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints

log = logging.getLogger(__name__)


def convert_command(checkpoint: str, to: str, dtype: str | None) -> list[str]:
    command = [sys.executable, "-m", "t5x_lite", "convert", f"--from={checkpoint}", f"--to={to}"]
    return command + ([f"--dtype={dtype}"] if dtype else [])


class ExportingCheckpoints(Checkpoints):
    """A run's checkpoints, of which every `CheckpointConfig.export_every`-th step's is exported.

    `t5x_lite convert` does it, a process of its own on the CPU that reads the checkpoint when it is
    committed: the loop doesn't wait, and holds no copy. It writes under another name and renames.
    A checkpoint stays until its export is made. At a run's end `finish_exports` waits for all; what
    an interrupted run leaves undone is done when the run goes on. What can't be exported costs a
    warning.

    Args:
      command: (checkpoint, folder, dtype) -> the command line that makes the one of the other.

    Raises UserError if Hugging Face has no class for the model, or model_dir isn't a local folder.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike,
        config: CheckpointConfig,
        model: TransformerConfig,
        command: Callable[[str, str, str | None], list[str]] = convert_command,
    ):
        super().__init__(model_dir, config)
        self._command = command
        self._exports, self._due = Path(os.fspath(self.folder)).parent / "exports", []
        self._child: tuple[int, subprocess.Popen, IO] | None = None
        if config.export_every is None:
            return
        if "://" in os.fspath(self.folder):
            raise UserError(
                f"CheckpointConfig.export_every needs a model_dir on a local disk, found "
                f"{model_dir}: export with `t5x_lite convert` instead."
            )
        from t5x_lite.interop import huggingface

        huggingface.family_for(model)
        if distributed.is_main_process():
            for left in self._exports.glob(".*.tmp"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            self._due = [step for step in self.steps() if self._wanted(step)]

    def _wanted(self, step: int) -> bool:
        every = self.config.export_every
        return every is not None and step % every == 0 and not evidence.exists(self._to(step))

    def _to(self, step: int) -> Path:
        return self._exports / str(step)

    def should_save(self, step: int, last: bool = False) -> bool:
        self._advance()
        every = self.config.export_every
        return super().should_save(step, last) or (every is not None and step % every == 0)

    def save(self, step: int, state: Any, **options: Any) -> bool:
        if self.config.export_every is not None:
            self._needed = distributed.from_main(self._undone())
        saved = super().save(step, state, **options)
        if saved and distributed.is_main_process() and self._wanted(step):
            self._due.append(step)
        return saved

    def needed(self) -> Collection[int]:
        return self._needed

    _needed: Collection[int] = ()

    def _undone(self) -> list[int]:
        """The steps that are still to be exported, that which is at work included."""
        return self._due + ([self._child[0]] if self._child else [])

    def exports_due(self) -> bool:
        """Whether exports of the checkpoints here are missing; a collective."""
        return distributed.any_process(bool(self._undone()))

    def finish_exports(self, look: Callable[[], None] = lambda: None) -> None:
        """Waits until all exports are made; calls `look`, which may raise, in the meantime."""
        self.wait()
        while distributed.is_main_process() and self._undone():
            look()
            self._advance()
            time.sleep(0.05)

    def close(self) -> None:
        super().close()
        if self._child is not None:  # interrupted: it is done when the run goes on
            step, process, errors = self._child
            process.terminate()
            process.wait()
            errors.close()
            shutil.rmtree(self._exports / f".{step}.{process.pid}.tmp", ignore_errors=True)
            self._child = None

    def _advance(self) -> None:
        """Begins with the next export that is due, if none is at work; says how the last ended."""
        if self._child is not None:
            step, process, errors = self._child
            if process.poll():
                errors.seek(0)
                told = errors.read().decode(errors="replace").strip()
                last = split_lines(told)[-1] if told else "nothing"
                log.warning("Step %d wasn't exported: convert said %r.", step, last[:300])
            if process.returncode is None:
                return
            errors.close()
            self._child = None
        if not self._due or (self._saving == self._due[0] and not self._committed(self._due[0])):
            return
        step = self._due.pop(0)
        self._exports.mkdir(exist_ok=True)
        errors = tempfile.TemporaryFile()  # noqa: SIM115
        checkpoint = os.fspath(self.folder / str(step))
        process = subprocess.Popen(
            self._command(checkpoint, os.fspath(self._to(step)), self.config.export_dtype),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **parent.environment(), "JAX_PLATFORMS": "cpu"},
        )
        self._child = (step, process, errors)

    def _committed(self, step: int) -> bool:
        return (self.folder / str(step)).exists()  # it gets its name when it is whole
