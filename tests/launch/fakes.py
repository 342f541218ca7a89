"""Stand-ins for gcloud, kubectl, ... on the PATH: they note how they are called, and answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# -S -E: it starts in a tenth of the time.
PROGRAM = f"""#!{sys.executable} -SE
import json, os, sys
folder = {{folder!r}}
with open(folder + "/calls.jsonl", "a") as file:
    stdin = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
    if stdin:
        open(folder + "/stdin", "w").write(stdin)
line = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
answers = json.load(open(folder + "/answers.json"))
for answer in answers:
    if answer["to"] in line and answer["times"]:
        answer["times"] -= 1
        json.dump(answers, open(folder + "/answers.json", "w"))
        sys.stdout.write(answer["out"])
        sys.stderr.write(answer["err"])
        sys.exit(answer["status"])
"""


class Fakes:
    """`tools` on the PATH, before all others. What has no answer prints nothing and exits 0."""

    def __init__(self, folder: Path, *tools: str):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        for tool in tools:
            file = self.bin / tool
            file.write_text(PROGRAM.format(folder=str(folder)))
            file.chmod(0o755)
        self.answers: list[dict] = []

    def answer(self, to: str, out: str = "", *, err: str = "", status: int = 0, times: int = 1):
        """The next `times` calls whose words contain `to` get this answer (-1: all of them)."""
        self.answers.append(dict(to=to, out=out, err=err, status=status, times=times))

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs launch/SCRIPT with the answers given so far."""
        (self.folder / "answers.json").write_text(json.dumps(self.answers))
        (self.folder / "calls.jsonl").write_text("")
        return subprocess.run(
            ["bash", str(ROOT / "launch" / script), *arguments],
            env={
                "PATH": f"{self.bin}:/usr/bin:/bin",
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def calls(self) -> list[list[str]]:
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def called(self, *words: str) -> list[list[str]]:
        """The calls that contain all of these words."""
        return [call for call in self.calls if all(word in call for word in words)]

    @property
    def stdin(self) -> str:
        return (self.folder / "stdin").read_text()


def flag(call: list[str], name: str) -> str:
    """The value of --name=value."""
    [value] = [word.partition("=")[2] for word in call if word.startswith(f"--{name}=")]
    return value


def printed_commands(stderr: str) -> list[str]:
    return [line[2:] for line in stderr.splitlines() if line.startswith("+ ")]


def leftovers(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if name.startswith("tmp")}
