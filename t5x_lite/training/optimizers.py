"""Optimizers as gin-configurable dataclasses: AdamW, Adafactor, Lion, Muon, RmsScaledAdamW.

    optimizer = AdamW(schedule=cosine(peak_rate=1e-3, total_steps=10_000), weight_decay=0.1)
    transform = optimizer.build(abstract_params, logical_axes)
    updates, opt_state = transform.update(grads, opt_state, params)
    params = params - optimizer.schedule(step) * updates

The order is the same for all: clip the gradients by their global norm, find the direction, add
`weight_decay * parameter`. The learning rate comes last and from one place, the train step: the
rate that is logged is the rate that was used. Weight decay is thus decoupled (Loshchilov & Hutter
2019) and scaled by the rate.

Leaves of an optimizer's state are arrays of the parameter's shape, of that shape with one dimension
removed, or of shape () or (1,).
"""

import collections
import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5x_lite.errors import UserError
from t5x_lite.ranges import AboveZero, Count, Fraction, NotNegative, Positive
from t5x_lite.training import adafactor, muon, schedules

logger = logging.getLogger(__name__)

Patterns = Sequence[tuple[str, Any]]

# Regexes are searched in names such as "encoder/layers_0/mlp/wi_0/kernel"; the first match counts.
# "\b" keeps "embedding" from matching "rel_embedding", as "_" is part of a word.
DECAY_PATTERNS: Patterns = (
    (r"\b(kernel|embedding|lora_a|lora_b)$", True),
    (r"\b(scale|bias|rel_embedding|soft_prompt)$", False),
)
MUON_PATTERNS: Patterns = (
    (r"\blogits_dense/kernel$", "adamw"),
    (r"\bkernel$", "muon"),
    (r"\b(embedding|scale|bias|rel_embedding|lora_a|lora_b|soft_prompt)$", "adamw"),
)


