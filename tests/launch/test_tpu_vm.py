"""launch/tpu_vm.sh against a stand-in for gcloud, and the script that it runs on the hosts."""

import os
import shlex
import signal
import subprocess

import pytest
from fakes import ROOT, Fakes, flag, leftovers, printed_commands
from waiting import wait_until

from t5x_lite import exit_status

SLICE = ["--name=mine", "--zone=us-west4-a", "--poll=0"]
ASK = [*SLICE, "--accelerator=v5litepod-16", "--spot"]
TEXT = "--gin.TEXT=['gs://b/a b/*.txt', \"it's\"]"
TRAIN = ["--", "--gin_file=my file.gin", "--gin.MODEL_DIR=gs://b/mine", TEXT]
NOT_THERE = dict(err="ERROR: NOT_FOUND: Resource 'mine' was not found", status=1)


@pytest.fixture
def gcloud(tmp_path):
    return Fakes(tmp_path / "fakes", "gcloud")


def steps(fakes):
    """What was done, in order, in a word each."""
    verbs = ("describe", "create", "delete", "scp", "setup", "start", "follow", "stop")
    lines = [" ".join(call) for call in fakes.calls]
    return [next(verb for verb in verbs if verb in line) for line in lines]


def test_a_new_slice_is_asked_for_set_up_and_trained_on(gcloud):
    gcloud.answer("describe", **NOT_THERE)
    gcloud.answer("describe", "WAITING_FOR_RESOURCES\n", times=2)
    gcloud.answer("describe", "ACTIVE\n", times=-1)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, *TRAIN)
    assert done.returncode == 0, done.stderr
    asked = ["describe", "create", "describe", "describe", "describe"]
    assert steps(gcloud) == [*asked, "scp", "setup", "start", "follow"]
    [create] = gcloud.called("create")
    assert create[1:5] == ["compute", "tpus", "queued-resources", "create"]
    assert create[5] == "mine" and "--spot" in create
    assert flag(create, "node-id") == "mine" and flag(create, "zone") == "us-west4-a"
    assert flag(create, "accelerator-type") == "v5litepod-16"
    assert flag(create, "runtime-version") == "v2-alpha-tpuv5-lite"
    assert not any(word.startswith("--project") for word in create)
    [start] = [call for call in gcloud.calls if "tpu_worker.sh start" in " ".join(call)]
    assert start[1:5] == ["compute", "tpus", "tpu-vm", "ssh"] and flag(start, "worker") == "all"
    # What the hosts' shell makes of it is what was given here.
    words = shlex.split(flag(start, "command"))
    assert words == ["bash", "tpu_worker.sh", "start", "--restart=3", *TRAIN[1:]]
    assert "still there and costs money" in done.stdout
    assert not leftovers(gcloud.folder)


def test_a_second_run_goes_on_with_what_is_there(gcloud):
    gcloud.answer("describe", "ACTIVE\n", times=-1)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, "--delete_after", "--project=p", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert steps(gcloud) == ["describe", "scp", "setup", "start", "follow", "delete"]
    assert all(flag(call, "project") == "p" for call in gcloud.calls)
    assert "--force" in gcloud.calls[-1] and "--quiet" in gcloud.calls[-1]


def test_a_slice_that_is_taken_away_is_replaced(gcloud):
    gcloud.answer("describe", "ACTIVE\n")
    gcloud.answer("follow", status=255)
    gcloud.answer("describe", "SUSPENDING\n", times=2)
    gcloud.answer("describe", "SUSPENDED\n")
    gcloud.answer("describe", **NOT_THERE)
    gcloud.answer("describe", "ACTIVE\n", times=-1)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, "--settle=1", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "the slice is gone" in done.stderr
    trained = ["scp", "setup", "start", "follow"]
    again = ["describe", "describe", "describe", "delete", "describe", "create", "describe"]
    assert steps(gcloud) == ["describe", *trained, *again, *trained]


def test_a_preempted_slice_that_has_saved_is_not_taken_for_finished(gcloud):
    gcloud.answer("describe", "ACTIVE\n")
    gcloud.answer("follow", status=exit_status.SAVED)
    gcloud.answer("describe", "SUSPENDED\n", times=2)
    gcloud.answer("describe", **NOT_THERE)
    gcloud.answer("describe", "ACTIVE\n", times=-1)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, "--delete_after", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "asked to stop, and has saved" in done.stderr and "the slice is gone" in done.stderr
    did = [step for step in steps(gcloud) if step in ("follow", "create", "delete")]
    assert did == ["follow", "delete", "create", "follow", "delete"]  # finished at the second


