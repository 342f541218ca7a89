"""Activations by name, and gated MLPs."""

import functools
import operator

import jax

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=True),  # T5's and GPT-2's tanh form
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


def gated(hidden: list[jax.Array], activations: tuple[str, ...]) -> jax.Array:
    """The product of activated projections (GLU variants, https://arxiv.org/abs/2002.05202)."""
    activated = [ACTIVATIONS[name](h) for name, h in zip(activations, hidden, strict=True)]
    return functools.reduce(operator.mul, activated)
