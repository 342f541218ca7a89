"""The jitted training step of a set-up: what `train` runs and `plan` compiles."""

import dataclasses
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from t5x_lite.models.adapters import PROMPT, with_fresh_prompt
from t5x_lite.models.model import Model
from t5x_lite.training.guards import SpikeGuard
from t5x_lite.training.head_losses import HeadLoss, loss_for
from t5x_lite.training.pair_losses import ContrastiveLoss
from t5x_lite.training.schedule_base import Schedule
from t5x_lite.training.setup import Setup, data_shards
from t5x_lite.training.state import TrainState, abstract_state, init_state, key_for
from t5x_lite.training.step import Loss, check_microbatches, make_train_step
from t5x_lite.training.trainable import Trainable, joined
from t5x_lite.training.watches import Watches


class Training(NamedTuple):
    """An optimizer's transformation, the state's shapes and shardings, the jitted step.

    ``schedule``: the optimizer's, for the run's length where one was given.
    ``trained``: the names of the parameters that the optimizer is for. The step donates the state,
    and returns one with the same sharding. ``watched`` is the step that looks at what ``watches``
    name, too, and is compiled when it is first called.
    """

    transform: optax.GradientTransformation
    abstract: TrainState
    trained: frozenset[str]
    step: Any  # (TrainState, batch) -> (TrainState, metrics)
    schedule: Any  # step -> learning rate
    watches: Watches | None = None
    watched: Any = None


def build(
    setup: Setup,
    optimizer: Any,
    *,
    loss: Loss | ContrastiveLoss | HeadLoss | None = None,
    num_microbatches: int = 1,
    seed: int = 0,
    guard: SpikeGuard | None = None,
    watches: Watches | None = None,
    trainable: Trainable | None = None,
    total_steps: int | None = None,
) -> Training:
    """Raises UserError if the optimizer doesn't fit the model, or the microbatches the mesh.

    ``total_steps``: the run's length, for a schedule that was given none.
    """
    check_microbatches(setup.batch_size, num_microbatches, data_shards(setup))
    model, loss = setup.model, loss or loss_for(setup.feature_lengths) or Loss()
    loss.check(model, setup.feature_lengths, num_microbatches)
    transform, trained = (trainable or Trainable()).transform(optimizer, model)
    schedule = optimizer.schedule
    if total_steps is not None and isinstance(schedule, Schedule):
        schedule = schedule.for_run(total_steps)
    abstract = abstract_state(model, transform, setup.mesh, setup.rules, guard, trained)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def jitted(watches: Watches | None) -> Any:
        step = make_train_step(
            model,
            transform,
            schedule,
            loss=loss,
            num_microbatches=num_microbatches,
            seed=seed,
            guard=guard,
            watches=watches,
            trained=trained,
        )
        # What is watched is wanted whole by every process.
        metrics = None if watches is None else NamedSharding(setup.mesh, PartitionSpec())
        return jax.jit(step, donate_argnums=0, out_shardings=(shardings, metrics))

    if watches is None:
        return Training(transform, abstract, trained, jitted(None), schedule)
    watches.check(abstract.params)
    return Training(transform, abstract, trained, jitted(None), schedule, watches, jitted(watches))


def fresh_state(
    training: Training, model: Model, seed: int, guard: SpikeGuard | None = None
) -> TrainState:
    """The state of step 0."""
    return init_state(model, training.transform, training.abstract, seed, guard, training.trained)


def started_from(
    state: TrainState, found: dict[str, Any], training: Training, model: Model, seed: int
) -> TrainState:
    """The fresh state with the parameters that were ``found``, a part of their tree.

    A soft prompt that wasn't among them is drawn from the embeddings that were.
    """
    params = joined(state.params, found)
    if PROMPT in params and PROMPT not in found:
        shardings = jax.tree.map(lambda x: x.sharding, training.abstract.params)
        draw = jax.jit(lambda p, k: with_fresh_prompt(model.config, p, k), out_shardings=shardings)
        params = draw(params, key_for(seed, "params"))
    return dataclasses.replace(state, params=params)
