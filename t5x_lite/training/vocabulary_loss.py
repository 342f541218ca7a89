"""The loss from hidden states, a few tokens' logits at a time: never are all of them in memory.

The gradients of the hidden states and of the output layer are made in the same pass as the loss,
so logits are computed once (as in Liger Kernel, https://arxiv.org/abs/2410.10989). On a mesh the
output layer is gathered once, and its gradient reduced once, not for every piece.
Dimensions: B batch, T target length, D embed, V vocabulary, c tokens of a piece.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x_lite.models.model import Head
from t5x_lite.parallel.gather import gather, scatter
from t5x_lite.parallel.platform import one_device, platform
from t5x_lite.parallel.rules import active, divides, partition_spec, splits
from t5x_lite.training.losses import check_coefficients, token_losses

PIECE_BYTES = 64 * 2**20  # of float32 logits, on one device


class Sums(NamedTuple):
    """float32 scalars: the weighted loss (z-loss included), the z-loss, the weights, and the hits
    (most probable token = target) weighted by ``real``."""

    loss: jax.Array
    z_loss: jax.Array
    weight: jax.Array
    hits: jax.Array


class _Options(NamedTuple):
    label_smoothing: float
    z_loss: float
    scale: float
    soft_cap: float | None
    vocab_axis: int  # of the kernel
    names: tuple[str, str]  # the kernel's logical axes
    pieces: int | None
    axis: int  # of the vocabulary in a piece's logits: 2, [B, c, V], or 0, [V, B, c]


def vocabulary_loss(
    hidden: jax.Array,
    head: Head,
    targets: jax.Array,
    weights: jax.Array,
    real: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    pieces: int | None = None,
) -> Sums:
    """`cross_entropy` of the logits that ``head`` makes of ``hidden``, and the hits.

    Args:
      hidden: [B, T, D], of any float type, in which products are computed.
      head: the output layer, see `Model.head`.
      targets: [B, T] int; weights, real: [B, T] of any number type; real: weights if None.
      pieces: in how many pieces the tokens are cut; None: 64 MiB of logits each.

    Only ``loss`` has a gradient, to hidden and the head's kernel and bias; the head's is summed in
    float32.
    """
    check_coefficients(label_smoothing, z_loss)
    # From a kernel [V, D] a CPU is faster with logits [V, tokens]: a tenth of the loss's time.
    axis = 0 if platform() == "cpu" and one_device() and head.vocab_axis == 0 else 2
    options = _Options(
        label_smoothing, z_loss, head.scale, head.soft_cap, head.vocab_axis, head.names,
        pieces, axis,
    )  # fmt: skip
    weights = weights.astype(jnp.float32)
    real = weights if real is None else real.astype(jnp.float32)
    layer = {"kernel": head.kernel}
    if head.bias is not None:
        layer["bias"] = head.bias
    return Sums(*_loss(hidden, layer, targets, weights, real, options))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _loss(hidden, layer, targets, weights, real, options):
    return _everywhere(hidden, layer, targets, weights, real, options, False)[0]


def _loss_fwd(hidden, layer, targets, weights, real, options):
    return _everywhere(hidden, layer, targets, weights, real, options, True)


def _loss_bwd(options, gradients, cotangents):
    dhidden, dlayer = gradients
    g = cotangents[0]
    dlayer = {name: g * value for name, value in dlayer.items()}
    return (g * dhidden).astype(dhidden.dtype), dlayer, None, None, None


_loss.defvjp(_loss_fwd, _loss_bwd)


def _everywhere(hidden, layer, targets, weights, real, options, differentiate):
    """`_local` on each device's tokens: (sums, (dhidden, dlayer) or None)."""
    found = None if one_device() else active()
    rows = ("activation_batch", "activation_length")
    if found is not None:
        mesh, rules = found
        spec = partition_spec(rows, rules, mesh)
        if not divides(mesh, targets.shape, spec):
            found = None
    if found is None:
        flat = [x.reshape(1, -1, *x.shape[2:]) for x in (hidden, targets, weights, real)]
        if not one_device():
            flat = [hidden, targets, weights, real]
        sums, gradients = _local(flat[0], layer, *flat[1:], options, differentiate)
        if differentiate:
            gradients = (gradients[0].reshape(hidden.shape), _as_typed(gradients[1], layer))
        return sums, gradients

    # `tensor` is left to XLA: it splits the vocabulary, and sums over it.
    manual = tuple(a for a in mesh.axis_names if a != "tensor" or mesh.shape[a] == 1)
    names = {"kernel": options.names, "bias": (options.names[options.vocab_axis],)}
    layer_specs = {name: _only(names[name], rules, mesh, manual) for name in layer}
    owners = {n: [axis for split in splits(s) for axis in split] for n, s in layer_specs.items()}

    def summed(x, axes):
        # Not over axes of one device: where all are, the compiler knows no device group for it.
        several = tuple(a for a in manual if a in axes and mesh.shape[a] > 1)
        return jax.lax.psum(x, several) if several else x

    def local(hidden, layer, targets, weights, real):
        # The kernel in the dtype of the product before it travels, and whole for all pieces.
        cast = layer | {"kernel": layer["kernel"].astype(hidden.dtype)}
        whole = {n: gather(x, layer_specs[n], owners[n]) for n, x in cast.items()}
        sums, gradients = _local(hidden, whole, targets, weights, real, options, differentiate)
        sums = tuple(summed(x, manual) for x in sums)
        if differentiate:
            dhidden, dlayer = gradients
            for name, gradient in dlayer.items():
                if owners[name]:  # as all parameters' gradients: float32 is twice the bytes
                    gradient = gradient.astype(cast[name].dtype)
                    gradient = scatter(gradient, layer_specs[name], owners[name])
                    gradient = gradient.astype(jnp.float32)
                dlayer[name] = summed(gradient, set(manual) - set(owners[name]))
            # Else XLA goes on with the layers, and keeps the whole dlayer in memory until later.
            gradients = jax.lax.optimization_barrier((dhidden, _as_typed(dlayer, layer)))
        return sums, gradients

    scalar = PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(spec, layer_specs, spec, spec, spec),
        out_specs=((scalar,) * 4, (spec, layer_specs) if differentiate else None),
        axis_names=set(manual),
        check_vma=False,
    )(hidden, layer, targets, weights, real)


