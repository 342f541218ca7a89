"""The jitted training step of a set-up: what `train` runs and `plan` compiles."""

from typing import Any, NamedTuple

import jax
import optax

from t5x_lite.programs.setup import Setup, data_shards
from t5x_lite.training.guards import SpikeGuard
from t5x_lite.training.state import TrainState, abstract_state
from t5x_lite.training.step import Loss, check_microbatches, make_train_step


class Training(NamedTuple):
    """An optimizer's transformation, the state's shapes and shardings, the jitted step.

    The step donates the state, and returns one with the same sharding.
    """

    transform: optax.GradientTransformation
    abstract: TrainState
    step: Any  # (TrainState, batch) -> (TrainState, metrics)


def build(
    setup: Setup,
    optimizer: Any,
    *,
    loss: Loss | None = None,
    num_microbatches: int = 1,
    seed: int = 0,
    guard: SpikeGuard | None = None,
) -> Training:
    """Raises UserError if the optimizer doesn't fit the model, or the microbatches the mesh."""
    check_microbatches(setup.batch_size, num_microbatches, data_shards(setup))
    model = setup.model
    transform = optimizer.build(model.abstract_params(), model.logical_axes())
    abstract = abstract_state(model, transform, setup.mesh, setup.rules, guard)
    step = make_train_step(
        model,
        transform,
        optimizer.schedule,
        loss=loss or Loss(),
        num_microbatches=num_microbatches,
        seed=seed,
        guard=guard,
    )
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return Training(
        transform, abstract, jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    )
