"""The device mesh: axes ``data`` (replicas), ``fsdp`` (sharded parameters), ``tensor`` (Megatron).

The batch is split over ``data`` and ``fsdp``; see rules.py for what is split over what.
"""

import dataclasses
import math
from collections.abc import Sequence

import gin
import jax
from jax.sharding import AxisType, Mesh

from t5x_lite.errors import UserError

AXES = ("data", "fsdp", "tensor")


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; at most one may be -1, "the rest of the devices"."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Returns the axis sizes for ``num_devices`` devices, or raises UserError."""
        sizes = [getattr(self, axis) for axis in AXES]
        given = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
            raise UserError(
                f"mesh {given}: sizes are positive, and one of them may be -1 (the rest)."
            )
        known = math.prod(size for size in sizes if size != -1)
        if num_devices % known or (-1 not in sizes and known != num_devices):
            raise UserError(
                f"mesh {given} needs {'a multiple of ' if -1 in sizes else ''}{known} devices, "
                f"found {num_devices}: set one axis to -1, or make the product fit."
            )
        return tuple(num_devices // known if size == -1 else size for size in sizes)


def make_mesh(
    config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Returns a mesh of all devices (or of ``devices``), ordered by jax to suit their topology."""
    devices = jax.devices() if devices is None else devices
    sizes = (config or MeshConfig()).sizes(len(devices))
    # Auto, not make_mesh's default Explicit: the sharding of intermediate values is left to XLA,
    # and constraints below are hints to it.
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