def _only(names, rules, mesh, manual) -> PartitionSpec:
    """The partition of these logical axes, of the mesh axes in ``manual`` alone."""
    found = splits(partition_spec(names, rules, mesh))
    return PartitionSpec(*(tuple(a for a in split if a in manual) or None for split in found))


def _as_typed(gradients, layer):
    return {name: gradient.astype(layer[name].dtype) for name, gradient in gradients.items()}


def _local(hidden, layer, targets, weights, real, options: _Options, differentiate: bool):
    """Sums, and the gradients of hidden (in its dtype) and layer (float32), piece by piece."""
    B, T, D = hidden.shape
    kernel = layer["kernel"]
    V = kernel.shape[options.vocab_axis]
    if options.pieces:
        pieces = min(options.pieces, T)
        length = math.ceil(T / pieces)
    else:
        length = piece_length(T, math.ceil(4 * B * T * V / PIECE_BYTES))
        pieces = math.ceil(T / length)
    layer = layer | {"kernel": kernel.astype(hidden.dtype)}

    def cut(x):  # [B, T, ...] -> [pieces, B, c, ...]
        x = jnp.pad(x, [(0, 0), (0, pieces * length - T)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(B, pieces, -1, *x.shape[2:]).swapaxes(0, 1)

    def piece(carry, arrays):
        sums, dlayer = carry
        more, dhidden, dlogits = _piece(*arrays, layer, options, differentiate)
        sums = tuple(a + b for a, b in zip(sums, more, strict=True))
        if differentiate:
            parts = _dlayer(arrays[0], dlogits, options)
            dlayer = {name: total + parts[name] for name, total in dlayer.items()}
        return (sums, dlayer), dhidden

    dlayer = None
    if differentiate:
        dlayer = {name: jnp.zeros(x.shape, jnp.float32) for name, x in layer.items()}
    zeros = (jnp.float32(0),) * 4
    arrays = tuple(cut(x) for x in (hidden, targets, weights, real))
    if pieces == 1:
        (sums, dlayer), dhidden = piece((zeros, dlayer), tuple(x[0] for x in arrays))
        return sums, (dhidden, dlayer) if differentiate else None
    (sums, dlayer), dhidden = jax.lax.scan(piece, (zeros, dlayer), arrays)
    if not differentiate:
        return sums, None
    dhidden = dhidden.swapaxes(0, 1).reshape(B, -1, D)[:, :T]
    return sums, (dhidden, dlayer)


def piece_length(length: int, pieces: int) -> int:
    """How many of ``length`` tokens are in a piece, if there are to be about ``pieces`` of them.

    A multiple of 8, the rows of a TPU's tile, that divides ``length``, if there is one near;
    17 tokens take the time of 24.
    """
    if pieces <= 1:
        return length
    longest = max(length // min(pieces, length), 1)
    tiles = range(longest - longest % 8, longest // 2, -8)
    dividing = (tile for tile in tiles if length % tile == 0)
    return next(dividing, tiles[0] if tiles else longest)


def _piece(hidden, targets, weights, real, layer, options: _Options, differentiate: bool):
    """Sums, dhidden [B, c, D], and the gradient of the product of hidden and kernel, as matrix
    [B c, V] or [V, B c]."""
    kernel, flat, axis = layer["kernel"], hidden.reshape(-1, hidden.shape[-1]), options.axis
    wide = functools.partial(jnp.expand_dims, axis=axis)  # [B, c] to be one with logits
    if axis:
        logits = _dot(flat, kernel, 1, 1 - options.vocab_axis).reshape(*targets.shape, -1)
    else:
        logits = _dot(kernel, flat, 1 - options.vocab_axis, 1).reshape(-1, *targets.shape)
    logits = logits / options.scale if options.scale != 1.0 else logits
    if "bias" in layer:
        logits += layer["bias"] if axis else layer["bias"][:, None, None]
    slope = None
    if options.soft_cap is not None:
        bent = jnp.tanh(logits / options.soft_cap)
        logits, slope = options.soft_cap * bent, 1.0 - jnp.square(bent)
    smoothing = options.label_smoothing
    nll, z, log_z = token_losses(
        logits, targets, label_smoothing=smoothing, z_loss=options.z_loss, axis=axis
    )
    hit = jnp.argmax(logits, axis=axis) == targets
    sums = (
        jnp.sum((nll + z) * weights),
        jnp.sum(z * weights),
        jnp.sum(weights),
        jnp.sum(hit * real),
    )
    if not differentiate:
        return sums, None, None
    # The loss's derivative is softmax * (1 + that of the z-loss) - the smoothed target.
    low = smoothing / (logits.shape[axis] - 1)
    is_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, axis) == wide(targets)
    probability = jnp.exp(logits - wide(log_z))
    factor = weights * (1.0 + 2.0 * options.z_loss * log_z)
    wanted = jnp.where(is_target, 1.0 - smoothing, low)
    dlogits = probability * wide(factor) - wanted * wide(weights)
    if slope is not None:
        dlogits *= slope
    dlogits = dlogits / options.scale if options.scale != 1.0 else dlogits
    dlogits = dlogits.astype(hidden.dtype)
    dlogits = dlogits.reshape((-1, dlogits.shape[2]) if axis else (len(dlogits), -1))
    dhidden = _dot(dlogits, kernel, 1 if axis else 0, options.vocab_axis)
    return sums, dhidden.reshape(hidden.shape).astype(hidden.dtype), dlogits


def _dlayer(hidden, dlogits, options: _Options) -> dict:
    """What a piece adds to the gradients of kernel and bias, float32."""
    tokens = 0 if options.axis else 1  # their axis in dlogits
    hidden = hidden.reshape(-1, hidden.shape[-1])
    if options.vocab_axis:
        kernel = _dot(hidden, dlogits, 0, tokens)
    else:
        kernel = _dot(dlogits, hidden, tokens, 0)
    bias = options.scale * jnp.sum(dlogits, axis=tokens, dtype=jnp.float32)
    return {"kernel": kernel, "bias": bias}


def _dot(x, y, x_axis, y_axis):
    dims = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)
