"""The two steps, pure functions of (state, batch); everything else in training is around them."""

import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x_lite.errors import UserError
from t5x_lite.models.model import Model
from t5x_lite.ranges import Fraction, NotNegative
from t5x_lite.training.guards import SpikeGuard
from t5x_lite.training.head_losses import HeadLoss, head_of
from t5x_lite.training.losses import cross_entropy, loss_normalizer, target_side
from t5x_lite.training.optimizers import parameter_names
from t5x_lite.training.pair_losses import ContrastiveLoss, next_sentence_sums, with_pair_weights
from t5x_lite.training.state import TrainState, key_for
from t5x_lite.training.trainable import joined, part
from t5x_lite.training.vocabulary_loss import vocabulary_loss
from t5x_lite.training.watches import Watches

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Batch], Metrics]


@dataclasses.dataclass(frozen=True)
class Loss:
    """Cross entropy as T5X's: with z-loss, label smoothing and a normaliser.

    ``normalizer``: "num_real_target_tokens" (the mean over target tokens),
    "num_total_target_tokens", "average_per_sequence", a constant, or None for the sum.
    ``in_pieces``: a few tokens' logits at a time, see vocabulary_loss.py; or all at once.

    A model that has the head is also asked whether the texts of a pair follow each other
    (pair_losses.py); that counts as much as a mean over target tokens.
    """

    z_loss: NotNegative = 1e-4
    label_smoothing: Fraction = 0.0
    normalizer: str | float | None = "num_real_target_tokens"
    in_pieces: bool = True

    def check(self, model: Model, features: Iterable[str], num_microbatches: int) -> None:
        """UserError for a model that can't learn from batches with these features."""
        c, heads = model.config, model.config.encoder_heads
        if "encoder_anchor" in features:
            raise UserError("the objective makes pairs: set train.loss = @ContrastiveLoss().")
        if head_of(features):
            raise UserError("the objective is for a head: leave train.loss out, or use HeadLoss.")
        if not model.encoder_only:
            return
        if "encoder_target_tokens" in features and not {"masked_lm", "lm"} & set(heads):
            raise UserError(f"encoder_heads = {heads!r}: to predict tokens, add 'masked_lm'.")
        if "encoder_pair_label" in features and "next_sentence" not in heads:
            raise UserError(
                f"the objective makes pairs of texts, encoder_heads = {heads!r}: add 'pooler' and "
                f"'next_sentence'."
            )
        two_streams = c.positions == "transformer_xl"
        if "encoder_order" in features and not two_streams:
            raise UserError(
                f"PermutationLM with positions = {c.positions!r}: only XLNet's two streams can "
                f"learn it; set positions = 'transformer_xl', or use MaskedLM."
            )
        if "encoder_types" in features and not two_streams and c.token_types < 2:
            raise UserError(
                f"token_types = {c.token_types}, and the objective makes two: set token_types = 2."
            )

    def prepare(self, batch: Batch) -> tuple[jax.Array, Batch]:
        """What the summed loss of a whole global batch is divided by; and the batch, with
        "loss_weights" and, as they were before normalising, "real_weights", float32 [B, T]."""
        normalizer, weights = loss_normalizer(self.normalizer, batch)
        side = target_side(batch)
        real = batch.get(f"{side}_loss_weights", batch[f"{side}_target_tokens"] > 0)
        batch = batch | {"loss_weights": weights, "real_weights": real.astype(jnp.float32)}
        return normalizer, with_pair_weights(batch, jnp.sum(weights))

    def sums(self, model: Model, params, batch: Batch, real, **options) -> tuple:
        """Sums of the loss, of the z-loss, of the weights and of ``real`` hits; and aux sums.

        Of the aux sums, "loss" is to be added to the loss.
        """
        if model.encoder_only:
            return self._encoder_sums(model, params, batch, real, **options)
        targets, weights = batch["decoder_target_tokens"], batch["loss_weights"]
        coefficients: dict[str, Any] = {
            "label_smoothing": self.label_smoothing, "z_loss": self.z_loss
        }  # fmt: skip
        if self.in_pieces:
            hidden, aux = model.hidden(params, batch, **options)
            head = model.head(params)
            sums = vocabulary_loss(hidden, head, targets, weights, real, **coefficients)
            return *sums, _per_target(aux, sums.weight)
        logits, aux = model.apply(params, batch, **options)
        total, z_loss, weight = cross_entropy(logits, targets, weights, **coefficients)
        hits = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * real)
        return total, z_loss, weight, hits, _per_target(aux, weight)

    def _encoder_sums(self, model: Model, params, batch: Batch, real, **options) -> tuple:
        targets, weights = batch["encoder_target_tokens"], batch["loss_weights"]
        found, aux = model.encoded(params, batch, **options)
        sums = vocabulary_loss(
            found["hidden"], model.head(params), targets, weights, real,
            label_smoothing=self.label_smoothing, z_loss=self.z_loss,
            pieces=None if self.in_pieces else 1,
        )  # fmt: skip
        aux = _per_target(aux, sums.weight)
        if "pair_logits" in found and "pair_weights" in batch:
            pairs = next_sentence_sums(found["pair_logits"], batch)
            aux |= pairs | {"loss": aux.get("loss", 0.0) + pairs["next_sentence_loss"]}
        return *sums, aux


