"""FLOPs of the matrix products that a compiled program runs."""

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

from t5x_lite.planning.hlo import ARRAY, PHASES, Instruction, Program


def matmul_flops(program: Program) -> dict[str, float]:
    """FLOPs of the matrix products that run, by phase (see PHASES); custom calls by their estimate.

    A product of float32 counts as one of bfloat16, although the hardware may need several passes.
    """
    total = dict.fromkeys(PHASES, 0.0)
    for i, visit in program.executed():
        if i.op in ("convolution", "dot"):
            total[i.phase] += visit.times * product_flops(program, visit.computation, i)
        elif i.op == "custom-call":
            total[i.phase] += visit.times * estimated_flops(i)
    return total


# Products of [T, S] with head_dim in jax's splash attention, by the kernel's name.
_ATTENTION = (("mha_fwd", 2), ("mqa_fwd", 2), ("mha_dkv", 4), ("mqa_dkv", 4), ("mha_dq", 3),
              ("mqa_dq", 3))  # fmt: skip


def estimated_flops(i: Instruction) -> float:
    """FLOPs of a custom call: its own estimate, or splash attention's, blocks that a mask skips
    included (as models/flops.py counts them)."""
    if found := re.search(r'"flops":"?(\d+)', i.rest):
        return float(found[1])
    products = next((n for name, n in _ATTENTION if f"splash_{name}" in i.name), 0)
    taken = re.search(r"operand_layout_constraints=\{(.*?)\}, \w+=", i.rest)
    floats = re.findall(r"(?:bf16|f32|f16)\[([\d,]+)\]", taken[1] if taken else "")
    if not products or len(floats) < 2:
        return 0.0
    query, key = ([int(n) for n in dims.split(",")] for dims in floats[:2])
    return 2.0 * products * math.prod(query) * key[-2]


def _dims(shape: str) -> list[int]:
    found = ARRAY.search(shape)
    return [int(n) for n in found[2].split(",") if n] if found else []


def product_flops(program: Program, computation: str, i: Instruction) -> float:
    lhs, rhs = (_dims(program.shape_of(computation, name)) for name in i.operands[:2])
    out = _dims(i.shape)
    if i.op == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
        axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2.0 * math.prod(out) * math.prod(lhs[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
    if not labels:
        return 0.0
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", i.rest) or
                                                    ["", ""])[1]))  # fmt: skip
    pairs = 1
    for axis in range(len(labels[1]) - 2):
        sizes = [d[s.index(str(axis))] for d, s in zip((lhs, rhs, out), labels.groups(),
                                                       strict=True)]  # fmt: skip
        pairs *= _window_pairs(*sizes, *_window(window, axis))
    batch = out[labels[3].index("b")]
    features = out[labels[3].index("f")]
    return 2.0 * batch * features * rhs[labels[2].index("i")] * pairs


def _window(window: Mapping[str, str], axis: int) -> tuple[int, int, int, int]:
    """(stride, padding below, dilation of the input, of the kernel) along one spatial axis."""

    def value(name: str, default: str) -> str:
        return window[name].split("x")[axis] if name in window else default

    low = value("pad", "0_0").split("_")[0]
    return (
        int(value("stride", "1")),
        int(low),
        int(value("lhs_dilate", "1")),
        int(value("rhs_dilate", "1")),
    )


@functools.lru_cache(maxsize=4096)
def _window_pairs(
    n: int, kernel: int, out: int, stride: int, low: int, dilate: int, spread: int
) -> int:
    """How many (output, kernel) positions along an axis meet a real input element.

    Both may be as large as a batch, so one of them is counted in closed form.
    """
    few, many = sorted(((out, stride), (kernel, spread)))
    start = np.arange(few[0]) * few[1] - low  # the input position of the first of the many
    step = many[1]
    first = np.maximum(0, -(start // step))
    last = np.minimum(many[0] - 1, ((n - 1) * dilate - start) // step)
    # Positions first..last that meet an element: start + step * t is a multiple of the dilation.
    common = math.gcd(step, dilate)
    period = dilate // common
    inverse = pow(step // common, -1, period) if period > 1 else 0
    residue = (-start // common * inverse) % period
    first = first + (residue - first) % period
    counts = np.where(start % common == 0, (last - first) // period + 1, 0)
    return int(np.sum(np.maximum(counts, 0)))
