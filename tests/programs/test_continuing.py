"""What a run that has ended is told to do next, executed; and schedules beside a run's length."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from t5x_lite import cli, config
from t5x_lite.programs.eval import Waiting
from t5x_lite.programs.periods import period_notes
from t5x_lite.training.retention import CheckpointConfig

STEPS = 20


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("continuing")
    lines = [record["text"] for record in tiny.documents(120)]
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "run.gin").write_text(tiny.GIN + "TextFiles.document = 'line'\nTEXT = 'text.txt'\n")
    return folder


@pytest.fixture
def there(work, monkeypatch):
    monkeypatch.chdir(work)
    with config.fresh():
        yield work


def run(*words):
    with config.fresh():
        return cli.main(["train", *words])


def first(name, *more):
    """A finished run of STEPS steps in the folder `name`."""
    given = [f"--gin.MODEL_DIR='{name}'", f"--gin.TOTAL_STEPS={STEPS}", "--gin.train.log_period=1"]
    given += ["--gin.train.num_samples=0", "--gin.train.eval_batch_count=2"]
    if not Path(name).exists():
        assert run("--gin_file=run.gin", *given, *more) == 0


def rates(name):
    return tiny.logged(name, "learning_rate")


def command_in(text):
    [found] = re.findall(r"^ +(t5x_lite train .*total_steps=\d+)$", text, flags=re.MULTILINE)
    words = shlex.split(found)
    assert words[:2] == ["t5x_lite", "train"]
    return words[2:]


@pytest.mark.parametrize("again", [False, True])
def test_the_command_that_a_finished_run_prints_trains(there, capsys, again):
    name = f"a 'quoted' run {again}"
    given = [f'--gin.MODEL_DIR="{name}"', f"--gin.TOTAL_STEPS={STEPS}", "--gin.train.log_period=1"]
    assert run("--gin_file=run.gin", *given, "--gin.train.num_samples=0") == 0
    if again:  # started again, it says that it is finished, and the same command
        capsys.readouterr()
        assert run(f"--gin_file={name}/config.gin") == 0
    printed = capsys.readouterr().out
    if again:
        printed = printed.partition("Next:")[0]
    words = command_in(printed)
    before = tiny.logged(name, "eval/loss")[STEPS]
    assert run(*words) == 0
    more = {step: rate for step, rate in rates(name).items() if step > STEPS}
    assert sorted(more) == list(range(STEPS + 1, 2 * STEPS + 1))
    assert all(rate > 1e-5 for step, rate in more.items() if step < 2 * STEPS)
    losses = tiny.logged(name)
    assert np.mean([losses[s] for s in range(2 * STEPS - 4, 2 * STEPS + 1)]) < np.mean(
        [losses[s] for s in range(STEPS - 4, STEPS + 1)]
    )
    assert tiny.logged(name, "eval/loss")[2 * STEPS] < before
    # The config that it leaves has one number still, by either name.
    text = Path(name, "config.gin").read_text()
    assert f"TOTAL_STEPS = {2 * STEPS}" in text and "train.total_steps = %TOTAL_STEPS" in text
    capsys.readouterr()
    assert run(f"--gin_file={name}/config.gin", f"--gin.TOTAL_STEPS={2 * STEPS + 2}") == 0
    said = capsys.readouterr().out
    assert f"warning: up to step {2 * STEPS} the learning rate was cosine(" in said
    assert f"total_steps={2 * STEPS + 2}," in said


def test_a_continued_run_is_a_function_of_its_config_alone(there):
    """Ended within what was added, and started by the same command, it goes on as if it hadn't."""
    longer = f"--gin.train.total_steps={STEPS + 10}"
    for name in ("straight", "stopped"):
        first(name, "--gin.train.checkpoint=@CheckpointConfig()", "--gin.CheckpointConfig.period=5")
    assert run("--gin_file=straight/config.gin", longer) == 0
    assert run("--gin_file=stopped/config.gin", longer) == 0
    shutil.rmtree(f"stopped/checkpoints/{STEPS + 10}")
    assert run("--gin_file=stopped/config.gin", longer) == 0
    for name in ("loss", "learning_rate"):
        assert tiny.logged("straight", name) == tiny.logged("stopped", name)


