"""launch/gke.sh and slurm.sh against stand-ins for kubectl, xpk, sbatch and srun."""

import shlex
import signal
import subprocess
import time

import pytest
import yaml
from fakes import ROOT, Fakes, flag, leftovers, printed_commands

from t5x_lite import exit_status

TEXT = "--gin.TEXT=['gs://b/a b/*.txt', \"it's: {#x}\"]"
TRAIN = ["--gin_file=my file.gin", "--gin.MODEL_DIR=gs://b/mine", TEXT]
MOUNTED = [word.replace("gs://", "/gs/") for word in TRAIN]
JOB = ["--name=mine", "--image=here.io/x/t5x_lite:1", "--poll=0"]
TPUS = ["--accelerator=tpu-v5-lite-podslice", "--topology=4x4"]
CLUSTER = ["--xpk", "--cluster=c", "--zone=z", "--project=p", "--tpu_type=v5litepod-16"]


@pytest.fixture
def gke(tmp_path):
    return Fakes(tmp_path / "fakes", "kubectl", "xpk")


def test_a_jobset_is_created_once_and_followed_through_restarts(gke):
    gke.answer("wait", err="no matching resources found\n", status=1)
    gke.answer("conditions", "")  # a restart: neither completed nor failed
    gke.answer("conditions", "Completed")
    done = gke.run("gke.sh", "run", *JOB, *TPUS, "--", *TRAIN)
    assert done.returncode == 0 and "== finished ==" in done.stdout, done.stderr
    verbs = [call[2] for call in gke.calls]
    assert verbs == ["get", "create", "wait", "logs", "get", "wait", "logs", "get"]

    jobset = yaml.safe_load(gke.stdin)
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    assert jobset["metadata"]["name"] == "mine"
    [slices] = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (1, 4, 4)
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert container["args"] == ["train", *MOUNTED]
    assert container["image"] == "here.io/x/t5x_lite:1"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    # A mistake (exit status 2) must not be tried again; anything else is.
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"]: "/gs" for volume in pod["volumes"]}
    assert not leftovers(gke.folder)


def test_a_jobset_that_is_there_is_not_created_again(gke):
    gke.answer("ignore-not-found", "jobset.jobset.x-k8s.io/mine\n")
    gke.answer("conditions", "Failed")
    done = gke.run("gke.sh", "run", *JOB, *TPUS, "--namespace=n", "--", *TRAIN)
    assert done.returncode == 1 and "has failed" in done.stderr
    assert "left behind: the JobSet mine" in done.stderr
    assert "not submitted again" in done.stdout
    assert all("--namespace=n" in call for call in gke.calls)
    assert not gke.called("create")


def test_kubectl_that_fails_ends_the_script(gke):
    gke.answer("get jobset", err="Unable to connect\n", status=1)
    done = gke.run("gke.sh", "run", *JOB, *TPUS, "--", *TRAIN)
    assert done.returncode == 1 and "Unable to connect" in done.stderr
    assert not gke.called("create")
    gke.answers.clear()
    gke.answer("create", err="forbidden\n", status=1)
    done = gke.run("gke.sh", "run", *JOB, *TPUS, "--", *TRAIN)
    assert done.returncode == 1 and "forbidden" in done.stderr
    assert not gke.called("logs")


