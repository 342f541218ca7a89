"""The two steps, pure functions of (state, batch); everything else in training is around them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x_lite.errors import UserError
from t5x_lite.models import Model
from t5x_lite.training.guards import SpikeGuard
from t5x_lite.training.losses import cross_entropy, loss_normalizer
from t5x_lite.training.state import TrainState, key_for
from t5x_lite.training.vocabulary_loss import vocabulary_loss

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Batch], Metrics]


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class Loss:
    """Cross entropy as T5X's: with z-loss, label smoothing and a normaliser.

    ``normalizer``: "num_real_target_tokens" (the mean over target tokens),
    "num_total_target_tokens", "average_per_sequence", a constant, or None for the sum.
    ``in_pieces``: a few tokens' logits at a time, see vocabulary_loss.py; or all at once.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    normalizer: str | float | None = "num_real_target_tokens"
    in_pieces: bool = True

    def sums(self, model: Model, params, batch: Batch, real, **options) -> tuple:
        """Sums of the loss, of the z-loss, of the weights and of ``real`` hits; and aux values."""
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        coefficients = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        if self.in_pieces:
            hidden, aux = model.hidden(params, batch, **options)
            head = model.head(params)
            return *vocabulary_loss(hidden, head, targets, weights, real, **coefficients), aux
        logits, aux = model.apply(params, batch, **options)
        total, z_loss, weight = cross_entropy(logits, targets, weights, **coefficients)
        hits = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * real)
        return total, z_loss, weight, hits, aux


def make_train_step(
    model: Model,
    transform: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    loss: Loss | None = None,
    num_microbatches: int = 1,
    seed: int = 0,
    guard: SpikeGuard | None = None,
) -> TrainStep:
    """Returns (state, batch) -> (state, metrics), ready for jax.jit with the state donated.

    The loss is normalised over the whole global batch before it is cut into micro-batches, so
    their number changes neither loss nor gradients (but for rounding, and dropout's draws).
    Dropout's key is a function of (seed, step). An update that isn't finite, or a spike by
    ``guard``, is not applied.

    Metrics (scalars): loss (as optimised), cross_entropy and z_loss (per target token), accuracy,
    target_tokens, grad_norm, learning_rate, bad_steps; and bad_parameter: the place, in tree
    order, of the first parameter whose gradient isn't finite, or -1.
    """
    loss = loss or Loss()

    def microbatch_loss(params, batch, normalizer, rng):
        total, z_loss, weight, hits, aux = loss.sums(
            model, params, batch, batch["real_weights"], rng=rng, train=True
        )
        # What the experts ask for counts as a loss per target token.
        aux = {f"aux_{name}": value * weight for name, value in aux.items()}
        total += aux.get("aux_loss", 0.0)
        tokens = jnp.sum(batch["real_weights"])
        sums = {"loss": total, "z_loss": z_loss, "hits": hits, "target_tokens": tokens} | aux
        return total / normalizer, sums

    grad_fn = jax.value_and_grad(microbatch_loss, has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        normalizer, weights = loss_normalizer(loss.normalizer, batch)
        batch = batch | {
            "real_weights": batch["decoder_loss_weights"].astype(jnp.float32),
            "decoder_loss_weights": weights,
        }
        rng = jax.random.fold_in(key_for(seed, "dropout"), state.step)
        grads, sums = _accumulate(grad_fn, state.params, batch, normalizer, rng, num_microbatches)
        squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)]
        grad_norm = jnp.sqrt(sum(squares))
        not_finite = ~jnp.isfinite(jnp.stack(squares))
        learning_rate = schedule(state.step)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)

        good = jnp.isfinite(sums["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(learning_rate)
        remembered = state.guard
        if guard is not None:
            spike, remembered = guard.update(state.guard, sums["loss"] / normalizer, grad_norm)
            good &= ~spike
        keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        new_state = TrainState(
            step=state.step + 1,
            params=jax.tree.map(keep, params, state.params),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            bad_steps=jnp.where(good, 0, state.bad_steps + 1),
            guard=remembered,
        )
        tokens = jnp.maximum(sums["target_tokens"], 1.0)
        total_weight = jnp.maximum(jnp.sum(weights), 1e-9)
        aux_loss = sums.get("aux_loss", 0.0)
        metrics = {
            "loss": sums["loss"] / normalizer,
            "cross_entropy": (sums["loss"] - sums["z_loss"] - aux_loss) / total_weight,
            "z_loss": sums["z_loss"] / total_weight,
            "accuracy": sums["hits"] / tokens,
            "target_tokens": sums["target_tokens"],
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "bad_steps": new_state.bad_steps,
            "bad_parameter": jnp.where(not_finite.any(), jnp.argmax(not_finite), -1),
            **{
                name.removeprefix("aux_"): value / total_weight
                for name, value in sums.items()
                if name.startswith("aux_") and name != "aux_loss"
            },
        }
        return new_state, metrics

    return train_step


def _accumulate(grad_fn, params, batch, normalizer, rng, num_microbatches):
    """Sums gradients and metric sums over the micro-batches, in float32."""
    if num_microbatches == 1:
        (_, sums), grads = grad_fn(params, batch, normalizer, rng)
        return grads, sums

    # Row i goes to micro-batch i % n, so that every device keeps a part of each micro-batch.
    def cut(x: jax.Array) -> jax.Array:
        rows, n = x.shape[0], num_microbatches
        return x.reshape(rows // n, n, *x.shape[1:]).swapaxes(0, 1)

    def body(total, i_and_microbatch):
        i, microbatch = i_and_microbatch
        key = jax.random.fold_in(rng, i)
        (_, sums), grads = grad_fn(params, microbatch, normalizer, key)
        return jax.tree.map(jnp.add, total, (grads, sums)), None

    microbatches = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda x: x[0], microbatches)
    shapes = jax.eval_shape(lambda *args: grad_fn(*args), params, first, normalizer, rng)
    (_, sums), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    indices = jnp.arange(num_microbatches)
    total, _ = jax.lax.scan(body, (grads, sums), (indices, microbatches))
    return total


def check_microbatches(batch_size: int, num_microbatches: int, data_shards: int) -> None:
    """Raises UserError unless the global batch splits evenly over micro-batches and devices."""
    if num_microbatches < 1 or batch_size % (num_microbatches * data_shards):
        raise UserError(
            f"batch_size = {batch_size} can't be split in {num_microbatches} micro-batches over "
            f"{data_shards} devices: it must be a multiple of {num_microbatches * data_shards}."
        )


def make_eval_step(model: Model, byte_lengths: np.ndarray | None = None) -> EvalStep:
    """Returns (params, batch) -> sums over the batch's target tokens, float32 scalars.

    loss (nats, without z-loss or smoothing), target_tokens, hits, and bytes: the UTF-8 bytes that
    the targets stand for (``byte_lengths`` [vocabulary size], 0 for special ids).
    """

    def eval_step(params: Any, batch: Batch) -> Metrics:
        targets = batch["decoder_target_tokens"]
        weights = (batch["decoder_loss_weights"] > 0).astype(jnp.float32)
        batch = batch | {"decoder_loss_weights": weights}
        loss, _, tokens, hits, _ = Loss(z_loss=0.0).sums(model, params, batch, weights)
        sums = {"loss": loss, "target_tokens": tokens, "hits": hits}
        if byte_lengths is not None:
            lengths = jnp.take(jnp.asarray(byte_lengths), targets, mode="fill", fill_value=0)
            sums["bytes"] = jnp.sum(lengths * weights)
        return sums

    return eval_step
