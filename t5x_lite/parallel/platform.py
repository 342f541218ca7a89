"""The platform a program is compiled for: the mesh's devices, which may be on another machine."""

import jax

from t5x_lite.parallel.rules import active


def platform() -> str:
    """ "cpu", "gpu" or "tpu": of the enclosing `use_mesh`, else of this process's devices."""
    found = active()
    if found is None:
        return jax.default_backend()
    return found[0].devices.flat[0].platform


def one_device() -> bool:
    """Whether arrays are unsharded: there is no mesh, or a mesh of one device."""
    found = active()
    return found is None or found[0].size == 1
