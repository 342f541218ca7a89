"""What a program is compiled for: the mesh's devices, which need not be this machine's."""

import jax

from t5x_lite.parallel.rules import active


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the `use_mesh` around, else of this process's devices."""
    found = active()
    if found is None:
        return jax.default_backend()
    return found[0].devices.flat[0].platform


def one_device() -> bool:
    """Whether arrays are whole here: without a mesh, or on a mesh of one device."""
    found = active()
    return found is None or found[0].size == 1
