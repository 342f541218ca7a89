"""The collectives of a compiled program: kind, bytes, mesh axes."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from t5x_lite.planning.hlo import COLLECTIVES, Instruction, Program, size


@dataclasses.dataclass(frozen=True)
class Collective:
    """One logical collective. ``sent``: bytes that each chip sends at one execution."""

    kind: str
    times: int
    sent: float
    members: tuple[int, ...]  # one group's positions in the mesh, flattened
    phase: str
    asynchronous: bool


def collectives(program: Program, devices: int) -> list[Collective]:
    """Returns all collectives that run. One that XLA splits over several fusions counts once."""
    met = []
    shapes = collections.defaultdict(set)
    for i, visit in program.executed():
        kind = i.op.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        channel = re.search(r"channel_id=(\d+)", i.rest)
        channel, shape = channel and channel[1], i.shape.split("{")[0]
        shapes[channel].add((kind, shape))
        met.append((i, visit, kind, channel, shape))
    unique: dict[tuple, tuple[int, Instruction, str, bool]] = {}
    for i, visit, kind, channel, shape in met:
        if not visit.fused:
            key = (kind, visit.computation, i.name)
        else:
            key = (kind, channel, shape, visit.loop if len(shapes[channel]) > 1 else "")
        if key not in unique or visit.times < unique[key][0]:
            unique[key] = (visit.times, i, kind, visit.fused or i.op.endswith("-start"))
    return [
        Collective(kind, times, _sent(i, kind, members), members, i.phase, overlapped)
        for times, i, kind, overlapped in unique.values()
        for members in [group(i.rest, devices)]
    ]


def _sent(i: Instruction, kind: str, members: tuple[int, ...]) -> float:
    n = len(members)
    async_pair = i.op.endswith("-start") and kind != "all-reduce"
    b = size(i.shape, largest=async_pair)
    return {
        "all-gather": b * (n - 1) / n,
        "all-reduce": 2 * b * (n - 1) / n,
        "reduce-scatter": b * (n - 1),
        "collective-permute": b,
        "all-to-all": b * (n - 1) / n,
    }[kind]


def group(rest: str, devices: int) -> tuple[int, ...]:
    """Returns the first group of devices that communicate; of a permute its first pair."""
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return int(found[1]), int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {a: int(n) for a, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
        axes = [a for a in re.findall(r"'([^']+)'", found[2]) if a in sizes]
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        index = tuple(slice(None) if a in axes else 0 for a in sizes)
        return tuple(int(n) for n in ids[index].ravel())
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        dims = [int(n) for n in found[3].split(",")]
        ids = np.arange(math.prod(dims)).reshape(dims)
        if found[4]:
            ids = ids.transpose([int(n) for n in found[4].split(",")])
        return tuple(int(n) for n in ids.reshape(int(found[1]), int(found[2]))[0])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(int(n) for n in found[1].split(","))
    return tuple(range(devices))


def mesh_axes(members: tuple[int, ...], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which a group's members differ, such as "fsdp" or "data*fsdp"."""
    places = np.array(np.unravel_index(np.array(members), tuple(mesh.values())))
    varying = (places != places[:, :1]).any(axis=1)
    return "*".join(axis for axis, differs in zip(mesh, varying, strict=True) if differs) or "-"
