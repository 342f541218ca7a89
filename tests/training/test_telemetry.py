import io
import json
import math
import re
import struct
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.errors import UserError
from t5x_lite.training.console import Console, progress_line, text_lines
from t5x_lite.training.services import TensorBoard
from t5x_lite.training.telemetry import Chronometer, mfu, peak_flops
from t5x_lite.training.trackers import (
    Histogram,
    JsonLines,
    Tracker,
    Trackers,
    read_json_lines,
)
from t5x_lite.units import duration, short

# JSON lines.


@given(st.lists(st.floats(), min_size=1, max_size=5))
def test_json_lines_are_exact(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    tracker = JsonLines(path)
    for step, value in enumerate(values):
        tracker.log(step, {"loss": value})
    tracker.finish()
    lines = read_json_lines(path)
    assert [line["step"] for line in lines] == list(range(len(values)))
    for line, value in zip(lines, values, strict=True):
        assert float(line["loss"]) == value or math.isnan(value) and line["loss"] == "nan"
        assert math.isfinite(value) == isinstance(line["loss"], float)


def test_json_lines_take_arrays_and_text(tmp_path):
    path = tmp_path / "a" / "metrics.jsonl"
    tracker = JsonLines(path)
    values = {"f": np.float32(0.1), "d": jnp.float32(0.1), "i": np.int64(2**60), "s": "ö\n"}
    values |= {"j": jnp.int32(3), "b": jnp.bfloat16(0.5)}
    tracker.log(1, values)
    tracker.log(2, {"sample": "a\nb"})
    # Readable before it is closed: each line is flushed.
    assert read_json_lines(path) == [
        {"step": 1, "f": 0.10000000149011612, "d": 0.10000000149011612, "i": 2**60}
        | {"s": "ö\n", "j": 3, "b": 0.5},
        {"step": 2, "sample": "a\nb"},
    ]
    assert path.read_text().count("\n") == 2
    tracker.finish()


def test_json_lines_resume_drops_what_is_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    for step in (10, 20, 30):
        first.log(step, {"loss": 1 / step})
    first.finish()
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # killed in mid-line
    before = path.read_text()
    resumed = JsonLines(path, resume_step=20)
    assert path.read_text() == before  # nothing is touched until there is something to write
    resumed.log(30, {"loss": 0.5})
    resumed.finish()
    resumed.log(40, {"loss": 0.25})  # closed and used again: only appends
    resumed.finish()
    assert read_json_lines(path) == [
        {"step": 10, "loss": 0.1},
        {"step": 20, "loss": 0.05},
        {"step": 30, "loss": 0.5},
        {"step": 40, "loss": 0.25},
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_json_lines_without_a_resume_step_keep_all_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "loss": 2.0}\n{"step"')
    tracker = JsonLines(path)
    tracker.log(6, {"loss": 1.0})
    tracker.finish()
    assert [line["step"] for line in read_json_lines(path)] == [5, 6]


def test_json_lines_refuse_what_cannot_be_appended_to():
    with pytest.raises(UserError, match="gs://bucket/m.jsonl can't be appended to"):
        JsonLines("gs://bucket/m.jsonl")


# TensorBoard.


def read_events(folder):
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event()
            event.ParseFromString(data[at + 12 : at + 12 + length])
            events.append(event)
            at += 12 + length + 4
    return events


def test_tensorboard(tmp_path):
    tracker = TensorBoard(tmp_path / "tb", resume_step=6)
    assert not (tmp_path / "tb").exists()
    tracker.log(7, {"loss": 0.5, "note": "hello"})
    tracker.log(8, {"sample": "text"})
    tracker.finish()
    events = read_events(tmp_path / "tb")
    values = {(e.step, v.tag): v for e in events for v in e.summary.value}
    assert values[7, "loss"].simple_value == 0.5
    assert b"hello" in values[7, "note/text_summary"].tensor.string_val[0]
    assert (8, "sample/text_summary") in values
    # The mark by which TensorBoard hides the events that the resumed run makes again.
    assert [e.step for e in events if e.HasField("session_log")] == [7]


# Console.


def test_console_prints_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    console = Console(total_steps=10_000, stream=stream)
    values = {"loss": 3.21466, "tokens_per_second": 1.2345e6, "learning_rate": jnp.float32(3.14e-4)}
    console.log(1200, values | {"mfu": 0.4123, "seconds_left": 3725.0, "train_seconds": 9.0})
    console.log(1200, {"validation/loss": 3.5, "accuracy": 0.25, "note": "best so far"})
    console.log(1200, {"sample": "[bold]a[/bold]"})
    console.finish()
    assert stream.getvalue().splitlines() == [
        "step 1,200/10,000  loss 3.2147  lr 3.1e-04  1.23M tok/s  MFU 41.2%  1h 02m left",
        "step 1,200/10,000  validation: loss 3.5",
        "step 1,200/10,000  accuracy 0.25",
        "step 1,200  note: best so far",
        "step 1,200  sample: [bold]a[/bold]",
    ]


def test_console_quiet():
    stream = io.StringIO()
    console = Console(stream=stream, quiet=True)
    console.log(1, {"loss": 1.0})
    console.log(1, {"a": "b"})
    console.finish()
    assert stream.getvalue() == ""


def test_console_redraws_one_line_on_a_terminal():
    stream = io.StringIO()
    console = Console(stream=stream, live=True)
    for step in range(1, 4):
        console.log(step, {"loss": 4.0 - step})
    console.log(3, {"validation/loss": 1.5})
    console.log(4, {"loss": 0.25})
    console.finish()
    raw = stream.getvalue()
    assert "\x1b[2K" in raw  # lines are erased ...
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.replace("\r", "\n")).split("\n")
    lines = [line.strip() for line in shown if line.strip()]
    assert lines[0] == "step 1  loss 3.0000"
    assert "step 3  validation: loss 1.5" in lines  # ... but evaluations stay, above the live line
    assert lines[-1] == "step 4  loss 0.2500"
    assert raw.count("validation: loss") == 1


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0.00"),
        (7, "7.00"),
        (45.62, "45.6"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (45_620, "45.6k"),
        (999_600, "1.00M"),
        (1_234_567, "1.23M"),
        (9.89e14, "989T"),
        (2.5e9, "2.50G"),
    ],
)
def test_short(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3725, "1h 02m"),
        (86400 * 2 + 3 * 3600 + 59, "2d 03h"),
        (math.inf, "?"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_progress_line_with_few_values():
    assert progress_line(5, {"loss": math.nan}) == "step 5  loss nan"
    assert progress_line(9, {"loss": 1.0, "seconds_left": 0.0}, 9) == "step 9/9  loss 1.0000"


def test_texts_are_indented_shortened_and_harmless():
    assert text_lines(5, "a", "one line") == "step 5  a: one line"
    assert text_lines(5, "a", "x\n\x1b[31my") == "step 5  a:\n    x\n    \\x1b[31my"
    assert text_lines(5, "a", "x\n" * 40).endswith("\n    ... (28 more lines)")


@pytest.mark.parametrize("no_color", [None, "1"])
def test_console_colours_its_bar_unless_told_not_to(no_color, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    stream = io.StringIO()
    console = Console(10, stream=stream, live=True)
    for step in (1, 5):
        console.log(step, {"loss": 0.5, "watch/gradients_norm/a": 2.0})
    console.log_summary({})
    raw = stream.getvalue()
    assert "━" * 20 in re.sub(r"\x1b\[[0-9;]*m", "", raw) and "watch" not in raw
    assert bool(re.search(r"\x1b\[3\dm", raw)) == (no_color is None)


# All of them.


class Recorder(Tracker):
    def __init__(self, optional=False):
        self.seen, self.optional = [], optional

    def log(self, step, values):
        self.seen.append((step, values))
        if values.get("name") == "bad":
            raise ConnectionError("no route to host") if self.optional else KeyError("bad")

    def log_summary(self, values):
        self.seen.append(values)

    def finish(self):
        self.seen.append("finished")
        raise OSError("disk full")


def test_trackers_pass_on_and_finish_all():
    first, second = Recorder(), Recorder()
    trackers = Trackers([first, second])
    trackers.log(1, {"loss": jnp.float32(0.5), "name": "x"})
    trackers.log_hyperparameters({"a": 1})  # which this tracker doesn't care for
    trackers.log_summary({"step": 2})
    with pytest.raises(OSError):
        trackers.finish()
    expected = [(1, {"loss": 0.5, "name": "x"}), {"step": 2}, "finished"]
    assert first.seen == second.seen == expected
    assert type(first.seen[0][1]["loss"]) is float


def test_what_goes_wrong_with_a_service_is_a_warning_once(caplog):
    service, own = Recorder(optional=True), Recorder()
    trackers = Trackers([service], process_index=0)
    for step in (1, 2):
        trackers.log(step, {"name": "bad"})
    trackers.finish()
    assert [r.getMessage() for r in caplog.records] == [
        "metrics could not be written: Recorder: no route to host",
        "Recorder did not finish: disk full",
    ]
    with pytest.raises(KeyError):  # a mistake in code of ours is none
        Trackers([own], process_index=0).log(1, {"name": "bad"})


def test_histograms_and_what_is_known_at_the_ends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    trackers = Trackers([JsonLines(path), TensorBoard(tmp_path / "tb")], process_index=0)
    counts = Histogram(jnp.float32(-1.0), jnp.float32(3.0), jnp.array([1, 0, 5, 2]))
    assert counts.edges().tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    trackers.log_hyperparameters({"batch": "8 rows"})
    trackers.log(3, {"watch/gradients/a": counts})
    trackers.log_summary({"last": {"loss": 1.5}})
    trackers.finish()
    expected = {"low": -1.0, "high": 3.0, "counts": [1, 0, 5, 2]}
    assert read_json_lines(path) == [{"step": 3, "watch/gradients/a": expected}]
    assert json.loads((tmp_path / "hyperparameters.json").read_text()) == {"batch": "8 rows"}
    assert json.loads((tmp_path / "summary.json").read_text()) == {"last": {"loss": 1.5}}
    seen = {v.tag: v for e in read_events(tmp_path / "tb") for v in e.summary.value}
    assert list(seen["watch/gradients/a"].histo.bucket) == [1, 0, 5, 2]
    assert list(seen["watch/gradients/a"].histo.bucket_limit) == [0.0, 1.0, 2.0, 3.0]
    assert b"8 rows" in seen["hyperparameters/text_summary"].tensor.string_val[0]
    assert b"loss" in seen["summary/text_summary"].tensor.string_val[0]


def test_only_process_0_writes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    trackers = Trackers([JsonLines(path), TensorBoard(tmp_path / "tb")], process_index=1)
    trackers.log(1, {"loss": 1.0})
    trackers.log(1, {"a": "b"})
    trackers.finish()
    assert list(tmp_path.iterdir()) == []


# Time.


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_chronometer_leaves_pauses_out():
    clock = Clock()
    chronometer = Chronometer(clock)
    clock.now += 50  # compiling, before the start
    chronometer.start(step=100)
    assert chronometer.seconds_left(1000) is None
    clock.now += 4
    with chronometer.paused():
        clock.now += 70  # an evaluation
        with chronometer.paused():
            clock.now += 30  # and a save inside it
        clock.now += 1
        assert chronometer.train_seconds == 4
    clock.now += 1
    assert chronometer.lap(110, tokens=50_000) == {
        "train_seconds": 5.0,
        "steps_per_second": 2.0,
        "tokens_per_second": 10_000.0,
        "seconds_per_step": 0.5,
    }
    assert chronometer.seconds_left(1000) == 445.0
    assert chronometer.seconds_left(50) == 0
    clock.now += 20
    lap = chronometer.lap(115, tokens=100)  # of this interval only
    assert (lap["steps_per_second"], lap["tokens_per_second"]) == (0.25, 5.0)
    assert chronometer.lap(115, tokens=0) == {"train_seconds": 25.0}  # no step, no rate


def test_chronometer_resumes_the_clock_when_an_evaluation_fails():
    clock = Clock()
    chronometer = Chronometer(clock)
    chronometer.start(0)
    with pytest.raises(RuntimeError), chronometer.paused():
        clock.now += 5
        raise RuntimeError
    clock.now += 2
    assert chronometer.train_seconds == 2


def test_chronometer_counts_on_after_a_restart():
    clock = Clock()
    first = Chronometer(clock)
    first.start(0)
    clock.now += 7.5
    state = json.loads(json.dumps(first.state()))
    clock.now += 1000
    second = Chronometer(clock, state)
    second.start(10)
    clock.now += 2
    assert second.lap(14, tokens=8) == {
        "train_seconds": 9.5,
        "steps_per_second": 2.0,
        "tokens_per_second": 4.0,
        "seconds_per_step": 0.5,
    }


# FLOP/s.


def device(kind, platform="gpu"):
    return SimpleNamespace(device_kind=kind, platform=platform)


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GB200", 2500e12),
        ("Tesla T4", None),
        ("Tesla V100-SXM2-16GB", None),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("TPU v99", None),
    ],
)
def test_peak_flops(kind, peak):
    assert peak_flops(device(kind, "tpu" if kind.startswith("TPU") else "gpu")) == peak


