"""Which tensor is which parameter: tables of rules, used both ways.

A family's table names parameters as an unrolled model has them ("encoder/layers_{i}/mlp/wo/kernel")
beside the tensor that holds the same numbers. Here the rules are spelt out for a model's layers,
and parameters that are stacked over layers are put together, or taken apart, slice by slice.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.interop.tensors import (
    Index,
    Tensor,
    Tensors,
    cast,
    described,
    empty,
    flattened,
    whole,
)
from t5x_lite.models.config import TransformerConfig

Shape = tuple[int, ...]
_LAYER = re.compile(r"\blayers_(\d+)/")
_EXPERT = re.compile(r"\[(\d+)\]$")


@dataclasses.dataclass(frozen=True)
class Rule:
    """``theirs`` is ``ours``, transposed if so said; several of ours lie side by side in it.

    ``split``: the sizes of several axes that their tensor has for the last one.
    ``{i}`` in the names stands for the number of a layer. ``{e}`` stands for that of an expert,
    whose part of a parameter is the parameter's name with ``[{e}]`` behind it.
    """

    ours: tuple[str, ...]
    theirs: str
    transpose: bool = False
    split: Shape | None = None

    def __init__(
        self,
        ours: str | tuple[str, ...],
        theirs: str,
        transpose: bool = False,
        split: Shape | None = None,
    ):
        object.__setattr__(self, "ours", (ours,) if isinstance(ours, str) else tuple(ours))
        object.__setattr__(self, "theirs", theirs)
        object.__setattr__(self, "transpose", transpose)
        object.__setattr__(self, "split", split)

    def as_theirs(self, shape: Shape) -> Shape:
        """The shape of their tensor, of that of ours."""
        shape = shape[::-1] if self.transpose else shape
        return shape if self.split is None else (*shape[:-1], *self.split)

    def for_layers(self, config: TransformerConfig) -> "list[Rule]":
        """One rule for each layer of the stack that the names are in, and for each expert."""
        encoder = self.ours[0].startswith("encoder/")
        layers = config.num_encoder_layers if encoder else config.num_decoder_layers
        return [
            rule
            for in_layer in self._for_each("{i}", layers)
            for rule in in_layer._for_each("{e}", config.num_experts)
        ]

    def _for_each(self, letter: str, count: int) -> "list[Rule]":
        if letter not in self.theirs:
            return [self]
        fill = lambda name, i: name.replace(letter, str(i))  # noqa: E731
        return [
            dataclasses.replace(
                self, ours=tuple(fill(n, i) for n in self.ours), theirs=fill(self.theirs, i)
            )
            for i in range(count)
        ]


@dataclasses.dataclass(frozen=True)
class Piece:
    """One unrolled parameter as a part of a tensor: columns [start, start + width) of it."""

    tensor: Tensor  # theirs
    transpose: bool
    start: int
    width: int

    def read(self, index: Index) -> np.ndarray:
        """The part ``index`` of the parameter."""
        *rows, last = index
        index = (*rows, slice(last.start + self.start, last.stop + self.start))
        if self.transpose:
            return self.tensor.read(index[::-1]).T
        return self.tensor.read(index)


# ------------------------------------------------------------------------------- theirs -> ours


def as_parameters(
    tensors: Tensors,
    rules: Sequence[Rule],
    shapes: Mapping[str, Shape],
    config: TransformerConfig,
    *,
    dtype: np.dtype | None = None,
    ignored: Iterable[str] = (),
    where: str,
) -> dict[str, Tensor]:
    """A model's parameters as parts of a file's tensors; only the shapes are looked at here.

    Args:
      rules: of the family.
      shapes: of the parameters by name, scanned ("decoder/layers/...") or unrolled.
      dtype: what values are cast to as they are read; None: the file's.
      ignored: regular expressions of tensors that hold nothing: buffers, copies.
      where: the folder, for messages.

    Returns:
      {parameter: tensor}. A stacked parameter reads only the layers that it is asked for.

    Raises:
      UserError: tensors that are missing, of another shape, of integers, or that no rule takes.
    """
    spelt = [rule for r in rules for rule in r.for_layers(config)]
    _require_complete(tensors, spelt, ignored, where)
    pieces: dict[str, Piece] = {}
    unrolled = unrolled_shapes(shapes)
    for rule in spelt:
        pieces |= _pieces(rule, tensors[rule.theirs], dtype, unrolled, where)
    absent = sorted(unrolled.keys() - {_EXPERT.sub("", name) for name in pieces})
    assert not absent, f"no rule for {absent[:3]}"
    return {name: _joined(name, shape, pieces) for name, shape in shapes.items()}


def _require_complete(tensors, spelt, ignored, where) -> None:
    wanted = {rule.theirs for rule in spelt}
    skip = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or r"(?!)")
    extra = sorted(n for n in tensors.keys() - wanted if not skip.fullmatch(n))
    missing = sorted(wanted - tensors.keys())
    said = [f"missing {listed(missing)}"] if missing else []
    said += [f"unexpected {listed(extra)}"] if extra else []
    if said:
        raise UserError(
            f"the weights in {where} don't fit their configuration: {'; '.join(said)}. "
            f"Expected {len(wanted)} tensors, found {len(tensors)}."
        )


def _pieces(rule: Rule, tensor: Tensor, dtype, shapes, where) -> dict[str, Piece]:
    ours = [_shape(name, shapes) for name in rule.ours]
    width = sum(shape[-1] for shape in ours)
    expected = rule.as_theirs((*ours[0][:-1], width))
    if tensor.shape != expected:
        wanted = described(tensor._replace(shape=expected))
        raise UserError(
            f"{rule.theirs} in {where} is {described(tensor)}, the configuration makes it {wanted}."
        )
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(
            f"{rule.theirs} in {where} is {described(tensor)}, expected floating point: quantized "
            f"weights aren't read; fetch or convert those that aren't."
        )
    tensor = cast(tensor, dtype)
    tensor = tensor if rule.split is None else flattened(tensor, len(rule.split))
    pieces, start = {}, 0
    for name, shape in zip(rule.ours, ours, strict=True):
        pieces[name] = Piece(tensor, rule.transpose, start, shape[-1])
        start += shape[-1]
    return pieces


def _joined(name: str, shape: Shape, pieces: Mapping[str, Piece]) -> Tensor:
    if name in pieces:
        piece = pieces[name]
        return Tensor(shape, piece.tensor.dtype, piece.read)
    stacked = "/layers/" in name  # else of experts
    names = [_unrolled(name, i) if stacked else f"{name}[{i}]" for i in range(shape[0])]
    parts = [_joined(part, shape[1:], pieces) for part in names]

    def read(index: Index) -> np.ndarray:
        rows, *rest = whole(shape, index)
        size = [rows.stop - rows.start, *(part.stop - part.start for part in rest)]
        out = empty(tuple(size), parts[0].dtype)
        for row, i in enumerate(range(rows.start, rows.stop)):
            out[row] = parts[i].read(tuple(rest))
        return out

    return Tensor(shape, parts[0].dtype, read)


def _shape(name: str, unrolled: Mapping[str, Shape]) -> Shape:
    """Of an unrolled parameter, or of one expert's part of it."""
    return unrolled[_EXPERT.sub("", name)][1 if _EXPERT.search(name) else 0 :]


