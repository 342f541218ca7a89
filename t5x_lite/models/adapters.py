"""A few parameters beside a model's own: low-rank changes of matrices, and prompts of vectors.

The parameters' tree gets two branches: "lora", with the names of what is changed, such as
"lora/decoder/layers/mlp/wo/kernel/lora_a", and "soft_prompt". Modules find them in a collection
of their own (`ADAPTERS`), so that the model's own parameters stay what and where they are.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5x_lite.errors import UserError
from t5x_lite.ranges import Positive

Params = dict[str, Any]

ADAPTERS = "adapters"  # the collection of variables
LORA, PROMPT = "lora", "soft_prompt"  # the branches of the parameters' tree
# What `layers.Dense` makes: x W + (x A) B there, and no gradient of W's size is ever formed. Any
# other matrix is changed before the model reads it.
_DENSE = re.compile(r"(attention|mlp)/\w+/kernel$")
_STACKS = ("layers", "experts")  # axes of stacks of matrices
_COMMON = range(3, 5000)  # ids of the vocabulary's most frequent pieces, as Lester et al. draw


@dataclasses.dataclass(frozen=True)
class LoRA:
    """W + alpha / rank * A B in the place of matrices W (https://arxiv.org/abs/2106.09685).

    A [in, rank] begins random, B [rank, out] as zeros: the model begins as it was. A matrix takes
    the first of a model's LoRAs that matches.

    Attributes:
      pattern: regular expression, searched for in the names of parameters: of all matrices, such as
        "encoder/layers/attention/query/kernel", with scan_layers a name for all layers.
      rank: of A B. alpha: its weight, over the rank, or
      rank_stabilized: over the rank's root (rsLoRA, https://arxiv.org/abs/2312.03732).
    """

    pattern: str = r"attention/(query|value|qkv|kv)/kernel$"
    rank: Positive = 8
    alpha: float = 16.0
    rank_stabilized: bool = False

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(
                f"LoRA.pattern = {self.pattern!r} is no regular expression: {error}."
            ) from None
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise UserError(
                f"LoRA(rank={self.rank}, alpha={self.alpha}): expected a rank of 1 or more and an "
                f"alpha above 0."
            )

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@dataclasses.dataclass(frozen=True)
class SoftPrompt:
    """``length`` learned vectors before all inputs (https://arxiv.org/abs/2104.08691).

    They begin as embeddings of pieces drawn from the vocabulary, and stand before the encoder's
    input, or before all that a decoder-only model reads. Rows can't be packed.
    """

    length: Positive = 20

    def __post_init__(self):
        if self.length < 1:
            raise UserError(f"SoftPrompt.length = {self.length}: expected 1 or more.")


Adapter = LoRA | SoftPrompt


def checked(values: Any, architecture: str, positions: str) -> tuple[Adapter, ...]:
    """``TransformerConfig.adapters``, also as it was recorded; UserError for what can't be."""
    found = []
    for value in values:
        if isinstance(value, Mapping):
            value = (SoftPrompt if "length" in value else LoRA)(**value)
        if not isinstance(value, Adapter):
            raise UserError(f"adapters has {value!r}: expected @LoRA() and @SoftPrompt().")
        found.append(value)
    prompts = [value for value in found if isinstance(value, SoftPrompt)]
    if len(prompts) > 1:
        raise UserError(f"adapters has {len(prompts)} soft prompts: one longer one does as much.")
    if prompts and architecture == "encoder_only":
        raise UserError("SoftPrompt with an encoder_only model: it is for models that answer.")
    if prompts and architecture == "decoder_only" and positions == "relative":
        raise UserError(
            "SoftPrompt with a decoder_only model of positions = 'relative': padding between it "
            "and a text would count as distance; use LoRA, or other positions."
        )
    return tuple(found)


def prompt_length(config: Any) -> int:
    """Of the soft prompt, 0 without one."""
    return sum(a.length for a in config.adapters if isinstance(a, SoftPrompt))


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return name.split("/")[0] in (LORA, PROMPT)


def base_of(params: Params) -> Params:
    """The parameters' tree without adapters."""
    return {name: value for name, value in params.items() if name not in (LORA, PROMPT)}


# ------------------------------------------------------------------------------------ parameters


def init(config: Any, base: Params, axes: Params, rng: jax.Array) -> Params:
    """The base parameters with fresh adapters; ``axes``: the base's, see `Model.logical_axes`.

    Raises UserError if a pattern matches no parameter, or one that is no matrix.
    """
    params = dict(base)
    for name, leaf, names, lora in _targets(config, base, axes):
        stack = _stack(names)
        rows, key = leaf.shape[stack], jax.random.fold_in(rng, zlib.crc32(name.encode()))
        bound = 1 / math.sqrt(rows)
        shape = (*leaf.shape[: stack + 1], lora.rank)
        new = {
            "lora_a": jax.random.uniform(key, shape, jnp.float32, -bound, bound),
            "lora_b": jnp.zeros((*leaf.shape[:stack], lora.rank, *leaf.shape[stack + 1 :])),
        }
        _put(params, f"{LORA}/{name}", new)
    return with_fresh_prompt(config, params, rng)


def with_fresh_prompt(config: Any, params: Params, rng: jax.Array) -> Params:
    """The parameters with a soft prompt of embeddings drawn from their table, if they have one."""
    length = prompt_length(config)
    if not length:
        return params
    key = jax.random.fold_in(rng, zlib.crc32(PROMPT.encode()))
    table = params["token_embedder"]["embedding"]
    ids = jnp.arange(min(_COMMON.start, len(table) - 1), min(_COMMON.stop, len(table)))
    drawn = jax.random.choice(key, ids, (length,), replace=length > len(ids))
    return params | {PROMPT: jnp.take(table, drawn, axis=0)}


def logical_axes(config: Any, base: Params, axes: Params) -> Params:
    """Of a model's parameters with its adapters; ``base``: the others' shapes, with ``axes``."""
    found = dict(axes)
    for name, _, names, _ in _targets(config, base, axes):
        stack = _stack(names)
        new = {
            "lora_a": (*names[: stack + 1], "lora_rank"),
            "lora_b": (*names[:stack], "lora_rank", *names[stack + 1 :]),
        }
        _put(found, f"{LORA}/{name}", new)
    return found | ({PROMPT: ("position", "embed")} if prompt_length(config) else {})


def _targets(config: Any, base: Params, axes: Params) -> Iterator[tuple[str, Any, tuple, LoRA]]:
    """(name, leaf, axis names, LoRA) of each parameter that is changed."""
    all_names, matched = [], set()
    for (name, leaf), (_, names) in zip(_named(base), _named(axes), strict=True):
        all_names.append(name)
        if (lora := lora_for(config, name)) is None:
            continue
        matched.add(lora)
        if len(leaf.shape) - _stack(names) < 2:
            raise UserError(
                f"LoRA.pattern = {lora.pattern!r} matches {name}, which is no matrix but "
                f"{list(leaf.shape)}: end it with 'kernel$' or 'embedding$'."
            )
        yield name, leaf, names, lora
    for adapter in config.adapters:
        if isinstance(adapter, LoRA) and adapter not in matched:
            some = [n for n in all_names if n.endswith("kernel")] or all_names
            raise UserError(
                f"LoRA.pattern = {adapter.pattern!r} matches no parameter that is left to it: they "
                f"are named like {some[0]!r}."
            )


def lora_for(config: Any, name: str) -> LoRA | None:
    """The LoRA that changes the parameter of this name, if one does."""
    loras = (a for a in config.adapters if isinstance(a, LoRA))
    return next((lora for lora in loras if re.search(lora.pattern, name)), None)


def _stack(names: tuple[str | None, ...]) -> int:
    """How many axes, in front, are those of a stack of matrices."""
    return sum(name in _STACKS for name in names)


def _named(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, leaf) of a nested dict in jax's order."""
    for key in sorted(tree):
        name = f"{prefix}{key}"
        if isinstance(tree[key], dict):
            yield from _named(tree[key], f"{name}/")
        else:
            yield name, tree[key]


def _put(tree: Params, name: str, value: Any) -> None:
    """Puts a value into a nested dict; the dicts on its way are copied."""
    first, _, rest = name.partition("/")
    if not rest:
        tree[first] = value
        return
    tree[first] = dict(tree.get(first, {}))
    _put(tree[first], rest, value)


def _get(tree: Params, name: str) -> Any:
    for part in name.split("/"):
        tree = tree[part]
    return tree


# ------------------------------------------------------------------------------------- their use


def pairs(config: Any, params: Params) -> Iterator[tuple[str, Any, Any, float]]:
    """(name of what is changed, A, B, scale) of all of the parameters' "lora"."""
    for name, a in _named(params.get(LORA, {})):
        if name.endswith("/lora_a"):
            changed = name.removesuffix("/lora_a")
            lora = lora_for(config, changed)
            assert lora is not None, changed
            yield changed, a, _get(params[LORA], f"{changed}/lora_b"), lora.scale


def change(a: Any, b: Any, scale: float) -> Any:
    """scale * A B, [*stack, in, *out]; of numpy's or of jax's arrays."""
    stack = a.ndim - 2
    flat = b.reshape(*b.shape[: stack + 1], -1)
    return scale * (a @ flat).reshape(*a.shape[: stack + 1], *b.shape[stack + 1 :])


def merged(config: Any, params: Params, but: re.Pattern | None = None) -> Params:
    """The model's own parameters, changed; without those whose names match ``but``."""
    base = base_of(params)
    for name, a, b, scale in pairs(config, params):
        if but is None or not but.search(name):
            kernel = _get(base, name)
            _put(base, name, kernel + change(a, b, scale).astype(kernel.dtype))
    return base


def variables(config: Any, params: Params) -> dict[str, Params]:
    """What a model's Linen module is applied to."""
    if not config.adapters:
        return {"params": params}
    own: Params = {}
    for name, a, b, scale in pairs(config, params):
        if _DENSE.search(name):
            _put(own, name.removesuffix("/kernel"), {"lora_a": a, "lora_b": scale * b})
    if PROMPT in params:
        own[PROMPT] = params[PROMPT]
    return {"params": merged(config, params, but=_DENSE), ADAPTERS: own}


# ---------------------------------------------------------------------------------- soft prompts


def prompted(config: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch whose rows begin with a soft prompt: ids -1, -2, ..., which `embedded` reads."""
    length, batch = prompt_length(config), dict(batch)
    if not length:
        return batch
    if any(name.endswith(("_segment_ids", "_positions")) for name in batch):
        raise UserError("SoftPrompt with packed rows: set PACK = False (train.pack).")
    side = "encoder" if config.has_encoder else "decoder"
    # What a decoder-only model must fill in of a prompt is not padding, and sees what is before.
    fill = {"decoder_target_tokens": 1, "decoder_causal_attention": 0}
    for name in [name for name in batch if name.startswith(side)]:
        rows = (batch[name].shape[0], length)
        ids = -1 - jnp.arange(length, dtype=batch[name].dtype)
        new = jnp.full(rows, fill.get(name, 0), batch[name].dtype)
        new = jnp.broadcast_to(ids, rows) if name.endswith("_input_tokens") else new
        batch[name] = jnp.concatenate([new, batch[name]], axis=1)
    return batch


def embedded(x: jax.Array, tokens: jax.Array, prompt: jax.Array) -> jax.Array:
    """x [B, T, D], with row -1 - id of the prompt [P, D] where tokens [B, T] are negative."""
    learned = jnp.take(prompt, -1 - tokens, axis=0, mode="clip").astype(x.dtype)
    return jnp.where(tokens[..., None] < 0, learned, x)