def test_mfu():
    eight = [device("NVIDIA H100 80GB HBM3")] * 8
    assert mfu(8 * 989.4e12, 2.0, eight) == pytest.approx(0.5)
    assert mfu(1e12, 1.0, [*eight, device("Tesla T4")]) is None
    assert mfu(1e12, 1.0, jax.devices("cpu")) is None
    assert mfu(1e12, 0.0, eight) is None


# A full disk.


def test_lines_that_could_not_be_written_are_written_later(tmp_path, caplog):
    import resource

    path = tmp_path / "metrics.jsonl"
    trackers = Trackers([JsonLines(path), TensorBoard(tmp_path / "tensorboard")], process_index=0)
    trackers.log(1, {"loss": 1.0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
    try:
        for step in range(2, 40):  # more than tensorboardX's queue would take
            trackers.log(step, {"loss": 1.0 / step})
        assert [line["step"] for line in read_json_lines(path)] == [1]
        assert path.read_text().endswith("}\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    trackers.log(40, {"loss": 0.5})
    trackers.finish()
    assert [line["step"] for line in read_json_lines(path)] == list(range(1, 41))
    assert "metrics could not be written: JsonLines: [Errno 27]" in caplog.text


def test_lines_that_are_no_lines_of_a_run_are_passed_over(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\xff\n[]\n{"step": "2"}\n{"loss": 3}\n{"step": 4}\n{"st')
    assert [line["step"] for line in read_json_lines(path)] == [1, 4]
    assert "4 lines can't be read" in caplog.text