def _unrolled(name: str, layer: int) -> str:
    return name.replace("/layers/", f"/layers_{layer}/")


def unrolled_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """{"decoder/layers/x": (2, 3)} -> {"decoder/layers_0/x": (3,), "decoder/layers_1/x": (3,)}."""
    out: dict[str, Shape] = {}
    for name, shape in shapes.items():
        if "/layers/" in name:
            out |= {_unrolled(name, i): shape[1:] for i in range(shape[0])}
        else:
            out[name] = shape
    return out


# ------------------------------------------------------------------------------- ours -> theirs


def their_shapes(
    rules: Sequence[Rule], shapes: Mapping[str, Shape], config: TransformerConfig
) -> dict[str, Shape]:
    """{tensor: shape} of what the parameters become."""
    unrolled, out = unrolled_shapes(shapes), {}
    for rule in (rule for r in rules for rule in r.for_layers(config)):
        first = _shape(rule.ours[0], unrolled)
        shape = (*first[:-1], sum(_shape(name, unrolled)[-1] for name in rule.ours))
        out[rule.theirs] = rule.as_theirs(shape)
    return out


def their_tensors(
    rules: Sequence[Rule], read: Callable[[str], np.ndarray], stacked: bool, config
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (tensor, value), reading each parameter once.

    Args:
      read: a parameter's name, as it is stored -> its value.
      stacked: whether the layers are stored as one "layers".
    """
    for rule in rules:
        held: dict[str, np.ndarray] = {}  # what this rule's layers share

        def part(name: str, held=held) -> np.ndarray:
            layer = _LAYER.search(name) if stacked else None
            expert = _EXPERT.search(name)
            stored = _EXPERT.sub("", _LAYER.sub("layers/", name) if stacked else name)
            if stored not in held:
                if not layer:
                    held.clear()
                held[stored] = read(stored)
            places = tuple(int(found[1]) for found in (layer, expert) if found)
            return held[stored][places]

        for spelt in rule.for_layers(config):
            parts = [np.asarray(part(name)) for name in spelt.ours]
            value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
            shape = spelt.as_theirs(value.shape)
            yield spelt.theirs, (value.T if spelt.transpose else value).reshape(shape)
            del parts, value  # views of a parameter, which shall be gone before the next is read


def listed(items: Sequence[str], limit: int = 4) -> str:
    """Returns "a, b, c and 4 more"."""
    shown = ", ".join(items[:limit])
    return shown + (f" and {len(items) - limit} more" if len(items) > limit else "")
