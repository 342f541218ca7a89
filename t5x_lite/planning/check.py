"""The end of a run: predicted memory and FLOPs beside the measured ones."""

import resource
import sys
from typing import Any

import jax

from t5x_lite.models.flops import train_flops
from t5x_lite.planning import analytic
from t5x_lite.training.setup import Setup
from t5x_lite.training.state import TrainState
from t5x_lite.units import gib, short


def predicted_and_measured(
    setup: Setup,
    state: TrainState,
    *,
    num_microbatches: int = 1,
    compiled: Any = None,
) -> dict[str, str]:
    """Returns lines to print, by name: memory of a device, and FLOPs of a step.

    Args:
      state: abstract or real; only its shapes and shardings are read.
      compiled: the step; XLA's own account of its memory is added if it is a
        `jax.stages.Compiled`.
    """
    found = analytic.counts(setup, state, num_microbatches)
    memory = found["memory"]
    known = sum(memory[name] for name in ("parameters", "optimizer", "gradients"))
    lines = {
        "memory per device": f"predicted {gib(known + memory['activations'])} (state and gradients "
        f"{gib(known)}); {measured_memory()}"
    }
    model = train_flops(setup.model.config, setup.feature_lengths, setup.batch_size)
    predicted = sum(found["matmul_flops"].values()) * setup.mesh.size
    lines["FLOPs per step"] = f"model {short(model)}, with recomputation {short(predicted)}"
    if isinstance(compiled, jax.stages.Compiled) and (ma := compiled.memory_analysis()):
        total = ma.argument_size_in_bytes + ma.output_size_in_bytes - ma.alias_size_in_bytes
        lines["memory per device"] += f"; compiled step {gib(total + ma.temp_size_in_bytes)}"
    return lines


def measured_memory() -> str:
    """Peak memory so far: of the first device's allocator, or on CPUs of the whole process."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if peak := stats.get("peak_bytes_in_use"):
        return f"measured {gib(peak)}"
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else
                                                                 1024)  # fmt: skip
    count = jax.local_device_count()
    whole = f"{count} devices'" if count > 1 else "the"
    return f"measured {gib(used)}, {whole} process with Python and its libraries"
