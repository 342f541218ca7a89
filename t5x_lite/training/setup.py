"""What train, eval and infer share: configuration checked, model, data and devices put together.

Everything that can be wrong with a configuration is found here, before anything is compiled.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from t5x_lite.data.features import feature_lengths
from t5x_lite.data.objectives.heads import check_labels
from t5x_lite.data.reading import Reading, task_reading
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.errors import UserError
from t5x_lite.models.adapters import prompt_length
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.model import Model
from t5x_lite.parallel.mesh import MeshConfig, make_mesh
from t5x_lite.parallel.rules import (
    DEFAULT_RULES,
    MeshAxes,
    Rules,
    batch_rows,
    batch_sharding,
    check_lengths,
    place_batch,
    shards,
)

Features = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model, its data and its devices, known to fit each other."""

    model: Model
    task: Task | Mixture
    lengths: dict[str, int]  # of the task's features
    feature_lengths: dict[str, int]  # of the model's features
    batch_size: int
    mesh: Mesh
    rules: dict[str, MeshAxes]
    sharding: NamedSharding  # of a batch
    rows: np.ndarray  # of the global batch that this process feeds

    @property
    def architecture(self) -> str:
        return self.model.config.architecture

    @property
    def reading(self) -> Reading:
        """What the model reads of a text that it is to answer."""
        return task_reading(self.task, self.architecture)

    def place(self, features: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows [len(rows), length] -> global arrays [batch_size, length]."""
        return place_batch(features, self.sharding, self.rows, self.batch_size)

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The global batch's shapes, dtypes and sharding."""
        return {
            name: jax.ShapeDtypeStruct((self.batch_size, length), np.int32, sharding=self.sharding)
            for name, length in self.feature_lengths.items()
        }

    @property
    def tokens_per_batch(self) -> int:
        """Tokens of input and target, padding included."""
        names = ("encoder_input_tokens", "decoder_target_tokens")
        names += ("encoder_anchor", "encoder_positive", "encoder_negative")
        return self.batch_size * sum(self.feature_lengths.get(name, 0) for name in names)

    def place_all(self, batches: Iterable[Features]) -> Iterator[dict[str, jax.Array]]:
        return map(self.place, batches)


def set_up(
    model: TransformerConfig,
    task: Task | Mixture,
    lengths: Mapping[str, int],
    batch_size: int,
    mesh: MeshConfig | None = None,
    *,
    rules: Rules | None = None,
    pack: bool | str = True,
    devices: Any = None,
) -> Setup:
    """Checks that model, task, lengths, batch and mesh fit each other.

    rules: logical axes to mesh axes, such as `logical_rules({"mlp": None})`; None: the default.

    Raises:
      UserError: a vocabulary larger than the model's, a length that the objective can't fill, a
        batch or heads that the mesh can't divide, features that the architecture can't take.
    """
    objective = task.objective
    missing = [name for name in objective.features if name not in lengths]
    if missing:
        raise UserError(
            f"lengths = {dict(lengths)} has no {missing[0]!r}: {type(objective).__name__} makes "
            f"{' and '.join(objective.features)}; give a length in tokens for each."
        )
    objective.segment_length(dict(lengths))  # raises if the lengths don't go together
    if model.architecture == "encoder_decoder" and "inputs" not in objective.features:
        raise UserError(
            f"{type(objective).__name__} makes targets only, and an encoder_decoder needs inputs: "
            f"use SpanCorruption, PrefixLM or TextToText, or a decoder_only model."
        )
    vocabulary_size = task.vocabulary.size
    if vocabulary_size > model.vocab_size:
        raise UserError(
            f"the vocabulary of task {task.name} has {vocabulary_size} ids, the model only "
            f"{model.vocab_size}: set TransformerConfig.vocab_size to at least {vocabulary_size} "
            f"(a multiple of 128 is fast: {math.ceil(vocabulary_size / 128) * 128})."
        )
    if model.architecture == "encoder_only":
        check_labels([leaf for leaf, _ in task.leaves], model.num_labels)
    if model.architecture != "decoder_only" and getattr(objective, "prefix", None) == "causal":
        raise UserError(
            f'{type(objective).__name__}.prefix = "causal" is for decoder_only models, this is an '
            f"{model.architecture}: leave it out."
        )
    reading = task_reading(task, model.architecture)
    sizes = feature_lengths(
        dict(lengths), model.architecture, objective.features, bool(pack), reading.attention
    )
    longest = max(sizes.values()) + prompt_length(model)
    if model.positions == "learned" and longest > model.max_positions:
        raise UserError(
            f"features of {longest} tokens, but TransformerConfig.max_positions = "
            f"{model.max_positions}: raise it, or shorten the lengths."
        )
    device_mesh = make_mesh(mesh, devices)
    tensor = device_mesh.shape["tensor"]
    for name, heads in (("num_heads", model.num_heads), ("num_kv_heads", model.kv_heads)):
        if heads % tensor:
            raise UserError(
                f"{name} = {heads} can't be split over tensor = {tensor}: "
                f"choose MeshConfig.tensor among the divisors of {heads}."
            )
    rules = dict(DEFAULT_RULES if rules is None else rules)
    sharding = batch_sharding(device_mesh, rules)
    rows = batch_rows(sharding, batch_size)
    check_lengths(sizes, sharding)
    return Setup(
        Model(model),
        task,
        dict(lengths),
        sizes,
        batch_size,
        device_mesh,
        rules,
        sharding,
        rows,
    )


def data_shards(setup: Setup) -> int:
    """How many parts the batch is split in."""
    return shards(setup.sharding, 0)