def test_an_older_config_with_two_numbers_is_answered(there, capsys):
    first("older")
    text = Path("older/config.gin").read_text()
    for name in ("cosine.peak_rate", "evaluate.batch_size"):
        owner = name.partition(".")[0]
        text = text.replace(name, f"{owner}.total_steps = %TOTAL_STEPS\n{name}")
    Path("older/config.gin").write_text(text)
    assert run("--gin_file=older/config.gin") == 0  # it is finished
    capsys.readouterr()
    Path("two.gin").write_text(text)  # run below, it would be overwritten
    assert run("--gin_file=two.gin", f"--gin.train.total_steps={STEPS + 5}") == 2
    error = capsys.readouterr().err
    assert f"cosine ends at its own total_steps={STEPS}" in error
    fix = re.search(r"--gin\S+=None", error)[0]
    assert run("--gin_file=two.gin", f"--gin.train.total_steps={STEPS + 5}", fix) == 0
    assert rates("older")[STEPS + 3] > 1e-6
    # Both at once, by the macro.
    Path("older/config.gin").write_text(text)
    assert run("--gin_file=two.gin", f"--gin.TOTAL_STEPS={STEPS + 9}") == 0
    assert rates("older")[STEPS + 7] > 1e-6


@pytest.mark.parametrize("name", ["rewarm", "tail"])
def test_ways_to_go_on_that_are_offered_by_name(there, name):
    first(name)
    more = [f"--gin_file=schedules/{name}.gin", f"--gin.FROM_STEP={STEPS}"]
    more += ["--gin.TAIL_RATE=0.0001"] if name == "tail" else []
    assert run(f"--gin_file={name}/config.gin", *more, f"--gin.train.total_steps={2 * STEPS}") == 0
    found = rates(name)
    if name == "tail":
        expected = dict.fromkeys(range(STEPS + 1, 2 * STEPS + 1), 1e-4)
    else:
        expected = {step + STEPS: found[step] for step in range(1, STEPS + 1)}
    assert {s: found[s] for s in expected} == pytest.approx(expected, rel=1e-5)


def test_a_plateau_is_prolonged_from_a_kept_checkpoint(there):
    """A copy of the run without what came after is a run of the greater length, bit for bit."""
    wsd = ["--gin_file=schedules/wsd.gin", "--gin.train.checkpoint=@CheckpointConfig()"]
    wsd += ["--gin.CheckpointConfig.period=5", "--gin.CheckpointConfig.keep_every=15"]
    first("plateau", *wsd)
    assert rates("plateau")[STEPS - 1] == pytest.approx(0.003)
    Path("longer/checkpoints").mkdir(parents=True)
    shutil.copy("plateau/run.json", "longer")
    shutil.copytree("plateau/checkpoints/15", "longer/checkpoints/15")
    more = ["--gin.MODEL_DIR='longer'", f"--gin.TOTAL_STEPS={STEPS + 10}"]
    assert run("--gin_file=plateau/config.gin", *more) == 0
    first("whole", *wsd, f"--gin.TOTAL_STEPS={STEPS + 10}")
    whole = tiny.logged("whole")
    assert tiny.logged("longer") == {step: whole[step] for step in range(16, STEPS + 11)}


def test_a_recipe_for_two_steps_shortens_its_warmup_and_says_so(there, capsys):
    given = ["--gin.MODEL_DIR='two'", "--gin.TOTAL_STEPS=2", "--gin.WARMUP_STEPS=40"]
    assert run("--gin_file=run.gin", *given, "--gin.train.num_samples=0") == 0
    said = capsys.readouterr().out
    assert "warning: cosine: warmup_steps=40 doesn't fit into 2 steps" in said
    assert "train.eval_period=1,000" in said
    assert rates("two")[2] == pytest.approx(0.003)


def test_periods_that_do_not_go_together_are_said():
    def notes(config, total, **periods):
        return period_notes(config, total, **({"log_period": 1, "eval_period": 10} | periods))

    assert notes(CheckpointConfig(period=10), 20) == []
    [late] = notes(CheckpointConfig(period=50), 20, log_period=30)
    assert "train.log_period=30" in late and "CheckpointConfig.period=50" in late
    [every] = notes(CheckpointConfig(period=10, keep_every=15), 60)
    assert "keep_every=15" in every and "period=10" in every


@pytest.mark.parametrize("flag", ["train.log_period=0", "train.eval_period=-1"])
def test_a_period_that_never_comes_is_refused(there, capsys, flag):
    assert run("--gin_file=run.gin", "--gin.MODEL_DIR='never'", f"--gin.{flag}") == 2
    assert "expected an integer of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [f"train.total_steps={2**31}", f"train.seed={2**63}"])
def test_numbers_too_large_to_count_with_are_refused(there, capsys, flag):
    assert run("--gin_file=run.gin", "--gin.MODEL_DIR='large'", f"--gin.{flag}") == 2
    assert "and below 2**" in capsys.readouterr().err


def test_watching_ends_with_the_run_as_it_was_started_last(there):
    first("watched")
    assert run("--gin_file=watched/config.gin", f"--gin.train.total_steps={STEPS + 2}") == 0
    seconds = iter(range(100))
    waiting = Waiting("watched", Path("watched/eval"), None, 1.0, 50.0, clock=lambda: next(seconds))
    list(waiting.paths())
    assert next(seconds) < 20  # it didn't wait for more
