"""The training step, compiled while the rest of a run is set up."""

import concurrent.futures
import ctypes
import sys
from typing import Any

from t5x_lite.parallel.platform import platform


class Ahead:
    """A jitted function that is compiled in the background, from its arguments' shapes."""

    def __init__(self, jitted: Any, *arguments: Any):
        """Traces ``jitted`` here and now, on the mesh around; its errors are raised here.

        ``arguments``: arrays or `jax.ShapeDtypeStruct`s with their shardings.
        """
        lowered = jitted.lower(*arguments)
        pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._compiled = pool.submit(lowered.compile)
        if platform() == "gpu":  # XLA times kernels there: nothing else may run meanwhile
            self._compiled.result()
        pool.shutdown(wait=False)

    def result(self) -> Any:
        """Waits for the compiled function. It takes arguments of just these shapes."""
        compiled = self._compiled.result()
        return_free_memory()
        return compiled


def return_free_memory() -> None:
    """Has the C library give back what is free: after XLA has compiled, some 300 MiB."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
