"""The device mesh: its axes, their sizes, and the order of the devices.

Axes: ``data`` (replicas), ``fsdp`` (parameters sharded, gathered for use), ``expert`` (each device
holds some experts of a mixture), ``context`` (each row's positions are split), ``tensor``
(Megatron). The batch is split over the first three; rules.py says what is split over what.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from t5x_lite.errors import UserError

# In the mesh's order: devices along the last axes are neighbours; `tensor` communicates most.
AXES = ("data", "fsdp", "expert", "context", "tensor")
# Sub-axes of `fsdp`, one per torus axis; gather.py says why.
FSDP_PARTS = ("fsdp_x", "fsdp_y", "fsdp_z")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; at most one may be -1, "the rest of the devices".

    With ``fsdp_split``, such as (16, 16) for fsdp=256 on a v5e-256, ``fsdp`` is split over these
    torus axes: parameters are all-gathered, and gradients reduce-scattered, explicitly along one
    torus axis after the other (gather.py).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    fsdp_split: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.fsdp_split is None:
            return
        split = tuple(self.fsdp_split)
        object.__setattr__(self, "fsdp_split", split)
        whole = math.prod(split)
        if not 1 <= len(split) <= len(FSDP_PARTS) or min(split) < 1 or self.fsdp != whole:
            raise UserError(
                f"fsdp_split = {split} with fsdp = {self.fsdp}: expected one to three positive "
                f"sizes whose product is fsdp; set MeshConfig.fsdp = {whole}."
            )

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Returns the sizes of AXES for ``num_devices`` devices, or raises UserError."""
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
    """Returns a mesh of all devices (or of ``devices``), ordered by jax to suit their topology.

    Its axes are AXES, with ``fsdp_x``, ... in the place of ``fsdp`` if that is split.
    """
    devices = jax.devices() if devices is None else devices
    config = config or MeshConfig()
    sizes, names = config.sizes(len(devices)), AXES
    if config.fsdp_split is not None:
        split = config.fsdp_split
        place = AXES.index("fsdp")
        sizes = sizes[:place] + split + sizes[place + 1 :]
        names = AXES[:place] + FSDP_PARTS[: len(split)] + AXES[place + 1 :]
    # Auto, not make_mesh's default Explicit: the sharding of intermediate values is left to XLA,
    # and constraints below are hints to it.
    types = (AxisType.Auto,) * len(names)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and devices[0].platform == "tpu":
        return Mesh(_across(slices, sizes, devices), names, axis_types=types)
    return jax.make_mesh(sizes, names, axis_types=types, devices=devices)


def _across(slices: int, sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Arranges the devices of several slices: the first axis that allows it, ``data``, spans them.

    Communication along that axis uses the data-centre network.
    """
    place = next((i for i, size in enumerate(sizes) if size % slices == 0), None)
    if place is None:
        raise UserError(
            f"mesh of {' x '.join(map(str, sizes))} devices on {slices} slices: no axis can be "
            f"divided among them; set MeshConfig.data to a multiple of {slices}."
        )
    across = [slices if i == place else 1 for i in range(len(sizes))]
    inside = [size // n for size, n in zip(sizes, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inside, across, devices, allow_split_physical_axes=True
    )


def fsdp_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes that ``fsdp`` stands for: itself, or its sub-axes."""
    return tuple(axis for axis in mesh.axis_names if axis == "fsdp" or axis in FSDP_PARTS)


def gathers_explicitly(mesh: Mesh) -> bool:
    """Whether the mesh was made with ``fsdp_split``."""
    return FSDP_PARTS[0] in mesh.axis_names
