"""The stages on Apache Beam: on this machine by processes, elsewhere by the runner that is named.

Text never passes through Beam, only numbers of units and shards and arrays of keys: all else goes
by files in the work folder, which all workers must see.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import t5x_lite
from t5x_lite.corpus import stages
from t5x_lite.corpus.settings import Corpus
from t5x_lite.errors import UserError


def for_each(corpus: Corpus, name: str, function: Callable, arguments: list[tuple]) -> None:
    """Calls function(corpus, *arguments) for each tuple of arguments."""
    if arguments:
        beam = _beam()
        with _pipeline(corpus, name, len(arguments)) as start:
            _ = start(arguments) | name >> beam.Map(lambda given: function(corpus, *given))


def compare(corpus: Corpus, name: str, keys: Callable, decide: Callable, units: int) -> None:
    """keys(corpus, unit) of each unit, grouped by column and partition; decide on all repeats."""
    beam = _beam()
    with _pipeline(corpus, name, units) as start:
        _ = (
            start(list(range(units)))
            | "keys" >> beam.FlatMap(lambda unit: keys(corpus, unit))
            | "by column and part" >> beam.GroupByKey()
            | "repeats" >> beam.MapTuple(
                lambda key, parts: (0, (key, stages.find_repeats(parts)))
            )
            | "together" >> beam.GroupByKey()
            | "decide" >> beam.MapTuple(lambda _, found: decide(corpus, _columns(found), units))
        )  # fmt: skip


def _columns(found: Any) -> list:
    return [(column, pairs) for (column, _), pairs in sorted(found, key=lambda row: row[0])]


@contextlib.contextmanager
def _pipeline(corpus: Corpus, name: str, elements: int) -> Iterator[Callable]:
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

        yield start
        pipeline.run().wait_until_finish()


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