def _per_target(aux: Metrics, weight: jax.Array) -> Metrics:
    """What a model reports as means: as sums over target tokens."""
    return {name: value * weight for name, value in aux.items()}


def make_train_step(
    model: Model,
    transform: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    loss: Loss | ContrastiveLoss | HeadLoss | None = None,
    num_microbatches: int = 1,
    seed: int = 0,
    guard: SpikeGuard | None = None,
    watches: Watches | None = None,
    trained: Collection[str] | None = None,
) -> TrainStep:
    """Returns (state, batch) -> (state, metrics), ready for jax.jit with the state donated.

    The loss is normalised over the whole global batch before it is cut into micro-batches, so
    their number changes neither loss nor gradients (but for rounding, and dropout's draws).
    Dropout's key is a function of (seed, step). An update that isn't finite, or a spike by
    ``guard``, is not applied. Parameters whose names aren't in ``trained`` (None: all are) stay as
    they are, and are not differentiated by; ``transform`` is for the others.

    Metrics (scalars): loss (as optimised), cross_entropy and z_loss (per target token), accuracy,
    target_tokens, grad_norm, learning_rate, bad_steps; and bad_parameter: the place, in tree
    order, of the first parameter whose gradient isn't finite, or -1. With ``watches``, what they
    look at, too.
    """
    loss = loss or Loss()

    def microbatch_loss(own, params, batch, normalizer, rng):
        params = joined(params, own)
        total, z_loss, weight, hits, aux = loss.sums(
            model, params, batch, batch["real_weights"], rng=rng, train=True
        )
        aux = {f"aux_{name}": value for name, value in aux.items()}
        total += aux.get("aux_loss", 0.0)
        tokens = jnp.sum(batch["real_weights"])
        sums = {"loss": total, "z_loss": z_loss, "hits": hits, "target_tokens": tokens} | aux
        return total / normalizer, sums

    grad_fn = jax.value_and_grad(microbatch_loss, has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        normalizer, batch = loss.prepare(batch)
        rng = jax.random.fold_in(key_for(seed, "dropout"), state.step)
        own = state.params if trained is None else part(state.params, trained)
        fixed = (state.params, normalizer, rng)
        grads, sums = _accumulate(grad_fn, own, batch, fixed, num_microbatches)
        squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)]
        grad_norm = jnp.sqrt(sum(squares))
        learning_rate = schedule(state.step)
        updates, opt_state = transform.update(grads, state.opt_state, own)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, own, updates)

        good = jnp.isfinite(sums["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(learning_rate)
        remembered = state.guard
        if guard is not None:
            spike, remembered = guard.update(state.guard, sums["loss"] / normalizer, grad_norm)
            good &= ~spike
        keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        new_state = TrainState(
            step=state.step + 1,
            params=joined(state.params, jax.tree.map(keep, params, own)),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            bad_steps=jnp.where(good, 0, state.bad_steps + 1),
            guard=remembered,
        )
        metrics = _averages(sums, jnp.sum(batch["loss_weights"]), normalizer) | {
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "bad_steps": new_state.bad_steps,
            "bad_parameter": _first_bad(squares, own, state.params),
        }
        if watches is not None:
            scaled = jax.tree.map(lambda u: learning_rate * u, updates)
            seen = {"gradients": grads, "updates": scaled, "parameters": new_state.params}
            metrics |= watches.values(seen, model.logical_axes())
        return new_state, metrics

    return train_step


def _averages(sums: Metrics, weight: jax.Array, normalizer: jax.Array) -> Metrics:
    """What is logged of a batch's sums; ``weight``: of all its targets."""
    tokens, weight = jnp.maximum(sums["target_tokens"], 1.0), jnp.maximum(weight, 1e-9)
    aux = {n.removeprefix("aux_"): v for n, v in sums.items() if n.startswith("aux_")}
    return {
        "loss": sums["loss"] / normalizer,
        "cross_entropy": (sums["loss"] - sums["z_loss"] - aux.pop("loss", 0.0)) / weight,
        "z_loss": sums["z_loss"] / weight,
        "accuracy": sums["hits"] / tokens,
        "target_tokens": sums["target_tokens"],
        **{name: value / weight for name, value in aux.items()},
    }


def _first_bad(squares: list[jax.Array], own: Any, params: Any) -> jax.Array:
    """The place among all parameters of the first of our own with a bad sum of squares, or -1."""
    places = {name: i for i, name in enumerate(parameter_names(params))}
    bad = ~jnp.isfinite(jnp.stack(squares))
    ours = jnp.array([places[name] for name in parameter_names(own)])
    return jnp.where(bad.any(), ours[jnp.argmax(bad)], -1)


def _accumulate(grad_fn, own, batch, fixed, num_microbatches):
    """Sums gradients and metric sums over the micro-batches, in float32."""
    params, normalizer, rng = fixed
    if num_microbatches == 1:
        (_, sums), grads = grad_fn(own, params, batch, normalizer, rng)
        return grads, sums

    # Row i goes to micro-batch i % n, so that every device keeps a part of each micro-batch.
    def cut(x: jax.Array) -> jax.Array:
        rows, n = x.shape[0], num_microbatches
        return x.reshape(rows // n, n, *x.shape[1:]).swapaxes(0, 1)

    def body(total, i_and_microbatch):
        i, microbatch = i_and_microbatch
        key = jax.random.fold_in(rng, i)
        (_, sums), grads = grad_fn(own, params, microbatch, normalizer, key)
        return jax.tree.map(jnp.add, total, (grads, sums)), None

    microbatches = jax.tree.map(cut, batch)
    first = jax.tree.map(lambda x: x[0], microbatches)
    shapes = jax.eval_shape(lambda *args: grad_fn(*args), own, params, first, normalizer, rng)
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


def make_eval_step(
    model: Model, byte_lengths: np.ndarray | None = None, loss: Any = None
) -> EvalStep:
    """Returns (params, batch) -> sums over the batch's target tokens, float32 scalars.

    loss (nats, without z-loss or smoothing), target_tokens, hits, and bytes: the UTF-8 bytes that
    the targets stand for (``byte_lengths`` [vocabulary size], 0 for special ids). Of pairs of
    texts, what their ``loss`` (`Loss`, or of pair_losses.py) has to say.
    """

    given = loss

    def eval_step(params: Any, batch: Batch) -> Metrics:
        if "encoder_anchor" in batch:
            return (given or ContrastiveLoss()).evaluate(model, params, batch)
        if head_of(batch):
            return (given or HeadLoss()).evaluate(model, params, batch)
        loss = given if isinstance(given, Loss) else Loss()
        side = target_side(batch)
        targets = batch[f"{side}_target_tokens"]
        weights = (batch[f"{side}_loss_weights"] > 0).astype(jnp.float32)
        batch = with_pair_weights(batch | {"loss_weights": weights})
        plain = dataclasses.replace(loss, z_loss=0.0, label_smoothing=0.0)
        total, _, tokens, hits, aux = plain.sums(model, params, batch, weights)
        sums = {"loss": total, "target_tokens": tokens, "hits": hits}
        if "pair_weights" in batch:
            sums |= {name: aux[name] for name in aux if name.startswith("next_sentence_")}
            sums["pairs"] = jnp.sum(batch["pair_weights"])
        if byte_lengths is not None:
            lengths = jnp.take(jnp.asarray(byte_lengths), targets, mode="fill", fill_value=0)
            sums["bytes"] = jnp.sum(lengths * weights)
        return sums

    return eval_step
