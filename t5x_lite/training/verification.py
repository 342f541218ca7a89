"""Whether a checkpoint is what was saved: checksums of values, and of the record that holds them.

A checksum is taken of an array's values, on its devices, just before they are saved, and again
after they are restored. So it finds whatever happened in between (to a file, on its way, in a
codec), it doesn't depend on the mesh, and nothing is read twice.
"""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite.errors import UserError


class Damaged(UserError):
    """A checkpoint whose files can't be read, or don't hold what was saved."""


def checksums(named: Mapping[str, Any]) -> tuple[dict[str, int], str | None]:
    """Checksums of arrays by name, and the first array that holds a NaN (or, in params, an inf).

    Every process must call it. The checksum is the sum modulo 2^32 of each element's bits times an
    odd number that depends on where it is: integer addition, so the order of summation and the
    sharding don't matter; a change of any one element always shows, of several all but surely.
    """
    leaves = list(named.values())
    sharding = getattr(leaves[0], "sharding", None) if leaves else None
    if isinstance(sharding, NamedSharding):  # the whole answer, on every process
        sums, bad = _whole(NamedSharding(sharding.mesh, PartitionSpec()))(leaves)
    else:
        sums, bad = _measure(leaves)
    sums, bad = jax.device_get((sums, bad))
    first_bad = next(
        (
            name
            for name, (nans, infinities) in zip(named, bad, strict=True)
            if nans or (infinities and name.startswith("params/"))
        ),
        None,
    )
    return {name: int(value) for name, value in zip(named, sums, strict=True)}, first_bad


def _measured(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return (
        jnp.stack([_checksum(leaf) for leaf in leaves]),
        jnp.stack([jnp.stack([jnp.isnan(x).any(), jnp.isinf(x).any()]) for x in leaves]),
    )


_measure = jax.jit(_measured)
_compiled: dict[NamedSharding, Any] = {}


def _whole(sharding: NamedSharding):
    if sharding not in _compiled:
        _compiled[sharding] = jax.jit(_measured, out_shardings=sharding)
    return _compiled[sharding]


def _checksum(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place = jnp.uint32(0)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride)
    mixed = place * np.uint32(0x9E3779B1)
    odd = (mixed ^ (mixed >> 15)) * np.uint32(0x85EBCA6B) | np.uint32(1)
    return jnp.sum(bits * odd, dtype=jnp.uint32)


def differing(saved: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """Names of arrays whose checksum isn't the one that was saved."""
    return [name for name, value in found.items() if saved.get(name, value) != value]


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON record with a checksum of itself."""
    return record | {"crc32": _crc32(record)}


def check_seal(record: Any, path: Any) -> None:
    """Raises Damaged unless a record that was sealed is as it was then."""
    if not isinstance(record, dict):
        raise Damaged(f"{path} holds no JSON object but {type(record).__name__}.")
    if "arrays" not in record or "step" not in record:
        raise Damaged(f"{path} has no 'step' or no 'arrays': it isn't what was saved.")
    body = {key: value for key, value in record.items() if key != "crc32"}
    if "crc32" in record and record["crc32"] != _crc32(body):
        raise Damaged(f"{path} isn't what was saved: its checksum differs.")


def _crc32(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
