"""The training step, compiled while the rest of a run is set up."""

import concurrent.futures
import ctypes
import sys
from typing import Any

import jax

from t5x_lite.background import BACKGROUND
from t5x_lite.parallel.platform import platform


class BackgroundCompile:
    """A jitted function that is compiled in the background, from its arguments' shapes.

    On GPUs XLA times kernels to choose among them, and nothing else may run meanwhile: there it is
    compiled when it is asked for.
    """

    def __init__(self, jitted: Any, *arguments: Any):
        """Traces ``jitted`` here and now, on the mesh around; its errors are raised here.

        ``arguments``: arrays or `jax.ShapeDtypeStruct`s with their shardings.
        """
        self._jitted, self._lowered = jitted, jitted.lower(*arguments)
        self._compiled = None
        if platform() != "gpu":
            pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=BACKGROUND)
            self._compiled = pool.submit(self._lowered.compile)
            pool.shutdown(wait=False)

    def result(self) -> Any:
        """Waits for the compiled function. It takes arguments of just these shapes."""
        if jax.config.jax_debug_nans or jax.config.jax_debug_infs:
            return self._jitted  # which alone can be run again, one operation after the other
        compiled = self._compiled.result() if self._compiled else self._lowered.compile()
        return_free_memory()
        return compiled


def return_free_memory() -> None:
    """Has the C library give back what is free: after XLA has compiled, some 300 MiB."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
