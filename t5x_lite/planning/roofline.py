"""Lower bounds of a step's time from its compute, memory traffic and communication.

These are bounds, not forecasts: nothing runs at its peak. There are three:

  overlapped      the largest of compute, HBM and interconnect time: the others are hidden behind it
  not_overlapped  their sum: nothing is hidden
  as_compiled     all instructions one after the other, each at the speed of its products or its
                  memory; asynchronous copies and collectives are hidden behind them, synchronous
                  collectives are added

The roofline model: https://jax-ml.github.io/scaling-book/roofline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.planning.topologies import Topology

DAY = 86_400.0


def bandwidth(topology: Topology, places: Sequence[tuple[int, ...]]) -> float:
    """Bytes/s that a chip can send in a collective among chips at these coordinates of a slice.

    For each torus axis that the group spans: both directions of a ring, otherwise one.
    """
    if topology.chip.platform != "tpu":
        return topology.chip.link
    coordinates = np.array(places)
    total = 0.0
    for axis in range(len(topology.shape)):
        spanned = len(set(coordinates[:, axis].tolist()))
        if spanned > 1:
            ring = spanned == topology.shape[axis] and topology.wraps(axis)
            total += topology.chip.link * (2 if ring else 1)
    return total or topology.chip.link


def collective_seconds(
    row: Mapping[str, Any], topology: Topology, places: Sequence[tuple[int, ...]],
    slices: Sequence[int],
) -> float:  # fmt: skip
    """Seconds of one row of `summarize`'s collectives; places, slices: of its members."""
    n, among = len(places), len(set(slices))
    if row["kind"] == "collective-permute":
        # Windowed products send to both neighbours at once: a row for each direction.
        return row["bytes"] / (topology.chip.network if among > 1 else 2 * topology.chip.link)
    if among == 1:
        return row["bytes"] / bandwidth(topology, places)
    # First within each slice; then each chip exchanges its part with its peers in other slices.
    here = n // among
    within = row["bytes"] * (here - 1) / here * n / (n - 1)
    across = row["bytes"] / here * (among - 1) / among * n / (n - 1)
    inner = [place for place, at in zip(places, slices, strict=True) if at == slices[0]]
    return within / bandwidth(topology, inner) + across / topology.chip.network


def estimate(
    *,
    topology: Topology,
    executed_flops: float,
    model_flops: float,
    hbm_bytes: float,
    collectives: Sequence[Mapping[str, Any]],
    tokens: float,
    busy: float | None = None,
) -> dict[str, float]:
    """Seconds of one step by each bound, and the MFU and throughput that follow.

    Args:
      executed_flops: of one chip, recomputation included.
      model_flops: of the whole step, over all chips (see models/flops.py).
      hbm_bytes: of one chip.
      collectives: rows with "seconds", "bytes" and "overlapped" (the part of the bytes).
      tokens: of the whole batch.
      busy: seconds of `traffic.busy_seconds`, where there is a compiled program.
    """
    chip = topology.chip
    times = {
        "compute": executed_flops / chip.flops,
        "hbm": hbm_bytes / chip.hbm_bandwidth,
        "interconnect": sum(row["seconds"] for row in collectives),
    }
    hidden = sum(
        row["seconds"] * row["overlapped"] / row["bytes"] for row in collectives if row["bytes"]
    )
    exposed = times["interconnect"] - hidden
    overlapped, not_overlapped = max(times.values()), sum(times.values())
    busy = max(times["compute"], times["hbm"]) if busy is None else busy
    # Asynchronous copies are hidden, but HBM's bandwidth still bounds the sum.
    as_compiled = max(busy, times["hbm"], hidden) + exposed
    peak = chip.flops * topology.chips
    return times | {
        "exposed_interconnect": exposed,
        "busy": busy,
        "overlapped": overlapped,
        "not_overlapped": not_overlapped,
        "as_compiled": as_compiled,
        "mfu": model_flops / (as_compiled * peak),
        "mfu_overlapped": model_flops / (overlapped * peak),
        "mfu_not_overlapped": model_flops / (not_overlapped * peak),
        "tokens_per_second": tokens / as_compiled,
    }


def budget(seconds: float, steps: int, chips: int, price: float | None) -> dict[str, float | None]:
    """Days, chip-hours and cost of a number of steps of this duration."""
    hours = seconds * steps / 3600
    return {
        "days": hours * 3600 / DAY,
        "chip_hours": hours * chips,
        "cost": None if price is None else hours * chips * price,
    }
