"""The stages on Apache Beam: on this machine by processes, elsewhere by the runner that is named.

Beam hands out the work, tries again what fails, and counts. Text and keys don't pass through it:
they go by files in the work folder, which all workers must see, so that a runner that shuffles in
memory, as the one of this machine does, needs no more of it for more text.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import t5x_lite
from t5x_lite.corpus.settings import Corpus
from t5x_lite.errors import UserError

_COUNTERS = "t5x_lite.corpus"


def for_each(corpus: Corpus, name: str, function: Callable, arguments: list[tuple]) -> dict:
    """Calls function(*arguments) for each tuple of arguments, in any order, anywhere.

    Arguments are numbers, text, and lists of these: they travel as JSON.

    Returns Beam's counters: the sums of what the calls returned, and their "milliseconds" of
    processor time (a runner that keeps no counters: nothing). A call that is tried again counts
    again.
    """
    if not arguments:
        return {}
    beam = _beam()
    from apache_beam.metrics import Metrics, MetricsFilter

    def call(given: str) -> None:
        start = time.process_time_ns()
        counted = function(*json.loads(given))
        took = (time.process_time_ns() - start) // 1_000_000
        counted["milliseconds"] = counted.get("milliseconds", 0) + took
        for key, number in counted.items():
            Metrics.counter(_COUNTERS, key).inc(number)

    with _pipeline(corpus, name, len(arguments)) as (start, run):
        # JSON, as Beam's own coders take no file name that isn't UTF-8.
        _ = start([json.dumps(given) for given in arguments]) | name >> beam.Map(call)
        result = run()
    try:
        found = result.metrics().query(MetricsFilter().with_namespace(_COUNTERS))["counters"]
    except NotImplementedError:
        return {}
    return {row.key.metric.name: row.result for row in found}


@contextlib.contextmanager
def _pipeline(corpus: Corpus, name: str, elements: int) -> Iterator[tuple[Callable, Callable]]:
    beam = _beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    given = list(corpus.beam_options)
    runner = None
    if not any(option.startswith("--runner") for option in given):
        # Not Beam's own default: that first tries to download a runner written in Go.
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner

        runner = FnApiRunner()
        workers = min(corpus.workers or os.cpu_count() or 1, elements)
        mode = "multi_processing" if workers > 1 else "in_memory"
        given += [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}",
                  "--default_sdk_harness_log_level=ERROR"]  # fmt: skip
    options = PipelineOptions(given, job_name=f"{corpus.name}-{name}".replace("_", "-"))
    with _visible_to_workers(), _quiet():
        pipeline = beam.Pipeline(runner=runner, options=options)

        def start(values: list) -> Any:
            # Reshuffle, or all would run where they were made.
            return pipeline | beam.Create(values, reshuffle=False) | beam.Reshuffle()

        def run() -> Any:
            result = pipeline.run()
            result.wait_until_finish()
            return result

        yield start, run


@contextlib.contextmanager
def _visible_to_workers() -> Iterator[None]:
    """Worker processes import this package from where it is, installed or not."""
    before = os.environ.get("PYTHONPATH")
    root = str(Path(t5x_lite.__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _quiet(name: str = "apache_beam") -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _beam() -> Any:
    try:
        with _quiet(""):  # it warns that Google's clients are absent
            import apache_beam
    except ImportError as error:
        raise UserError(
            f"t5x_lite corpus needs Apache Beam ({error}); pip install 't5x_lite[corpus]' for "
            f"{sys.executable}."
        ) from None
    return apache_beam