def parameter_names(params: Any) -> list[str]:
    """'/'-joined names of the leaves, in the order of `jax.tree.leaves`."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def match_parameters(params: Any, patterns: Patterns, purpose: str) -> Any:
    """Gives each parameter the value of the first pattern found in its name (`re.search`).

    Logs once what each pattern matched.

    Args:
      params: tree of arrays or shapes.
      patterns: (regex, value) pairs.
      purpose: what the patterns are for, named in the log and in errors: a field's name.

    Returns:
      The tree of values, shaped like `params`.

    Raises:
      UserError: a pattern is no regex, or parameters are left that no pattern matches.
    """
    try:
        compiled = [(re.compile(pattern), value) for pattern, value in patterns]
    except re.error as error:
        raise UserError(f"{purpose}: {error.pattern!r} is no regular expression: {error}") from None
    names = parameter_names(params)
    matched = collections.defaultdict(list)
    values = []
    for name in names:
        number = next((i for i, (regex, _) in enumerate(compiled) if regex.search(name)), None)
        matched[number].append(name)
        values.append(None if number is None else compiled[number][1])
    if uncovered := matched[None]:
        more = f" and {len(uncovered) - 5} more" if len(uncovered) > 5 else ""
        raise UserError(
            f"{purpose}: no pattern matches {', '.join(uncovered[:5])}{more}; "
            f"add a (regex, value) pair for them, e.g. ('.*', {patterns[-1][1] if patterns else 0})"
        )
    lines = [
        f"  {regex.pattern!r} -> {value!r}: {len(matched[i])} parameters"
        + (f", e.g. {matched[i][0]}" if matched[i] else "")
        for i, (regex, value) in enumerate(compiled)
    ]
    logger.info("%s:\n%s", purpose, "\n".join(lines))
    return jax.tree.unflatten(jax.tree.structure(params), values)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What all optimizers share.

    Attributes:
      schedule: step -> learning rate. Not applied by `build`'s transformation.
      clip_norm: gradients of a larger global norm are scaled down to it; None is off.
      weight_decay: coefficient, multiplied by the parameter and (by the train step) by the rate.
      decay_patterns: (regex, bool) pairs over parameter names: which parameters decay.
    """

    schedule: Callable[[Any], jax.Array]
    clip_norm: AboveZero | None = 1.0
    weight_decay: NotNegative = 0.0
    decay_patterns: Patterns = DECAY_PATTERNS

    def __post_init__(self):
        name = type(self).__name__
        if not isinstance(self.schedule, schedules.Schedule):
            is_factory = getattr(self.schedule, "__module__", "") == schedules.__name__
            if is_factory or not callable(self.schedule):
                found = getattr(self.schedule, "__name__", repr(self.schedule))
                raise UserError(
                    f"{name}.schedule is {found}, expected a function of the step; "
                    f"call a schedule: @{found if is_factory else 'cosine'}()"
                )
        if self.clip_norm is not None and not 0.0 < self.clip_norm < math.inf:
            raise UserError(
                f"{name}.clip_norm={self.clip_norm!r}, expected a norm > 0 or None for no clipping"
            )
        for field in ("b1", "b2", "beta1", "momentum"):
            value = getattr(self, field, None)
            if value is not None and not 0.0 <= value < 1.0:
                raise UserError(f"{name}.{field}={value!r}, expected a number in [0, 1)")
        for field in ("eps", "min_parameter_scale", "clipping_threshold", "rms_scale"):
            value = getattr(self, field, None)
            if value is not None and not 0.0 <= value < math.inf:
                raise UserError(f"{name}.{field}={value!r}, expected a number >= 0")
        if not 0.0 <= self.weight_decay < math.inf:
            raise UserError(f"{name}.weight_decay={self.weight_decay!r}, expected a number >= 0")
        if (dtype := getattr(self, "mu_dtype", None)) is not None:
            try:
                floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
            except TypeError:
                floating = False
            if not floating:
                raise UserError(f"{name}.mu_dtype={dtype!r}, expected e.g. 'bfloat16' or None")

    def build(
        self, abstract_params: Any, logical_axes: Any | None = None
    ) -> optax.GradientTransformation:
        """The transformation from gradients to updates, before the learning rate.

        Args:
          abstract_params: tree of arrays or `jax.ShapeDtypeStruct`s: names and shapes are read.
          logical_axes: the same tree of tuples of axis names; None, whole or of a leaf: unknown.

        Raises:
          UserError: a parameter that no pattern covers, or that the optimizer can't take.
        """
        parts = [self.direction(abstract_params, logical_axes)]
        if self.clip_norm is not None:
            parts.insert(0, optax.clip_by_global_norm(self.clip_norm))
        if self.weight_decay:
            purpose = f"{type(self).__name__}.decay_patterns"
            mask = match_parameters(abstract_params, self.decay_patterns, purpose)
            parts.append(optax.add_decayed_weights(self.weight_decay, mask))
        return optax.chain(*parts)

    def direction(self, abstract_params: Any, logical_axes: Any) -> optax.GradientTransformation:
        """What makes this optimizer itself: clipped gradients to updates without weight decay."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    `mu_dtype` "bfloat16" halves the first moment's memory.
    """

    weight_decay: NotNegative = 0.1
    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: NotNegative = 1e-8
    mu_dtype: str | None = None

    def direction(self, abstract_params: Any, logical_axes: Any) -> optax.GradientTransformation:
        del abstract_params, logical_axes
        return optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.mu_dtype)


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of a momentum (Chen et al. 2023): a rate 3 to 10 times below AdamW's, and a decay
    as many times above."""

    weight_decay: NotNegative = 1.0
    b1: Fraction = 0.9
    b2: Fraction = 0.99
    mu_dtype: str | None = None

    def direction(self, abstract_params: Any, logical_axes: Any) -> optax.GradientTransformation:
        del abstract_params, logical_axes
        return optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.mu_dtype)


@dataclasses.dataclass(frozen=True)
class RmsScaledAdamW(Optimizer):
    """AdamW whose update is multiplied by max(RMS(parameter), 1e-3), as Adafactor's is.

    nanoT5's optimizer (Nawrot 2023): Adafactor's parameter scale is what T5 needs of it, and Adam's
    moments make it train faster. Each layer of a scanned stack has a scale of its own.
    """

    b1: Fraction = 0.9
    b2: Fraction = 0.999
    eps: NotNegative = 1e-6
    min_parameter_scale: NotNegative = 1e-3
    mu_dtype: str | None = None

    def direction(self, abstract_params: Any, logical_axes: Any) -> optax.GradientTransformation:
        axes = adafactor.axes_per_parameter(abstract_params, logical_axes)
        treedef = jax.tree.structure(abstract_params)

        def scale(updates: Any, params: Any) -> Any:
            def leaf(update, param, names):
                rms = adafactor.root_mean_square(param, adafactor.stack_dims(names))
                return update * jnp.maximum(rms, self.min_parameter_scale)

            leaves = map(treedef.flatten_up_to, (updates, params))
            return treedef.unflatten(map(leaf, *leaves, axes))

        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.mu_dtype),
            optax.stateless(scale),
        )


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """T5X's Adafactor, step for step; the defaults are T5 1.1's. See `adafactor.py`.

    T5X's weight_decay_rate is not multiplied by the learning rate: at a constant rate it is
    weight_decay * rate here. umT5: beta1 0.9, factored False, clip_norm 1.0. `factor_rules` (axis
    name -> "row", "column", "batch", "none") are put over `adafactor.FACTOR_RULES`.
    """

    clip_norm: AboveZero | None = None
    factored: bool = True
    min_dim_size_to_factor: Positive = 128
    decay_rate: NotNegative = 0.8
    step_offset: Count = 0
    clipping_threshold: AboveZero | None = 1.0
    multiply_by_parameter_scale: bool = True
    min_parameter_scale: NotNegative = 1e-3
    beta1: Fraction | None = None
    mu_dtype: str | None = None
    factor_rules: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def direction(self, abstract_params: Any, logical_axes: Any) -> optax.GradientTransformation:
        leaves, treedef = jax.tree.flatten(abstract_params)
        axes = adafactor.axes_per_parameter(abstract_params, logical_axes)
        rules = {**adafactor.FACTOR_RULES, **self.factor_rules}
        min_size = self.min_dim_size_to_factor if self.factored else math.inf
        dims = [
            adafactor.factored_dims(leaf.shape, names, rules=rules, min_dim_size=min_size)
            for leaf, names in zip(leaves, axes, strict=True)
        ]
        factored = sum(dim.matrix is not None for dim in dims)
        logger.info("Adafactor: %d of %d parameters are factored", factored, len(dims))
        return adafactor.scale_by_adafactor(
            treedef.unflatten(dims),
            decay_rate=self.decay_rate,
            step_offset=self.step_offset,
            clipping_threshold=self.clipping_threshold,
            multiply_by_parameter_scale=self.multiply_by_parameter_scale,
            min_parameter_scale=self.min_parameter_scale,
            beta1=self.beta1,
            mu_dtype=self.mu_dtype,
        )


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Matrices by orthogonalized momentum (Jordan 2024), everything else by AdamW.

    A matrix's update is scaled by `rms_scale` * sqrt(longer side), which gives it the RMS that
    AdamW's updates have: one learning rate serves both groups (Liu et al. 2025, section 2.2).

    Attributes:
      patterns: (regex, "muon" | "adamw") pairs over parameter names.
      momentum: of the matrices; `nesterov` looks one step ahead.
      newton_schulz_steps: iterations of the orthogonalization.
      b1, b2, eps: AdamW's.
    """

    weight_decay: NotNegative = 0.1
    patterns: Patterns = MUON_PATTERNS
    momentum: Fraction = 0.95
    nesterov: bool = True
    newton_schulz_steps: Positive = 5
    rms_scale: AboveZero = 0.2
    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: NotNegative = 1e-8
    mu_dtype: str | None = None

    def direction(self, abstract_params: Any, logical_axes: Any) -> optax.GradientTransformation:
        groups = match_parameters(abstract_params, self.patterns, "Muon.patterns")
        leaves, treedef = jax.tree.flatten(abstract_params)
        axes = adafactor.axes_per_parameter(abstract_params, logical_axes)
        dims = []
        for name, leaf, group, leaf_axes in zip(
            parameter_names(abstract_params), leaves, jax.tree.leaves(groups), axes, strict=True
        ):
            if group not in ("muon", "adamw"):
                raise UserError(f"Muon.patterns: {group!r} for {name}, expected 'muon' or 'adamw'")
            batch = adafactor.stack_dims(leaf_axes)
            matrix: Any = tuple(i for i in range(len(leaf.shape)) if i not in batch)
            if group == "muon" and len(matrix) != 2:
                raise UserError(
                    f"Muon.patterns: {name} of shape {leaf.shape} and axes {leaf_axes} is neither "
                    f"a matrix nor a stack of matrices; add ({name!r}, 'adamw') before the others"
                )
            dims.append(adafactor.Dims(batch, matrix if group == "muon" else None))
        return muon.scale_by_muon(
            treedef.unflatten(dims),
            momentum=self.momentum,
            nesterov=self.nesterov,
            newton_schulz_steps=self.newton_schulz_steps,
            rms_scale=self.rms_scale,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            mu_dtype=self.mu_dtype,
        )