@pytest.mark.parametrize("topology, hosts", [("2x2", 1), ("4x4x8", 32), ("2x4", 2)])
def test_hosts_of_a_topology(gke, topology, hosts):
    done = gke.run("gke.sh", "render", *JOB, TPUS[0], f"--topology={topology}", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    jobset = yaml.safe_load(done.stdout)
    assert jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == hosts
    assert gke.calls == []


def test_xpk_gets_the_command_as_one_word(gke):
    gke.answer("workload list", "mine2  RUNNING\n")  # another whose name begins so
    gke.answer("conditions", "Completed")
    done = gke.run("gke.sh", "run", *JOB, *CLUSTER, "--slices=2", "--storage=s", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    [create] = gke.called("xpk", "create")
    assert create[1:3] == ["workload", "create"]
    for name, value in (("cluster", "c"), ("zone", "z"), ("project", "p"), ("workload", "mine"),
                        ("tpu-type", "v5litepod-16"), ("num-slices", "2"), ("storage", "s"),
                        ("docker-image", "here.io/x/t5x_lite:1")):  # fmt: skip
        assert flag(create, name) == value
    assert shlex.split(flag(create, "command")) == ["t5x_lite", "train", *MOUNTED]

    gke.answers.clear()
    gke.answer("workload list", "other  QUEUED\nmine  RUNNING\n")
    gke.answer("conditions", "Completed")
    done = gke.run("gke.sh", "run", *JOB, *CLUSTER, "--", *TRAIN)
    assert done.returncode == 0 and not gke.called("xpk", "create")


def test_status_and_delete(gke):
    for more, deleted in (([], ["kubectl", "--namespace=default", "delete", "jobset", "mine"]),
                          (CLUSTER, ["xpk", "workload", "delete"])):  # fmt: skip
        assert gke.run("gke.sh", "status", "--name=mine", *more).returncode == 0
        assert gke.run("gke.sh", "delete", "--name=mine", *more).returncode == 0
        assert gke.calls[0][: len(deleted)] == deleted


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", *JOB, *TPUS, "--", "--gin.MODEL_DIR=/x"], "expected --gin.MODEL_DIR=gs://"),
        (["run", *JOB, "--", *TRAIN], "--accelerator=... is needed"),
        (["run", *JOB, *CLUSTER[:-1], "--", *TRAIN], "--tpu_type=... is needed"),
        (["render", *JOB, TPUS[0], "--topology=2x3", "--", *TRAIN], "not a multiple"),
    ],
)
def test_mistakes_on_gke(gke, arguments, message):
    done = gke.run("gke.sh", *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.startswith("error: ")
    assert done.stdout == "" and not gke.called("create")


@pytest.mark.parametrize("more", [TPUS, CLUSTER])
def test_a_dry_run_on_gke_calls_nothing(gke, more):
    done = gke.run("gke.sh", "run", *JOB, *more, "--dry_run", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in printed_commands(done.stderr)]
    assert any("create" in words for words in commands) and gke.calls == []


# -------------------------------------------------------------------------------------- SLURM

RUN = ["--gin_file=my file.gin", "--gin.MODEL_DIR=/shared/mine", TEXT]


@pytest.fixture
def slurm(tmp_path):
    """With an environment that looks installed, so that nothing is."""
    fakes = Fakes(tmp_path / "fakes", "sbatch", "squeue", "scancel", "python3")
    (fakes.folder / "venv" / "bin").mkdir(parents=True)
    wanted = subprocess.run(
        ["bash", "-c", "cat pyproject.toml launch/constraints.txt | cksum"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (fakes.folder / "venv" / "installed-cuda,data").write_text(wanted)
    return fakes


def run_slurm(fakes, command, *arguments):
    folder = str(fakes.folder)
    return fakes.run(
        "slurm.sh", command, "--name=mine", f"--logs={folder}/logs", *arguments,
        T5X_LITE_VENV=f"{folder}/venv",
    )  # fmt: skip


def test_a_job_is_submitted_once(slurm):
    more = ["--nodes=2", "--gpus_per_node=8", "--time=24:00:00", "--partition=gpu"]
    done = run_slurm(slurm, "submit", *more, "--", *RUN)
    assert done.returncode == 0, done.stderr
    [call] = slurm.called("sbatch")
    for name, value in (("nodes", "2"), ("ntasks-per-node", "8"), ("gpus-per-node", "8"),
                        ("job-name", "mine"), ("time", "24:00:00"), ("partition", "gpu"),
                        ("signal", "B:USR1@180")):  # fmt: skip
        assert flag(call, name) == value
    assert "--requeue" in call and not any("account" in word for word in call)
    script = call.index(str(ROOT / "launch" / "slurm_job.sh"))
    assert call[script + 1 :] == [f"{slurm.folder}/venv/bin/t5x_lite", "train", *RUN]

    slurm.answer("squeue", "4711\n")
    done = run_slurm(slurm, "submit", *more, "--", *RUN)
    assert done.returncode == 0 and "as job 4711" in done.stdout
    assert not slurm.called("sbatch")


def test_slurm_that_fails_submits_nothing(slurm):
    slurm.answer("squeue", err="slurm_load_jobs error\n", status=1)
    done = run_slurm(slurm, "submit", "--", *RUN)
    assert done.returncode == 1 and "slurm_load_jobs error" in done.stderr
    assert not slurm.called("sbatch")
    slurm.answers.clear()
    slurm.answer("sbatch", err="invalid partition\n", status=1)
    assert run_slurm(slurm, "submit", "--", *RUN).returncode == 1


def test_the_other_commands_of_slurm(slurm):
    assert run_slurm(slurm, "cancel").returncode == 0
    queued, running = slurm.called("scancel", "--me", "--name=mine")
    assert queued[-1] == "--state=PENDING" and running[-2:] == ["--batch", "--signal=TERM"]
    assert run_slurm(slurm, "status").returncode == 0
    assert slurm.calls == [["squeue", "--me", "--name=mine"]]
    done = run_slurm(slurm, "logs")
    assert done.returncode == 2 and "no log of mine" in done.stderr
    done = run_slurm(slurm, "submit", "--dry_run", "--", *RUN)
    assert done.returncode == 0 and slurm.calls == []
    assert shlex.split(printed_commands(done.stderr)[-1])[-3:] == RUN


def start_job(fakes, body):
    """launch/slurm_job.sh, with an `srun` that is this shell script, whose only task is itself."""
    (fakes.bin / "scancel").write_text(
        f'#!/bin/bash\necho "$@" >{fakes.folder}/scancel\nkill -TERM $(cat {fakes.folder}/tasks)\n'
    )
    (fakes.bin / "scancel").chmod(0o755)
    (fakes.bin / "srun").write_text(f"#!/bin/bash\necho $$ >{fakes.folder}/tasks\n{body}\n")
    (fakes.bin / "srun").chmod(0o755)
    (fakes.folder / "answers.json").write_text("[]")
    (fakes.folder / "calls.jsonl").write_text("")
    job = subprocess.Popen(
        ["bash", str(ROOT / "launch" / "slurm_job.sh"), "t5x_lite", "train"],
        env={"PATH": f"{fakes.bin}:/usr/bin:/bin", "SLURM_JOB_ID": "4711"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not (fakes.folder / "tasks").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)  # for its trap
    return job


# Ends with 143 when told to, like training that saves.
TRAINING = "trap 'exit 143' TERM\nfor ((i = 0; i < 300; i++)); do sleep 0.1; done\nexit 9"


@pytest.mark.parametrize("number, requeued", [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_whose_time_is_up_saves_and_is_queued_again(tmp_path, number, requeued):
    fakes = Fakes(tmp_path / "fakes", "scontrol")
    job = start_job(fakes, TRAINING)
    job.send_signal(number)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == exit_status.SAVED, output
    # To the tasks of the step: srun would kill them.
    assert (fakes.folder / "scancel").read_text() == "--signal=TERM 4711.0\n"
    assert fakes.calls == ([["scontrol", "requeue", "4711"]] if requeued else [])


@pytest.mark.parametrize("status", [0, 1, 2, 143])
def test_a_job_that_ends_by_itself_is_not_queued_again(tmp_path, status):
    fakes = Fakes(tmp_path / "fakes", "scontrol")
    job = start_job(fakes, f"exit {status}")
    output, _ = job.communicate(timeout=60)
    assert (job.returncode, fakes.calls) == (status, []), output