def test_a_slice_whose_training_was_stopped_by_the_user_is_left_alone(gcloud):
    gcloud.answer("describe", "ACTIVE\n", times=-1)
    gcloud.answer("follow", status=exit_status.SAVED)
    gcloud.answer("tpu_worker.sh stopped", "yes\n")
    done = gcloud.run("tpu_vm.sh", "run", *ASK, "--delete_after", *TRAIN)
    assert done.returncode == exit_status.SAVED
    assert "not started again" in done.stderr and "delete" not in steps(gcloud)


def test_a_machine_that_stays_after_a_notice_trains_on(gcloud):
    gcloud.answer("describe", "ACTIVE\n", times=-1)
    gcloud.answer("follow", status=exit_status.SAVED)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert steps(gcloud).count("follow") == 2 and "create" not in steps(gcloud)


def test_the_scripts_know_the_status_of_the_package():
    for name in ("common.sh", "slurm_job.sh"):
        text = (ROOT / "launch" / name).read_text()
        assert f"\nsaved_status={exit_status.SAVED}" in text


def test_a_lost_connection_is_made_again(gcloud):
    gcloud.answer("describe", "ACTIVE\n", times=-1)
    gcloud.answer("scp", status=255, times=2)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert steps(gcloud).count("scp") == 3 and "create" not in steps(gcloud)


@pytest.mark.parametrize("status, expected, started", [(2, 2, 1), (1, 1, 1)])
def test_training_that_fails_ends_the_script_and_names_the_slice(gcloud, status, expected, started):
    gcloud.answer("describe", "ACTIVE\n", times=-1)
    gcloud.answer("follow", status=status, times=-1)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, *TRAIN)
    assert done.returncode == expected
    assert steps(gcloud).count("start") == started
    assert "left behind: the TPU slice mine, which costs money: bash launch/tpu_vm.sh delete" in (
        done.stderr
    )


def test_a_request_that_fails_is_reported_once(gcloud):
    gcloud.answer("describe", **NOT_THERE)
    gcloud.answer("create", err="quota\n", status=1)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, *TRAIN)
    assert done.returncode == 1 and "quota" in done.stderr
    assert "left behind: perhaps the TPU slice mine" in done.stderr
    assert steps(gcloud) == ["describe", "create"]

    gcloud.answers.clear()
    gcloud.answer("describe", **NOT_THERE)
    gcloud.answer("describe", "FAILED\n", times=-1)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, *TRAIN)
    assert done.returncode == 1 and "the request failed" in done.stderr


def test_what_cannot_be_asked_creates_nothing(gcloud):
    gcloud.answer("describe", err="ERROR: PERMISSION_DENIED\n", status=1, times=-1)
    done = gcloud.run("tpu_vm.sh", "run", *ASK, *TRAIN)
    assert done.returncode == 1 and "PERMISSION_DENIED" in done.stderr
    assert steps(gcloud) == ["describe"]


