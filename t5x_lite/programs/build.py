"""The jitted training step of a set-up: what `train` runs and `plan` compiles."""

from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite.programs.setup import Setup, data_shards
from t5x_lite.training.guards import SpikeGuard
from t5x_lite.training.pair_losses import ContrastiveLoss
from t5x_lite.training.state import TrainState, abstract_state
from t5x_lite.training.step import Loss, check_microbatches, make_train_step
from t5x_lite.training.watches import Watches


class Training(NamedTuple):
    """An optimizer's transformation, the state's shapes and shardings, the jitted step.

    The step donates the state, and returns one with the same sharding. ``watched`` is the step
    that looks at what ``watches`` name, too, and is compiled when it is first called.
    """

    transform: optax.GradientTransformation
    abstract: TrainState
    step: Any  # (TrainState, batch) -> (TrainState, metrics)
    watches: Watches | None = None
    watched: Any = None


def build(
    setup: Setup,
    optimizer: Any,
    *,
    loss: Loss | ContrastiveLoss | None = None,
    num_microbatches: int = 1,
    seed: int = 0,
    guard: SpikeGuard | None = None,
    watches: Watches | None = None,
) -> Training:
    """Raises UserError if the optimizer doesn't fit the model, or the microbatches the mesh."""
    check_microbatches(setup.batch_size, num_microbatches, data_shards(setup))
    model, loss = setup.model, loss or Loss()
    loss.check(model, setup.feature_lengths, num_microbatches)
    transform = optimizer.build(model.abstract_params(), model.logical_axes())
    abstract = abstract_state(model, transform, setup.mesh, setup.rules, guard)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def jitted(watches: Watches | None) -> Any:
        step = make_train_step(
            model,
            transform,
            optimizer.schedule,
            loss=loss,
            num_microbatches=num_microbatches,
            seed=seed,
            guard=guard,
            watches=watches,
        )
        # What is watched is wanted whole by every process.
        metrics = None if watches is None else NamedSharding(setup.mesh, PartitionSpec())
        return jax.jit(step, donate_argnums=0, out_shardings=(shardings, metrics))

    if watches is None:
        return Training(transform, abstract, jitted(None))
    watches.check(abstract.params)
    return Training(transform, abstract, jitted(None), watches, jitted(watches))
