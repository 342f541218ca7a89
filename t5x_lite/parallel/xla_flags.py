"""Named sets of XLA flags. Only the CPU's is on by default: measurements showed that it helps.

They take effect only if set before jax is first used in the process. Importing this doesn't
import jax.
"""

import importlib.metadata
import os
import re
from collections.abc import MutableMapping

from t5x_lite.errors import UserError, did_you_mean

# Each value is (environment variable, flags).
SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    # Eigen's matrix products in the place of YNNPACK's: single runs of a T5 1.1 small step, on a
    # busy AMD EPYC with jax 0.10.2, took 2 to 10 % fewer processor seconds, so `train` sets it; an
    # LM's beam search took twice as many.
    "cpu_eigen": ("XLA_FLAGS", ("--xla_cpu_experimental_ynn_fusion_type=",)),
    # Of an all-reduce in bfloat16 that shard_map makes (`MeshConfig.tensor` = 2 with another axis,
    # on simulated devices), this pass makes a program at which XLA ends the process. Without it the
    # sum is made in bfloat16.
    "cpu_bfloat16": ("XLA_FLAGS", ("--xla_disable_hlo_passes=all-reduce-promotion",)),
    # Overlaps communication with computation; combines collectives into fewer, larger ones.
    "gpu_overlap": (
        "XLA_FLAGS",
        (
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "--xla_gpu_all_reduce_combine_threshold_bytes=1073741824",
            "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
            "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728",
            "--xla_gpu_enable_pipelined_all_gather=true",
            "--xla_gpu_enable_pipelined_reduce_scatter=true",
            "--xla_gpu_enable_while_loop_double_buffering=true",
        ),
    ),
    # Bitwise reproducible results.
    "gpu_deterministic": (
        "XLA_FLAGS",
        ("--xla_gpu_deterministic_ops=true", "--xla_gpu_exclude_nondeterministic_ops=true"),
    ),
    # v5e fuses all-gathers into computation by itself; newer libtpu refuses it for v5p and v6e.
    "tpu_data_parallel_overlap": (
        "LIBTPU_INIT_ARGS",
        (
            "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
            "--xla_tpu_data_parallel_opt_different_sized_ops=true",
        ),
    ),
    "tpu_more_vmem": ("LIBTPU_INIT_ARGS", ("--xla_tpu_scoped_vmem_limit_kib=98304",)),
    "tpu_no_collective_matmul": (
        "LIBTPU_INIT_ARGS",
        ("--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",),
    ),
}


def apply(*names: str, environment: MutableMapping[str, str] | None = None) -> None:
    """Adds the sets' flags to the environment, but for those that are set there already.

    Raises UserError for a name that isn't one.
    """
    environment = os.environ if environment is None else environment
    for name in names:
        if name not in SETS:
            raise UserError(
                f"XLA flag set {name!r}: expected one of {', '.join(SETS)}."
                f"{did_you_mean(name, SETS)}"
            )
        variable, flags = SETS[name]
        present = environment.get(variable, "").split()
        known = {flag.partition("=")[0] for flag in present}
        new = [flag for flag in flags if flag.partition("=")[0] not in known]
        if new:
            environment[variable] = " ".join(present + new)


def apply_defaults(environment: MutableMapping[str, str] | None = None) -> None:
    """What training runs with, where this jaxlib is known to know it: XLA ends the process
    at a flag that it doesn't."""
    environment = os.environ if environment is None else environment
    enlarge_thread_pool(environment)
    version = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
    if (0, 10) <= version <= (0, 12):
        apply("cpu_eigen", environment=environment)
    simulated = "xla_force_host_platform_device_count" in environment.get("XLA_FLAGS", "")
    if simulated or "JAX_NUM_CPU_DEVICES" in environment:
        apply("cpu_bfloat16", environment=environment)


def enlarge_thread_pool(environment: MutableMapping[str, str]) -> None:
    """Gives XLA's CPU client threads enough for simulated devices to wait for each other.

    With N devices it has N threads. Two programs with collectives that are under way at once can
    block them all, each with a part of its devices: after 40 s XLA ends the process.
    """
    found = re.search(
        r"--xla_force_host_platform_device_count=(\d+)", environment.get("XLA_FLAGS", "")
    )
    if found and int(found[1]) > 1:
        environment.setdefault("PJRT_NPROC", str(2 * int(found[1])))
