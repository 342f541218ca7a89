"""Muon: momentum orthogonalized by Newton-Schulz for matrices, Adam for the other parameters.

Jordan 2024 (https://kellerjordan.github.io/posts/muon/); the scale of the updates is that of Liu et
al. 2025 (arXiv:2502.16982, section 2.2). One flat state of plain arrays, unlike optax.contrib's,
which masks trees and carries the iteration's coefficients.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# A quintic with the steepest slope at 0 that still ends near 1: singular values come out between
# 0.7 and 1.2, not at 1, and training doesn't mind.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class MuonState(NamedTuple):
    """Trees like the parameters' tree; nu, Adam's second moment, is zeros [1] for a matrix."""

    count: jax.Array  # int32 scalar, updates made
    mu: Any
    nu: Any


def orthogonalize(x: jax.Array, steps: int = 5) -> jax.Array:
    """Brings the singular values of matrices [..., M, N] near 1, keeping their singular vectors."""
    a, b, c = NEWTON_SCHULZ
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT  # the smaller Gram matrix
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=(-2, -1), keepdims=True), 1e-20)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def scale_by_muon(
    dims: Any,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    newton_schulz_steps: int = 5,
    rms_scale: float = 0.2,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """Muon's direction, float32, to be multiplied by the learning rate.

    Args:
      dims: tree of `adafactor.Dims` shaped like the parameters; one without `matrix` is Adam's.
      rms_scale: RMS of a matrix's update, about; AdamW's is 0.2 to 0.4.
      b1, b2, eps: Adam's.
    """

    def init(params: Any) -> MuonState:
        return MuonState(
            count=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(lambda p: jnp.zeros(p.shape, mu_dtype or jnp.float32), params),
            nu=jax.tree.map(lambda p, d: jnp.zeros((1,) if d.matrix else p.shape), params, dims),
        )

    def matrix_step(grad, dim, mu):
        mu = momentum * mu + (1.0 - momentum) * grad
        ahead = momentum * mu + (1.0 - momentum) * grad if nesterov else mu
        stacked = jnp.moveaxis(ahead, dim.matrix, (-2, -1))
        step = jnp.moveaxis(orthogonalize(stacked, newton_schulz_steps), (-2, -1), dim.matrix)
        return step * rms_scale * max(grad.shape[i] for i in dim.matrix) ** 0.5, mu

    def adam_step(grad, t, mu, nu):
        mu = b1 * mu + (1.0 - b1) * grad
        nu = b2 * nu + (1.0 - b2) * jnp.square(grad)
        return mu / (1.0 - b1**t) / (jnp.sqrt(nu / (1.0 - b2**t)) + eps), mu, nu

    def update(grads: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        del params
        count = optax.safe_increment(state.count)

        def leaf(grad, dim, mu, nu):
            grad, old = grad.astype(jnp.float32), mu.astype(jnp.float32)
            if dim.matrix:
                step, new = matrix_step(grad, dim, old)
            else:
                step, new, nu = adam_step(grad, count.astype(jnp.float32), old, nu)
            return step, new.astype(mu.dtype), nu

        leaves = jax.tree.map(leaf, grads, dims, state.mu, state.nu)
        step, mu, nu = jax.tree.transpose(
            jax.tree.structure(grads), jax.tree.structure((0, 0, 0)), leaves
        )
        return step, MuonState(count, mu, nu)

    return optax.GradientTransformation(init, update)
