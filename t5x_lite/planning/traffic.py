"""A compiled program's HBM traffic, the time that it takes, and the largest buffers."""

import re
from collections.abc import Iterator
from typing import Any

from t5x_lite.planning.hlo import ARRAY, Instruction, Program, size
from t5x_lite.planning.products import estimated_flops, product_flops

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "copy-done", "after-all", "partition-id", "optimization-barrier", "iota",
}  # fmt: skip

_KINDS = (("parameter", "arguments"), ("maybe-live-out", "results"),
          ("preallocated-temp", "temporary"))  # fmt: skip
_HOST = "5"  # host memory's colour; the chip's own memory has none


def hbm_bytes(program: Program) -> float:
    """Bytes that one execution reads from and writes to HBM.

    An instruction reads its operands and writes its result, unless they lie in a faster memory;
    a fusion that slices an operand, or updates a slice of it in place, touches only the slice.
    """
    total = 0.0
    for i, visit in program.executed(fused=False):
        if i.op not in _FREE and not i.op.endswith("-done"):
            total += visit.times * touched_bytes(program, visit.computation, i)
    return total


def touched_bytes(program: Program, computation: str, i: Instruction) -> float:
    shapes = [program.shape_of(computation, name) for name in i.operands]
    reads = [size(shape, memory="hbm") for shape in shapes]
    written = size(i.shape, memory="hbm")
    if i.op in ("slice", "dynamic-slice"):
        return float(written + min(size(i.shape), reads[0]))
    if i.op == "dynamic-update-slice":
        return 2.0 * reads[1] if len(reads) > 1 else 0.0
    called = re.search(r"calls=%?([\w.\-]+)", i.rest)
    if i.op == "copy-start":  # its shape is (copy, original, ...)
        return float(sum(reads) + size(i.shape.removeprefix("(").partition(" ")[0], memory="hbm"))
    if i.op == "async-start" and called:  # a slice, on TPUs
        inner = [j for j in program.computations[called[1]] if j.op not in _FREE]
        return sum(touched_bytes(program, called[1], j) for j in inner)
    if i.op != "fusion" or not called:
        return float(sum(reads) + (0 if i.op.endswith("-start") else written))
    slices = _slices(program, called[1])
    updated = {n: b for n, (kind, b) in slices.items() if kind == "update"}
    for number, (_, touched) in slices.items():
        if number < len(reads):
            reads[number] = min(reads[number], touched)
    if updated:  # the result is an operand, changed in place
        written = min(written, sum(updated.values()))
    return float(sum(reads) + written)


def _slices(program: Program, computation: str) -> dict[int, tuple[str, int]]:
    """Parameters of a fusion that are only sliced: number -> (how, bytes)."""
    slices = {}
    for i in program.computations.get(computation, ()):
        if i.op != "parameter" or not i.arguments.isdigit():
            continue
        uses = list(_uses(program, computation, i.name))
        kinds = {u.op.removeprefix("dynamic-") if at == 0 else "" for _, u, at in uses}
        if kinds == {"slice"}:
            slices[int(i.arguments)] = ("slice", sum(size(u.shape) for _, u, _ in uses))
        elif kinds == {"update-slice"}:
            updates = sum(size(program.shape_of(c, u.operands[1])) for c, u, _ in uses)
            slices[int(i.arguments)] = ("update", updates)
    return slices


def _uses(program: Program, computation: str, name: str) -> Iterator[tuple[str, Instruction, int]]:
    """Yields an array's readers in a fusion and nested ones: (computation, reader, operand)."""
    for i in program.computations.get(computation, ()):
        for position, operand in enumerate(i.operands):
            if operand != name:
                continue
            called = re.search(r"calls=%?([\w.\-]+)", i.rest)
            if i.op == "bitcast":
                yield from _uses(program, computation, i.name)
            elif i.op == "fusion" and called:
                for inner in program.computations.get(called[1], ()):
                    if inner.op == "parameter" and inner.arguments == str(position):
                        yield from _uses(program, called[1], inner.name)
            else:
                yield computation, i, position


def busy_seconds(program: Program, peak_flops: float, bandwidth: float) -> float:
    """Seconds of all instructions in sequence, each bounded by its products or its memory.

    Asynchronous copies are hidden behind them and add nothing.
    """
    inside: dict[str, float] = {}

    def flops_in(computation: str) -> float:
        if computation not in inside:
            inside[computation] = sum(
                flops_of(computation, i) for i in program.computations.get(computation, ())
            )
        return inside[computation]

    def flops_of(computation: str, i: Instruction) -> float:
        if i.op in ("convolution", "dot"):
            return product_flops(program, computation, i)
        if i.op == "fusion" and (called := re.search(r"calls=%?([\w.\-]+)", i.rest)):
            return flops_in(called[1])
        return estimated_flops(i) if i.op == "custom-call" else 0.0

    seconds = 0.0
    for i, visit in program.executed(fused=False):
        if i.op in _FREE or i.op.endswith(("-start", "-done")):
            continue
        memory = touched_bytes(program, visit.computation, i) / bandwidth
        seconds += visit.times * max(flops_of(visit.computation, i) / peak_flops, memory)
    return seconds


def largest_buffers(program: Program, count: int = 10) -> list[dict[str, Any]]:
    """The largest results of instructions: bytes, shape, operation, source line.

    One line for each (shape, source); ``number`` says how many such instructions there are. They
    need not be alive at the same time.
    """
    met: dict[tuple[str, str], dict[str, Any]] = {}
    for i, _visit in program.executed(fused=False):
        if i.op in _FREE or i.op.endswith(("-start", "-done")):
            continue
        bytes_ = size(i.shape, largest=True, memory="hbm")
        if not bytes_:
            continue
        arrays = [a for a in ARRAY.finditer(i.shape) if size(a[0]) == bytes_]
        shape = f"{arrays[0][1]}[{arrays[0][2]}]" if arrays else i.shape
        key = (shape, program.source(i))
        row = met.setdefault(
            key,
            {"bytes": bytes_, "shape": shape, "made_by": i.op_name, "source": key[1], "number": 0},
        )
        row["number"] += 1
    return sorted(met.values(), key=lambda row: -row["bytes"])[:count]


def allocated(text: str) -> dict[str, int]:
    """Bytes that XLA's dumped buffer assignment reserves on a chip and on the host.

    Keys as of `compile.examine`'s memory. What is local to a thread takes no place of its own.
    """
    found = {"arguments": 0, "results": 0, "temporary": 0, "host": 0}
    for bytes_, color, kind in re.findall(
        r"^allocation \d+: size (\d+),(?: color (\d+),)?(.*)", text, flags=re.MULTILINE
    ):
        if color == _HOST and "thread-local" not in kind:
            found["host"] += int(bytes_)
        elif not color and (key := next((k for word, k in _KINDS if word in kind), None)):
            found[key] += int(bytes_)
    results = found.pop("results")  # those that aren't arguments changed in place
    return found | {"total": found["arguments"] + results + found["temporary"]}


def out_of_memory(message: str) -> dict[str, Any] | None:
    """Parses the TPU compiler's message for a program that doesn't fit; None for others.

    used, limit: bytes; whole: whether ``used`` counts the arguments too.
    """
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number = r"([\d.]+)([KMGT])"
    for pattern, whole in (
        (rf"HLO temporaries \({number}\) exceeds available HBM \({number}\)", False),
        (rf"Used {number} of {number} hbm", True),
    ):
        if found := re.search(pattern, message):
            used, limit = (float(found[n]) * unit[found[n + 1]] for n in (1, 3))
            return {"used": used, "limit": limit, "whole": whole}
    return None
