"""Products of activations and weights, in the forms that are fast where they run."""

from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.parallel.platform import one_device, platform

TRANSPOSED = "kernel_transposed"  # [out, in], in the place of a dense layer's "kernel"
FEW_ROWS = 64


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] @ kernel [in, *out]."""
    if not one_device():
        return jnp.tensordot(x, kernel, 1) if kernel.ndim > 2 else x @ kernel
    # Two matrices: of any other product's gradient, XLA's CPU backend transposes copies first.
    y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(x.shape[-1], -1)
    return y.reshape(*x.shape[:-1], *kernel.shape[1:])


def transposed_product(x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
    """x [..., in], kernel [out, in] -> [..., out] of ``dtype`` (None: x's), as kernel @ x^T."""
    columns = x.reshape(-1, x.shape[-1]).T
    y = jnp.matmul(kernel.astype(x.dtype), columns, preferred_element_type=dtype)
    # Without the barrier XLA makes x @ kernel^T of it.
    y = jax.lax.optimization_barrier(y)
    return y.T.reshape(*x.shape[:-1], kernel.shape[0])


def low_rank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """x [..., in] @ a [in, rank] @ b [rank, *out]."""
    return product(product(x, a), b)


def prefers_transposed(rows: int) -> bool:
    """Whether products of so many rows are faster here as `transposed_product`.

    XLA's CPU backend packs the second operand of a product anew at each call, and reads the first
    where it is: with few rows the weights had better be the first. One row's product packs nothing.
    """
    return rows <= FEW_ROWS and platform() == "cpu" and one_device()


def transpose_kernels(decoder: dict) -> dict:
    """An unrolled decoder's parameters with dense kernels as TRANSPOSED, for single steps.

    They are taken out of ``decoder``, to be freed one by one. What stays: experts and their router,
    which aren't dense layers, and the kernels of a cross-attention's keys and values, which steps
    don't multiply by.
    """
    found = {}
    for name in list(decoder):
        value = decoder.pop(name)
        if name == "encoder_decoder_attention":
            kept = {key: value.pop(key) for key in ("key", "value", "kv") if key in value}
            found[name] = transpose_kernels(value) | kept
        elif name == "kernel":
            # A tree of it, as it may be an `Int8`.
            found[TRANSPOSED] = jax.tree.map(lambda a: a.reshape(a.shape[0], -1).T, value)
        elif isinstance(value, dict) and "router" not in value:
            found[name] = transpose_kernels(value)
        else:
            found[name] = value
    return found
