"""A campaign of faults against real training processes, compared with a run that had none.

    python benchmarks/faults.py --runs 100 --json

Each fault hits a training process, or the folder of one, at a random moment; then the same command
is given again. When a run is done, every logged loss and every array of its last checkpoint must be
equal (==) to those of the uninterrupted reference. The kinds:

  kill           SIGKILL, at any time from the start of the process on
  restart        SIGKILL to a process under `--restart`: its supervisor continues by itself
  sigterm        must save and exit with 143
  truncate, flip, delete   SIGKILL, then damage to a file of the newest checkpoint
  full_disk      no room for more bytes for a while (a small tmpfs; without the right to mount one,
                 a limit on the size of files): training must go on
  data_gone, data_changed  SIGKILL, then a start without the data file, or with other contents:
                 must end with status 2 and one line that names the trouble
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SAVED = 143  # asked to stop, and saved (t5x_lite/exit_status.py)
DAMAGE = ("truncate", "flip", "delete")
KINDS = ("kill", "kill", "restart", "sigterm", *DAMAGE, "full_disk", "data_gone", "data_changed")
PERIOD, DISK_BYTES = 10, 48 << 20
GIN = """
include "runs/base.gin"
include "models/t5_1_1_tiny.gin"
include "optimizers/adamw.gin"
TASK = @Task()
Task.name = "sentences"
Task.source = @TextFiles()
TextFiles.files = %TEXT
TextFiles.held_out = 0.1
Task.objective = @SpanCorruption()
Task.vocabulary = @ByteVocabulary()
TransformerConfig.vocab_size = 384
TransformerConfig.embed_dim = 16
TransformerConfig.num_heads = 2
TransformerConfig.head_dim = 8
TransformerConfig.mlp_dim = 32
TransformerConfig.num_encoder_layers = 1
TransformerConfig.num_decoder_layers = 1
TransformerConfig.dropout_rate = 0.1
LENGTHS = {"inputs": 64, "targets": 16}
BATCH_SIZE = 8
PEAK_RATE = 0.01
WARMUP_STEPS = 10
train.eval_batch_count = 1
train.eval_period = 50
train.log_period = 1
train.num_samples = 0
train.checkpoint = @CheckpointConfig()
CheckpointConfig.period = 10
"""


class Campaign:
    """One temporary folder: the data, the reference, the runs that are hit."""

    def __init__(self, folder: Path, steps: int, seed: int):
        self.folder, self.steps, self.rng = folder, steps, random.Random(seed)
        self.faults: collections.Counter[str] = collections.Counter()
        self.trouble: list[str] = []  # what must not happen, in words
        self.redone = self.starts = self.failed_saves = self.set_aside = self.mismatches = (
            self.crashes
        ) = 0
        self.start_seconds = 10.0
        folder.mkdir(parents=True, exist_ok=True)
        self.text = folder / "text.txt"
        words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then"]
        lines = (" ".join(self.rng.choices(words, k=self.rng.randint(20, 90))) for _ in range(300))
        self.contents = "\n".join(lines)
        self.text.write_text(self.contents)
        (folder / "faults.gin").write_text(GIN)
        self.disk = folder / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.disk)]
        self.mounted = subprocess.run(mount, capture_output=True).returncode == 0

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.disk)], check=False)

    # ------------------------------------------------------------------- processes

    def start(self, run: Path, *flags: str) -> subprocess.Popen:
        """Starts the command that began the run, or continues it."""
        self.starts += 1
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PYTHONPATH": str(REPOSITORY),
        }
        command = [sys.executable, "-m", "t5x_lite", "train", "--gin_file=faults.gin", *flags]
        command += [f"--gin.MODEL_DIR='{run}'", f"--gin.TEXT='{self.text}'"]
        command += [f"--gin.TOTAL_STEPS={self.steps}"]
        with self.output(run).open("w") as output:
            return subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=output, stderr=subprocess.STDOUT
            )

    def output(self, run: Path) -> Path:
        return self.folder / f"{run.name}.out"

    def last_step(self, run: Path) -> int:
        with contextlib.suppress(OSError, IndexError, ValueError):
            lines = (run / "metrics.jsonl").read_text().split("\n")
            return json.loads(lines[-2])["step"]
        return 0

    def wait_for_step(self, run: Path, process: subprocess.Popen, step: int) -> bool:
        """Waits until a step is logged; False if the process ends before."""
        before, began = self.last_step(run), time.monotonic()
        while process.poll() is None and self.last_step(run) < step:
            if time.monotonic() - began > 300:
                process.kill()
                self.fail(run, f"no step {step} in 300 s (was at {before})")
                return False
            time.sleep(0.01)
        return process.poll() is None

    def count_redone(self, run: Path, logged: int) -> None:
        """After a start: the steps between where it went on and where the one before had been."""
        text = self.output(run).read_text()
        if found := re.search(r"continuing from step ([\d,]+)", text):
            self.redone += max(0, logged - int(found[1].replace(",", "")))
        self.set_aside += text.lower().count("it is kept as")
        self.failed_saves += text.count("NOT SAVED")

    def fail(self, run: Path, what: str) -> None:
        tail = self.output(run).read_text()[-1500:]
        self.trouble.append(f"{run.name}: {what}; its output ended: {tail}")
        print(f"TROUBLE {self.trouble[-1]}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------- faults

    def hit(self, kind: str, run: Path) -> None:
        """Starts a process, brings the fault upon it, and leaves the run to be continued."""
        logged = self.last_step(run)
        process = self.start(run, *(["--restart=2"] if kind == "restart" else []))
        if kind == "kill" and self.rng.random() < 0.4:
            # Whatever it is doing: importing, restoring, compiling.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.rng.uniform(0, 1.2 * self.start_seconds))
            alive = process.poll() is None
        else:
            began = time.monotonic()
            alive = self.wait_for_step(run, process, logged + 1)
            self.start_seconds = 0.5 * self.start_seconds + 0.5 * (time.monotonic() - began)
            target = min(logged + self.rng.randint(2, 60), self.steps - 1)
            alive = alive and self.wait_for_step(run, process, target)
            time.sleep(self.rng.uniform(0, 0.05))
        if not alive:
            self.finished(run, process)
        elif kind == "sigterm":
            process.terminate()
            if process.wait(60) != SAVED:
                self.fail(run, f"SIGTERM: status {process.returncode}, not 143")
        elif kind == "full_disk":
            self.fill_disk(run, process)
        elif kind == "restart":
            self.kill_child(run, process)
        else:
            process.kill()
            process.wait()
        self.count_redone(run, logged)
        if kind in DAMAGE:
            self.damage(kind, run)
        elif kind in ("data_gone", "data_changed"):
            self.without_data(kind, run)
        self.faults[kind] += 1

    def finished(self, run: Path, process: subprocess.Popen) -> None:
        if process.wait() != 0:
            self.crashes += 1
            self.fail(run, f"a start ended with status {process.returncode}")

    def kill_child(self, run: Path, process: subprocess.Popen) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        # Only a new child gets further; near the end it is left to finish.
        target = self.last_step(run) + 15
        if target < self.steps and self.wait_for_step(run, process, target):
            process.terminate()
        if process.wait(120) not in (0, SAVED):
            self.fail(run, f"the supervisor ended with status {process.returncode}")

    def fill_disk(self, run: Path, process: subprocess.Popen) -> None:
        ballast = self.disk / "ballast"
        if self.mounted:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
            with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                while True:
                    file.write(b"0")
        else:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.rng.uniform(0.5, 3))
        if self.mounted:
            ballast.unlink()
        elif process.poll() is None:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        reached = self.last_step(run)
        if self.wait_for_step(run, process, min(reached + 2 * PERIOD, self.steps)):
            process.kill()
            process.wait()
        else:
            self.finished(run, process)

    def damage(self, kind: str, run: Path) -> None:
        """Damages a file of the newest checkpoint, if it isn't the only one."""
        folder = run / "checkpoints"
        steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
        if len(steps) < 2:
            return
        files = [f for f in (folder / str(steps[-1])).rglob("*") if f.is_file()]
        file = self.rng.choice(sorted(f for f in files if f.stat().st_size))
        if self.rng.random() < 0.5:  # most files are small and matter little
            file = max(files, key=lambda f: f.stat().st_size)
        data = bytearray(file.read_bytes())
        if kind == "delete":
            file.unlink()
        elif kind == "truncate":
            file.write_bytes(data[: self.rng.randrange(len(data))])
        else:
            for _ in range(self.rng.choice((1, 1, 10))):
                data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            file.write_bytes(data)

    def without_data(self, kind: str, run: Path) -> None:
        if kind == "data_gone":
            self.text.unlink()
        else:
            self.text.write_text(self.contents[: len(self.contents) // 2])
        process = self.start(run)
        status = process.wait(300)
        lines = [x for x in self.output(run).read_text().splitlines() if x.startswith("error: ")]
        if status != 2 or len(lines) != 1:
            self.fail(run, f"{kind}: status {status}, {len(lines)} lines of error")
        self.text.write_text(self.contents)

    # ------------------------------------------------------------------- verdicts

    def finish(self, run: Path) -> None:
        """Runs it to its end without faults."""
        logged = self.last_step(run)
        process = self.start(run)
        process.wait(600)
        self.finished(run, process)
        self.count_redone(run, logged)

    def compare(self, run: Path, reference: Path) -> None:
        for name in ("loss", "grad_norm", "accuracy", "eval/loss"):
            expected, found = logged(reference, name), logged(run, name)
            if found != expected:
                steps = [s for s in expected.keys() | found.keys()
                         if expected.get(s) != found.get(s)]  # fmt: skip
                self.mismatches += 1
                self.fail(run, f"{name} differs at steps {sorted(steps)[:10]}")
        expected, found = arrays(reference, self.steps), arrays(run, self.steps)
        for name in expected.keys() | found.keys():
            if expected.get(name) != found.get(name):
                self.mismatches += 1
                self.fail(run, f"{name} differs after the last step")

    def report(self, runs: int, began: float) -> dict:
        return {
            "runs": runs,
            "faults": sum(self.faults.values()),
            "faults_by_kind": dict(self.faults),
            "full_disk_by": "tmpfs" if self.mounted else "file size limit",
            "processes_started": self.starts,
            "steps_per_run": self.steps,
            "steps_redone": self.redone,
            "checkpoints_set_aside": self.set_aside,
            "saves_that_failed": self.failed_saves,
            "mismatches": self.mismatches,
            "crashes_on_start": self.crashes,
            "trouble": self.trouble,
            "seconds": round(time.monotonic() - began, 1),
        }


def logged(run: Path, name: str) -> dict[int, float]:
    """step -> value; a value that was logged twice and differently counts as a difference."""
    values: dict[int, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        value = record.get(name)
        if name in record and values.setdefault(record["step"], value) != value:
            values[record["step"]] = float("nan")
    return values


def arrays(run: Path, step: int) -> dict[str, bytes]:
    """Every array of a checkpoint, as bytes by name."""
    import jax
    import numpy as np

    from t5x_lite.training import checkpoint_layout as layout
    from t5x_lite.training.checkpoints import Checkpoints

    checkpoints = Checkpoints(run)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {}
    for name, spec in checkpoints.description(step)["arrays"].items():
        dtype, _, shape = spec.removesuffix("]").partition("[")
        dimensions = tuple(int(n) for n in shape.split(",") if n)
        wanted[name] = jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding)
    state, position, _ = checkpoints.restore(step, layout.nested(wanted))
    found = layout.by_name(state) | {"position": position}
    return {name: np.asarray(value).tobytes() for name, value in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="faults to bring about")
    parser.add_argument("--steps", type=int, default=240, help="of every run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    began = time.monotonic()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="faults_"))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(REPOSITORY))
    campaign = Campaign(folder, args.steps, args.seed)
    try:
        reference = folder / "reference"
        campaign.finish(reference)
        trials = 0
        order: list[str] = []  # every kind comes as often as the others
        while sum(campaign.faults.values()) < args.runs and len(campaign.trouble) < 10:
            run = campaign.disk / f"run_{trials}"
            trials += 1
            while campaign.last_step(run) < args.steps - 1:
                if sum(campaign.faults.values()) >= args.runs:
                    break
                if not order:
                    order = random.Random(args.seed + trials).sample(KINDS, len(KINDS))
                kind = order.pop()
                campaign.hit(kind, run)
                print(f"{time.monotonic() - began:6.0f} s  {run.name}: {kind}, at step "
                      f"{campaign.last_step(run)}", file=sys.stderr, flush=True)  # fmt: skip
            campaign.finish(run)
            campaign.compare(run, reference)
            shutil.rmtree(run)
            so_far = campaign.report(trials, began)
            (folder / "report.json").write_text(json.dumps(so_far, indent=1))
    finally:
        campaign.close()
    report = campaign.report(trials, began)
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join(f"{name:>22}  {value}" for name, value in report.items()))
    if not args.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if campaign.trouble else 0


if __name__ == "__main__":
    sys.exit(main())
