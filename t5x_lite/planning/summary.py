"""Summary of a compiled program, ready for JSON."""

import collections
import math
from collections.abc import Mapping
from typing import Any

from t5x_lite.planning.collectives import collectives as collectives_of
from t5x_lite.planning.collectives import mesh_axes
from t5x_lite.planning.hlo import Program
from t5x_lite.planning.products import matmul_flops
from t5x_lite.planning.traffic import busy_seconds, hbm_bytes, largest_buffers


def summarize(
    program: Program, mesh: Mapping[str, int], peak_flops: float, bandwidth: float
) -> dict[str, Any]:
    """FLOPs, bytes, seconds, collectives, loops, buffers. ``mesh``: the sizes of its axes."""
    devices = math.prod(mesh.values())
    found = collectives_of(program, devices)
    by_kind: dict[str, float] = collections.defaultdict(float)
    rows: dict[tuple, dict[str, Any]] = {}
    for c in found:
        by_kind[c.kind] += c.times * c.sent
        key = (c.kind, mesh_axes(c.members, mesh), c.members)
        row = rows.setdefault(
            key,
            {"kind": c.kind, "axes": key[1], "members": list(c.members), "times": 0, "bytes": 0.0,
             "overlapped": 0.0},
        )  # fmt: skip
        row["times"] += c.times
        row["bytes"] += c.times * c.sent
        row["overlapped"] += c.times * c.sent * c.asynchronous
    return {
        "matmul_flops": matmul_flops(program),
        "hbm_bytes": hbm_bytes(program),
        "busy_seconds": busy_seconds(program, peak_flops, bandwidth),
        "sent_bytes": dict(by_kind),
        "collectives": sorted(rows.values(), key=lambda row: -row["bytes"]),
        "loops": [[body, trips] for body, trips in program.loops if "windowed" not in body],
        "windowed_loops": sum("windowed" in body for body, _ in program.loops),
        "unknown_trips": sum(trips is None for _, trips in program.loops),
        "kernels": sum(
            visit.times for i, visit in program.executed()
            if i.op == "custom-call" and "tpu_custom_call" in i.rest
        ),
        "buffers": largest_buffers(program),
    }  # fmt: skip
