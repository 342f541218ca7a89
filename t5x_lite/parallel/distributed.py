"""Runs of several processes: start-up, and agreement between them."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_lite.errors import UserError


def initialize(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    timeout: int = 300,
    heartbeat: int = 30,
) -> None:
    """Joins this process to the others; call it before the first use of a device.

    With explicit arguments (``host:port`` of process 0) it works anywhere. Without them it asks
    jax to detect the cluster (TPU pods, SLURM, Open MPI, Kubernetes) if there are signs of one,
    and otherwise stays a single process. If a process sends no heartbeat for ``heartbeat``
    seconds, all others end.

    Raises:
      UserError: if only some of the three arguments are given.
    """
    given = (coordinator_address, process_count, process_index)
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UserError(
                f"got coordinator_address={coordinator_address}, process_count={process_count}, "
                f"process_index={process_index}: give all three, or none to find the cluster."
            )
        jax.distributed.initialize(
            coordinator_address,
            process_count,
            process_index,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=heartbeat,
        )
    elif _in_cluster():
        jax.distributed.initialize(
            initialization_timeout=timeout, heartbeat_timeout_seconds=heartbeat
        )


def _in_cluster() -> bool:
    several_tpu_hosts = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    slurm_tasks = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    mpi_tasks = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    return several_tpu_hosts or slurm_tasks or mpi_tasks


def gather_rows(local: np.ndarray, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the global [batch_size, ...] array; each process passes the ``rows`` that it holds.

    Every process must call it (it is a collective), and they may hold different numbers of rows.
    """
    if jax.process_count() == 1:
        return local
    # int64 would be cut to int32 on the way through jax: send halves.
    padded = np.full((batch_size, *local.shape[1:]), -1, np.int64)
    padded[rows] = local
    halves = np.ascontiguousarray(padded).view(np.int32)
    everyone = np.asarray(multihost_utils.process_allgather(halves)).copy().view(np.int64)
    return everyone.max(axis=0)


def any_process(here: bool) -> bool:
    """Whether it holds on any process; every process must call it (it is a collective)."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).any())


def from_main(steps: Sequence[int], most: int = 256) -> list[int]:
    """Process 0's list of numbers (``most`` at most); every process must call it."""
    if jax.process_count() == 1:
        return list(steps)
    numbers = np.full(most, -1, np.int32)
    numbers[: min(len(steps), most)] = steps[:most]
    return [int(n) for n in multihost_utils.broadcast_one_to_all(numbers) if n >= 0]


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends all processes of a run at once if one of them raises an error.

    An orderly shutdown would wait for the others, and they wait for this one. The others only
    see a broken connection, which isn't the cause; each prints what it knows in one line.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        first = str(error).partition("\n")[0]
        status = 2 if isinstance(error, UserError) else 1
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
            first = f"another process of this run has ended, or can't be reached ({first})"
        elif not isinstance(error, UserError):
            traceback.print_exc()
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} ends: {first}. The "
            "same command on all processes, or on another number of them, continues from the last "
            "checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(status)


_LOST = re.compile(
    "(?i)gloo|nccl|connection (closed|reset)|broken pipe|peer|heartbeat|unavailable|unhealthy|"
    "coordination|deadline|preempted"
)


def is_main_process() -> bool:
    """Whether this process is the one that writes the files of the run."""
    return jax.process_index() == 0
