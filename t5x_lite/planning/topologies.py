"""The chips that a run can be planned for: published figures, and the slices that exist.

Figures are the vendors': dense bfloat16 FLOP/s, HBM, and one-way link bandwidths.
TPUs: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and
https://jax-ml.github.io/scaling-book/tpus (links, data-centre network). GPUs: NVIDIA's data sheets.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from t5x_lite.errors import UserError, did_you_mean

GiB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator. Bandwidths in bytes/s.

    ``hbm`` is what a program may use, in bytes: TPUs reserve a part, GPUs' runtimes do too.
    ``link``: one direction of one link between chips (TPU), or of all a GPU's NVLinks together.
    ``network``: one direction of the data-centre network, per chip.
    """

    name: str
    kind: str  # as jax's device_kind names it
    flops: float
    hbm: float
    hbm_bandwidth: float
    link: float
    network: float
    platform: str = "tpu"
    dims: int = 2  # of the torus
    cores: int = 1  # per chip, in the slice's name


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 275e12, 30.75 * GiB, 1.228e12, 4.5e10, 6.25e9, dims=3, cores=2),
        Chip("v5e", "TPU v5 lite", 197e12, 15.75 * GiB, 8.19e11, 4.5e10, 3.125e9),
        Chip("v5p", "TPU v5", 459e12, 95.74 * GiB, 2.765e12, 9e10, 6.25e9, dims=3, cores=2),
        Chip("v6e", "TPU v6 lite", 918e12, 31.25 * GiB, 1.64e12, 9e10, 1.25e10),
        Chip("a100", "NVIDIA A100-SXM4-80GB", 312e12, 78 * GiB, 2.039e12, 3e11, 2.5e10, "gpu"),
        Chip("h100", "NVIDIA H100 80GB HBM3", 989.4e12, 78 * GiB, 3.35e12, 4.5e11, 5e10, "gpu"),
        Chip("h200", "NVIDIA H200", 989.4e12, 139 * GiB, 4.8e12, 4.5e11, 5e10, "gpu"),
        # A placeholder: only measurements tell a CPU's real peak.
        Chip("cpu", "cpu", 1e11, 8 * GiB, 2e10, 1e10, 1e9, "cpu"),
    )
}
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
    *((8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 24)),
)
SLICES = {"v4": _CUBES[:10], "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of equal slices. ``shape``: chips along each torus axis; (n,) for GPUs."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def name(self) -> str:
        prefix = f"{self.slices}x" if self.slices > 1 else ""
        if self.chip.platform != "tpu":
            number = f"x{self.shape[0]}" if self.chip.platform == "gpu" else ""
            return f"{self.chip.platform}:{self.chip.name}{number}" if number else self.chip.name
        known = self.shape in SLICES[self.chip.name]
        number = math.prod(self.shape) * self.chip.cores
        shape = "x".join(map(str, self.shape))
        return (
            f"{prefix}{self.chip.name}-{number}" if known else f"{prefix}{self.chip.name}:{shape}"
        )

    @property
    def compiles(self) -> bool:
        """Whether a compiler for it runs without the chip."""
        return self.chip.platform == "tpu"

    def wraps(self, axis: int) -> bool:
        """Whether the torus axis is a ring: 16 chips on v5e and v6e, multiples of 4 on v4, v5p."""
        size = self.shape[axis]
        return size % 4 == 0 and min(self.shape) >= 4 if self.chip.dims == 3 else size == 16


def known() -> str:
    """All known names, for messages."""
    names = []
    for chip, shapes in SLICES.items():
        numbers = [math.prod(shape) * CHIPS[chip].cores for shape in shapes]
        names.append(f"{chip}-{{{','.join(map(str, numbers))}}}")
    gpus = [name for name, chip in CHIPS.items() if chip.platform == "gpu"]
    return f"{', '.join(names)}, {', '.join(f'gpu:{name}xN' for name in gpus)}, cpu"


def find(name: str) -> Topology:
    """v5e-256, 2xv5e-256 (two slices), v5p:4x4x8 (chips by shape), gpu:h100x8, cpu.

    v4 and v5p slices count TensorCores, two a chip, as the cloud's names do.

    Raises:
      UserError: for a name that isn't known, with those that are.
    """
    unknown = UserError(f"unknown topology {name!r}.{_nearest(name)} Known: {known()}.")
    if match := re.fullmatch(r"(cpu)(?:x(\d+))?|gpu:([a-z]\w*?)(?:x(\d+))?", name):
        chip = CHIPS.get(match[1] or match[3])
        count = int(match[2] or match[4] or 1)
        if chip is None or chip.platform == "tpu" or count < 1:
            raise unknown
        return Topology(chip, (count,))
    match = re.fullmatch(r"(?:(\d+)x)?(v\d+[a-z]*)(?:-(\d+)|:(\d+(?:x\d+)*))", name)
    if not match or match[2] not in SLICES or match[1] == "0":
        raise unknown
    chip, slices = CHIPS[match[2]], int(match[1] or 1)
    if match[4]:
        shape = tuple(map(int, match[4].split("x")))
        if len(shape) != chip.dims:
            raise UserError(
                f"topology {name!r}: a slice of {chip.name} has {chip.dims} dimensions, such as "
                f"{'x'.join(map(str, SLICES[chip.name][-3]))}."
            )
        return Topology(chip, shape, slices)
    for shape in SLICES[chip.name]:
        if math.prod(shape) * chip.cores == int(match[3]):
            return Topology(chip, shape, slices)
    raise unknown


def _nearest(name: str) -> str:
    every = [f"{c}-{math.prod(s) * CHIPS[c].cores}" for c, shapes in SLICES.items() for s in shapes]
    return did_you_mean(name, [*every, *(f"gpu:{name}x8" for name in ("h100", "h200", "a100"))])


def abstract_devices(topology: Topology) -> Sequence[Any]:
    """The topology's devices, for lowering and compiling only; libtpu must be installed.

    To be called before jax has started a TPU backend of its own, on any machine.

    Raises:
      UserError: if libtpu is missing, or doesn't know the slice's shape.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"planning for {topology.name} needs the TPU compiler, libtpu, which runs without a "
            f"TPU: pip install 't5x_lite[plan]'"
        )
    quiet_libtpu()
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    shape = "x".join(map(str, topology.shape))
    if min(topology.shape[:2]) < 2:  # fewer than a host's 2x2 chips
        options["chips_per_host_bounds"] = (*topology.shape, 1, 1)[:3]
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{topology.chip.name}:{shape}", **options
        )
    except Exception as error:  # libtpu's own, of several types
        message = str(error).partition("\n")[0]
        raise UserError(
            f"libtpu doesn't make {topology.name}: {message}. Known: {known()}."
        ) from error
    return description.devices


def quiet_libtpu() -> None:
    """Tells libtpu that there is no TPU, and lets several processes load it at once."""
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),  # don't query a cloud's metadata server
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "true"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)