def test_a_dry_run_prints_every_command_and_calls_nothing(gcloud):
    done = gcloud.run("tpu_vm.sh", "run", *ASK, "--dry_run", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert gcloud.calls == []
    commands = [shlex.split(line) for line in printed_commands(done.stderr)]
    assert [words[4] for words in commands] == ["describe", "create", "scp", "ssh", "ssh", "ssh"]
    assert shlex.split(flag(commands[-2], "command"))[-3:] == TRAIN[1:]
    assert not leftovers(gcloud.folder)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", *ASK, "--", "--gin.MODEL_DIR=./runs/x"], "expected --gin.MODEL_DIR=gs://"),
        (["run", *SLICE, *TRAIN], "--accelerator=... is needed"),
        (["run", *ASK, "--acelerator=v4-8", *TRAIN], "unknown flag '--acelerator=v4-8'"),
        (["run", *ASK[1:], "--name=Mine 2", *TRAIN], "--name='Mine 2': expected"),
        (["run", *SLICE, "--accelerator=tpu", *TRAIN], "expected v4-N"),
        (["run", *ASK, "--gin_file=x"], "unknown flag '--gin_file=x'"),
        (["start", *ASK, *TRAIN], "unknown command 'start'"),
        (["run", *ASK, "--name"], "--name needs a value"),
    ],
)
def test_mistakes_are_answered_in_one_line(gcloud, arguments, message):
    done = gcloud.run("tpu_vm.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert gcloud.calls == []


def test_the_other_commands(gcloud):
    for command, word in (("stop", "stop"), ("logs", "follow"), ("delete", "delete")):
        done = gcloud.run("tpu_vm.sh", command, *SLICE)
        assert done.returncode == 0, done.stderr
        assert steps(gcloud) == [word]
    assert gcloud.run("tpu_vm.sh", "status", *SLICE).returncode == 0
    assert steps(gcloud) == ["describe"]


# ------------------------------------------------------------------------------- on the hosts


@pytest.fixture
def host(tmp_path):
    """A host of a slice, on which t5x_lite is a shell script."""
    fakes = Fakes(tmp_path / "host", "curl", "mountpoint", "gcsfuse")
    program = fakes.folder / "t5x_lite" / ".venv" / "bin" / "t5x_lite"
    program.parent.mkdir(parents=True)
    program.write_text(
        f"#!/bin/bash\nprintf '%s\\n' \"$@\" >{fakes.folder}/words\n"
        "trap 'echo saved; exit 143' TERM\n"
        "[[ ! -e wait ]] || for ((i = 0; i < 600; i++)); do sleep 0.1; done\n"
        "echo trained; exit $(cat status 2>/dev/null || echo 0)\n"
    )
    program.chmod(0o755)
    return fakes


def on_host(fakes, *arguments):
    return fakes.run("tpu_worker.sh", *arguments)


def words(fakes, count):
    file = fakes.folder / "words"
    wait_until(lambda: file.exists() and len(file.read_text().splitlines()) == count)
    return file.read_text().splitlines()


@pytest.mark.parametrize("endpoints", ["10.0.0.1,10.0.0.2", "a:0:10.0.0.1,b:1:10.0.0.2"])
def test_a_host_joins_the_others_of_its_slice(host, endpoints):
    host.answer("worker-network-endpoints", endpoints)
    host.answer("agent-worker-number", "1")
    assert on_host(host, "start", "--restart=3", TEXT).returncode == 0
    expected = [
        "--coordinator_address=10.0.0.1:8476",
        "--process_count=2",
        "--process_index=1",
        "--restart=3",
        TEXT.replace("gs://", f"{host.folder}/gs/"),
    ]
    assert words(host, 6) == ["train", *expected]
    done = on_host(host, "follow")
    assert done.returncode == 0 and "trained" in done.stdout


def test_a_single_host_is_alone_and_its_exit_status_comes_back(host):
    host.answer("worker-network-endpoints", "10.0.0.1", times=-1)
    (host.folder / "t5x_lite" / "status").write_text("2")
    assert on_host(host, "start", "--x=1").returncode == 0
    assert words(host, 2) == ["train", "--x=1"]
    assert on_host(host, "follow").returncode == 2


def test_a_host_that_is_told_nothing_starts_nothing(host):
    host.answer("worker-network-endpoints", status=6)
    done = on_host(host, "start", "--x=1")
    assert done.returncode == 1 and "can't be told its slice's hosts" in done.stderr
    assert not (host.folder / "words").exists()


def test_training_is_not_started_twice_and_stops_when_asked(host):
    host.answer("worker-network-endpoints", "10.0.0.1", times=-1)
    (host.folder / "t5x_lite" / "wait").touch()
    assert on_host(host, "start", "--x=1").returncode == 0
    words(host, 2)
    try:
        for command in ("start", "setup"):
            done = on_host(host, command, "--x=2")
            assert done.returncode == 0 and "training is under way" in done.stdout
        assert words(host, 2) == ["train", "--x=1"]
        assert on_host(host, "stop").returncode == 0
    finally:
        pid = int((host.folder / "train.pid").read_text())
        if (
            subprocess.run(["kill", "-0", str(pid)], capture_output=True, check=False).returncode
            == 0
        ):
            os.killpg(pid, signal.SIGKILL)
    done = on_host(host, "follow")
    assert done.returncode == exit_status.SAVED and "saved" in done.stdout
    assert on_host(host, "stopped").stdout == "yes\n"
    assert on_host(host, "start", "--x=3").returncode == 0
    assert on_host(host, "stopped").stdout == ""
    assert on_host(host, "stop").returncode == 0


def test_what_is_sent_is_what_setup_unpacks():
    """The names in the archive exist, and setup removes what an older one left."""
    script = (ROOT / "launch" / "tpu_vm.sh").read_text()
    line = next(line for line in script.splitlines() if "pyproject.toml" in line)
    sent = line.strip().rstrip("\\").split()
    assert all((ROOT / name).exists() for name in sent)
    worker = (ROOT / "launch" / "tpu_worker.sh").read_text()
    folders = [name for name in sent if (ROOT / name).is_dir()]
    assert len(folders) == 3
    assert all(f"$home/t5x_lite/{name}" in worker for name in folders)
