"""Everything that is measured and told about a run while it goes."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from t5x_lite.data.features import padding_share
from t5x_lite.parallel import distributed
from t5x_lite.programs import describe
from t5x_lite.training.build import Training
from t5x_lite.training.console import Console
from t5x_lite.training.goodput import Goodput
from t5x_lite.training.guards import SkippedSteps
from t5x_lite.training.services import Service, TensorBoard
from t5x_lite.training.setup import Setup
from t5x_lite.training.telemetry import Chronometer, mfu
from t5x_lite.training.trackers import WATCHED, JsonLines, Trackers
from t5x_lite.training.watchdog import Watchdog, WatchdogConfig
from t5x_lite.training.watches import spread


class Recorder:
    """Speed, goodput, skipped steps, hangs; the trackers that they are logged to.

    Args:
      step: the one that this process starts from.
      earlier: `state()` as saved with the checkpoint that it starts from, or {}.
      flops: model FLOPs of a step.
      max_bad_steps: skipped steps in a row that end the run.
      facts: what to write beside a batch that ended the run.
      numbers: what was derived from the configuration, for the trackers.
      services: trackers besides the run's own files.
    """

    def __init__(
        self,
        model_dir: str,
        setup: Setup,
        goodput: Goodput,
        *,
        step: int,
        total_steps: int,
        earlier: Mapping[str, Any],
        flops: float,
        max_bad_steps: int,
        watchdog: WatchdogConfig | None,
        facts: Mapping[str, Any],
        numbers: Mapping[str, Any],
        services: Iterable[Service] = (),
    ):
        self._model_dir, self._watched = model_dir, None
        self._setup, self._flops, self._total_steps = setup, flops, total_steps
        self._goodput, self._tokens, self._first = goodput, 0, True
        goodput.restore(earlier.get("goodput", {}))
        self._chronometer = Chronometer(state=earlier.get("seconds"))
        self._watchdog = Watchdog(watchdog or WatchdogConfig(), lambda: goodput.running)
        more = [s.open(model_dir, step) for s in services] if distributed.is_main_process() else []
        self.trackers = Trackers(
            [
                Console(total_steps),
                JsonLines(os.path.join(model_dir, "metrics.jsonl"), resume_step=step),
                TensorBoard(os.path.join(model_dir, "tensorboard"), resume_step=step),
                *more,
            ]
        )
        chosen = {"config": facts.get("config", ""), "tokens_per_step": setup.tokens_per_batch,
                  "total_steps": total_steps}  # fmt: skip
        self.trackers.log_hyperparameters({**numbers, **chosen})
        params = jax.tree_util.tree_leaves_with_path(setup.model.abstract_params())
        self._skipped = SkippedSteps(
            [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in params],
            max_bad_steps,
            self.trackers.log,
            epath.Path(model_dir) / "skipped",
            facts,
            total=earlier.get("skipped_steps", 0),
        )

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception) -> None:
        self.trackers.finish()

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Around the loop; the first step's time goes to the compiler."""
        self._goodput.switch("compile")
        with self._watchdog:
            yield
        self._goodput.switch("step")

    def waiting_for_data(self) -> contextlib.AbstractContextManager:
        return self._goodput.spend("data_wait")

    @contextlib.contextmanager
    def away(self, account: str) -> Iterator[None]:
        """Around an evaluation or a save, which aren't training."""
        with self._goodput.spend(account), self._chronometer.paused():
            yield

    def program(self, training: Training, step: int) -> Callable:
        """The step to run: the plain one, or every so often the one with watches.

        That one is compiled when it is first due, and the compiler gets the time.
        """
        if training.watches is None or not training.watches.due(step):
            return training.step
        if self._watched is None:
            with self.away("compile"):
                lowered = training.watched.lower(training.abstract, self._setup.abstract_batch())
                self._watched = lowered.compile()
        return self._watched

    def made(self, step: int, metrics: Mapping[str, Any], features: Any) -> None:
        """A step was started. Raises FloatingPointError if too many were skipped."""
        if self._first:
            jax.block_until_ready(metrics)
            self._first = False
            self._goodput.switch("step")
            self._chronometer.start(step)
            say(self._goodput.start())
        else:
            self._tokens += self._setup.tokens_per_batch
        self._features = features
        self._watchdog.beat(step)
        self._skipped.after(step, metrics, features)
        if watched := {name: x for name, x in metrics.items() if name.startswith(WATCHED)}:
            self.trackers.log(step, spread(jax.device_get(watched)))

    def log(self, step: int, metrics: Mapping[str, Any], shares: Mapping[str, float]) -> None:
        """Logs a training step's metrics, speed and goodput; waits for the device.

        ``shares``: of the documents drawn so far, those of each task. They, and the padding, are
        of the rows that this process feeds.
        """
        self._skipped.flush()
        metrics = {name: x for name, x in metrics.items() if not name.startswith(WATCHED)}
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        del values["bad_parameter"]
        lap = self._chronometer.lap(step, self._tokens)
        self._tokens = 0
        lap["seconds_left"] = self._chronometer.seconds_left(self._total_steps) or 0.0
        devices = self._setup.mesh.devices.flat
        if (used := mfu(self._flops, lap.get("seconds_per_step", 0.0), devices)) is not None:
            lap["mfu"] = used
        values["padding_share"] = padding_share(self._features)
        values |= {f"drawn/{task}": share for task, share in shares.items()}
        self.trackers.log(step, values | lap | self._goodput.values())

    def log_samples(self, step: int, samples: Iterable[Mapping[str, str]]) -> None:
        for number, sample in enumerate(samples):
            texts = {f"sample_{number}/{name}": text for name, text in sample.items()}
            self.trackers.log(step, texts)

    def sum_up(
        self, step: int, samples: list[dict[str, str]], checked: dict[str, str]
    ) -> dict[str, Any]:
        """Prints, logs and returns the summary, and writes the run's page."""
        summary = describe.summary(self._model_dir, step)
        self.trackers.log_summary(summary | {"checked": checked})
        from t5x_lite.programs import report

        page = report.write_quietly(self._model_dir) if distributed.is_main_process() else None
        describe.print_summary(self._model_dir, summary, samples, checked, page)
        if page:
            self.trackers.log_artifact(page, "report")
        return summary

    def flush(self) -> None:
        """All that belongs to the steps so far is in the files when this returns."""
        self._skipped.flush()
        self.trackers.flush()

    def state(self, ended: bool) -> dict[str, Any]:
        """JSON values to save; `ended`: the process stops in order after this save."""
        return {
            "seconds": self._chronometer.state(),
            "goodput": self._goodput.state(ended),
            "skipped_steps": self._skipped.total,
        }


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if distributed.is_main_process():
        print(text, flush=True)
