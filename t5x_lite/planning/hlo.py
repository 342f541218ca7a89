"""What a compiled program does, read from its text: loops, matrix products, collectives, buffers.

XLA's own cost analysis counts a loop's body once, whatever its trip count; here every instruction
counts as often as it runs. Written for the text of TPU programs, right for CPU and GPU ones too.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all",
)  # fmt: skip
PHASES = ("forward", "backward", "recomputed", "update")
_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16,
    "f16": 16, "s16": 16, "u16": 16, "f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64,
    "u64": 64,
}  # fmt: skip
_ARRAY = re.compile(rf"\b({'|'.join(_BITS)})\[([\d,]*)\](\{{[^}}]*\}})?")
_LINE = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)?(.*)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation|called_computations=\{)=?%?([\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. ``operands`` are names in the same computation; ``rest`` is what follows them."""

    name: str
    shape: str
    op: str
    arguments: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def op_name(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def phase(self) -> str:
        """Of PHASES, from the name that jax gave the operation."""
        if "rematted_computation" in self.op_name:
            return "recomputed"
        if "transpose(" in self.op_name:
            return "backward"
        return "forward" if "jvp(" in self.op_name else "update"


@dataclasses.dataclass(frozen=True)
class Visit:
    """A computation in one place of the program: how often it runs there, and in which loop."""

    computation: str
    times: int
    loop: str
    fused: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """Parsed text, with where each computation runs."""

    computations: Mapping[str, list[Instruction]]
    visits: Mapping[str, Visit]
    loops: list[tuple[str, int | None]]  # (body, trip count), in the order they are met
    frames: Mapping[int, str]  # stack_frame_id -> file:line of the project's innermost frame

    def executed(self, fused: bool = True) -> Iterator[tuple[Instruction, Visit]]:
        """Every instruction with its visit; without ``fused`` only those that touch memory."""
        for name, visit in self.visits.items():
            if fused or not visit.fused:
                for instruction in self.computations.get(name, ()):
                    yield instruction, visit

    def source(self, instruction: Instruction) -> str:
        """file:line that made it, or ''."""
        if found := re.search(r"stack_frame_id=(\d+)", instruction.rest):
            return self.frames.get(int(found[1]), "")
        found = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.rest)
        return f"{found[1]}:{found[2]}" if found else ""

    @functools.cached_property
    def _shapes(self) -> dict[str, dict[str, str]]:
        return {c: {i.name: i.shape for i in body} for c, body in self.computations.items()}

    def shape_of(self, computation: str, name: str) -> str:
        return self._shapes[computation].get(name, "")


def size(shape: str, *, largest: bool = False, memory: str | None = None) -> int:
    """Bytes of a shape, the sum over a tuple's parts (or the ``largest`` of them).

    ``memory``: only arrays in "hbm" (which includes what a text without memory spaces says).
    """
    found = [0.0]
    for dtype, dims, layout in _ARRAY.findall(shape):
        if memory == "hbm" and re.search(r"S\([1-9]\d*\)", layout):
            continue
        found.append(math.prod(map(int, filter(None, dims.split(",")))) * _BITS[dtype] / 8)
    return int(max(found) if largest else sum(found))


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    body, entry = None, ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            body = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":
            body = None
        elif body is not None and (m := _LINE.match(line)):
            body.append(Instruction(m[2], m[3], m[4], m[5], m[6], bool(m[1])))
        elif body:  # a kernel's attributes go on
            body[-1] = dataclasses.replace(body[-1], rest=f"{body[-1].rest} {line}")
    visits, loops = _visit(computations, entry)
    return Program(computations, visits, loops, _frames(text))


def _visit(computations: Mapping[str, list[Instruction]], entry: str):
    visits: dict[str, Visit] = {}
    loops: list[tuple[str, int | None]] = []

    def visit(name: str, times: int, loop: str, fused: bool) -> None:
        before = visits[name].times if name in visits else 0
        visits[name] = Visit(name, before + times, loop, fused)
        for i in computations.get(name, ()):
            if i.op == "while":
                found = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", i.rest)
                trips = _trips(computations, i, found[1], found[2])
                loops.append((found[2], trips))
                visit(found[2], times * (1 if trips is None else trips), found[2], False)
                continue
            inside = i.op not in ("call", "conditional")
            if i.op in ("fusion", "call", "conditional", "custom-call") or i.op.endswith("-start"):
                for called in _CALLED.findall(i.rest):
                    visit(called, times, loop, fused or inside)
            if branches := re.search(r"branch_computations=\{([^}]*)\}", i.rest):
                for called in branches[1].split(","):
                    visit(called.strip().lstrip("%"), times, loop, fused)

    visit(entry, 1, "", False)
    return visits, loops


def _trips(computations, loop: Instruction, condition: str, body: str) -> int | None:
    """A loop's trip count: known to XLA, or from `i < N` in its condition and `i + step`."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])

    def numbers(lines, op: str, pattern: str) -> dict[str, int]:
        found = {}
        for i in lines:
            if i.op == op and (m := re.search(pattern, f"{i.arguments}){i.rest}")):
                found[i.name] = int(m[1])
        return found

    test, step = computations.get(condition, ()), computations.get(body, ())
    limits = numbers(test, "constant", r"^(\d+)\)")
    counters = numbers(test, "get-tuple-element", r"index=(\d+)")
    root = [i for i in test if i.root and i.op == "compare"]
    names = root[0].operands if root else []
    limit = [limits[name] for name in names if name in limits]
    if not limit:
        return None
    counter = [counters[name] for name in names if name in counters]
    constants = numbers(step, "constant", r"^(\d+)\)")
    reads = numbers(step, "get-tuple-element", r"index=(\d+)")
    steps = [1]
    for i in step:
        if i.op == "add" and len(i.operands) == 2 and counter:
            left, right = i.operands
            if reads.get(left) == counter[0] and right in constants:
                steps.append(constants[right])
    return limit[0] // max(steps)


def _frames(text: str) -> dict[int, str]:
    """stack_frame_id -> file:line of the innermost frame outside installed packages, parallel/."""

    def table(title: str, pattern: str) -> dict[int, tuple[str, ...]]:
        found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        lines = re.findall(rf"^(\d+) {pattern}", found[1], re.MULTILINE) if found else []
        return {int(line[0]): line[1:] for line in lines}

    files = table("FileNames", r'"(.*)"')
    locations = table("FileLocations", r".*?file_name_id=(\d+).*? line=(\d+)")
    frames = table("StackFrames", r"\{file_location_id=(\d+)(?: parent_frame_id=(\d+))?")

    def place(frame: int) -> str:
        innermost = ""
        for _ in range(100):
            if frame not in frames:
                return innermost
            location, parent = frames[frame]
            file, line = locations.get(int(location), ("0", "0"))
            path = files.get(int(file), ("",))[0]
            where = f"{path}:{line}"
            innermost = innermost or where
            if "site-packages" not in path and "t5x_lite/parallel/" not in path:
                return where
            # a frame's parent is written plus one, as it may be absent
            if not parent or int(parent) in (0, frame):
                return innermost
            frame = int(parent)
        return innermost

    return {frame: place(frame) for frame in frames}


# --- Matrix products ------------------------------------------------------------------------------


def matmul_flops(program: Program) -> dict[str, float]:
    """FLOPs of the matrix products that run, by phase (see PHASES); custom calls by their estimate.

    A product of float32 counts as one of bfloat16, although the hardware may need several passes.
    """
    total = dict.fromkeys(PHASES, 0.0)
    for i, visit in program.executed():
        if i.op in ("convolution", "dot"):
            total[i.phase] += visit.times * _product_flops(program, visit.computation, i)
        elif i.op == "custom-call":
            total[i.phase] += visit.times * _estimate(i)
    return total


# Products of [T, S] with head_dim in jax's splash attention, by the kernel's name.
_ATTENTION = (("mha_fwd", 2), ("mqa_fwd", 2), ("mha_dkv", 4), ("mqa_dkv", 4), ("mha_dq", 3),
              ("mqa_dq", 3))  # fmt: skip


def _estimate(i: Instruction) -> float:
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
    found = _ARRAY.search(shape)
    return [int(n) for n in found[2].split(",") if n] if found else []


def _product_flops(program: Program, computation: str, i: Instruction) -> float:
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
    start = np.arange(few[0]) * few[1] - low  # the input's place of the first of the many
    step = many[1]
    first = np.maximum(0, -(start // step))
    last = np.minimum(many[0] - 1, ((n - 1) * dilate - start) // step)
    # Of first..last those on an element: start + step * t is a multiple of the dilation.
    common = math.gcd(step, dilate)
    period = dilate // common
    inverse = pow(step // common, -1, period) if period > 1 else 0
    residue = (-start // common * inverse) % period
    first = first + (residue - first) % period
    counts = np.where(start % common == 0, (last - first) // period + 1, 0)
    return int(np.sum(np.maximum(counts, 0)))


# --- Collectives ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collective:
    """One logical collective. ``sent``: bytes that each chip sends at one execution."""

    kind: str
    times: int
    sent: float
    members: tuple[int, ...]  # one group's positions in the mesh, flattened
    phase: str
    asynchronous: bool


def collectives(program: Program, devices: int) -> list[Collective]:
    """All that run. A collective that XLA splits over several fusions counts once."""
    met = []
    shapes = collections.defaultdict(set)
    for i, visit in program.executed():
        kind = i.op.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        channel = re.search(r"channel_id=(\d+)", i.rest)
        channel, shape = channel and channel[1], i.shape.split("{")[0]
        shapes[channel].add((kind, shape))
        met.append((i, visit, kind, channel, shape))
    unique: dict[tuple, tuple[int, Instruction, str, bool]] = {}
    for i, visit, kind, channel, shape in met:
        if not visit.fused:
            key = (kind, visit.computation, i.name)
        else:
            key = (kind, channel, shape, visit.loop if len(shapes[channel]) > 1 else "")
        if key not in unique or visit.times < unique[key][0]:
            unique[key] = (visit.times, i, kind, visit.fused or i.op.endswith("-start"))
    return [
        Collective(kind, times, _sent(i, kind, members), members, i.phase, overlapped)
        for times, i, kind, overlapped in unique.values()
        for members in [group(i.rest, devices)]
    ]


def _sent(i: Instruction, kind: str, members: tuple[int, ...]) -> float:
    n = len(members)
    async_pair = i.op.endswith("-start") and kind != "all-reduce"
    b = size(i.shape, largest=async_pair)
    return {
        "all-gather": b * (n - 1) / n,
        "all-reduce": 2 * b * (n - 1) / n,
        "reduce-scatter": b * (n - 1),
        "collective-permute": b,
        "all-to-all": b * (n - 1) / n,
    }[kind]


def group(rest: str, devices: int) -> tuple[int, ...]:
    """The first group of devices that talk to each other; a permute's is its first pair."""
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return int(found[1]), int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {a: int(n) for a, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
        axes = [a for a in re.findall(r"'([^']+)'", found[2]) if a in sizes]
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        index = tuple(slice(None) if a in axes else 0 for a in sizes)
        return tuple(int(n) for n in ids[index].ravel())
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        dims = [int(n) for n in found[3].split(",")]
        ids = np.arange(math.prod(dims)).reshape(dims)
        if found[4]:
            ids = ids.transpose([int(n) for n in found[4].split(",")])
        return tuple(int(n) for n in ids.reshape(int(found[1]), int(found[2]))[0])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(int(n) for n in found[1].split(","))
    return tuple(range(devices))


def mesh_axes(members: tuple[int, ...], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which a group's members differ, such as "fsdp" or "data*fsdp"."""
    places = np.array(np.unravel_index(np.array(members), tuple(mesh.values())))
    varying = (places != places[:, :1]).any(axis=1)
    return "*".join(axis for axis, differs in zip(mesh, varying, strict=True) if differs) or "-"


# --- Memory ---------------------------------------------------------------------------------------

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "copy-done", "after-all", "partition-id", "optimization-barrier", "iota",
}  # fmt: skip


def hbm_bytes(program: Program) -> float:
    """Bytes read from and written to the chip's main memory by one execution.

    An instruction reads its operands and writes its result, unless they lie in a faster memory;
    a fusion that slices an operand, or updates a slice of it in place, touches only the slice.
    """
    total = 0.0
    for i, visit in program.executed(fused=False):
        if i.op not in _FREE and not i.op.endswith("-done"):
            total += visit.times * _touched(program, visit.computation, i)
    return total


def _touched(program: Program, computation: str, i: Instruction) -> float:
    shapes = [program.shape_of(computation, name) for name in i.operands]
    reads = [size(shape, memory="hbm") for shape in shapes]
    written = size(i.shape, memory="hbm")
    if i.op == "dynamic-slice":
        return 2.0 * written
    if i.op == "dynamic-update-slice":
        return 2.0 * reads[1] if len(reads) > 1 else 0.0
    called = re.search(r"calls=%?([\w.\-]+)", i.rest)
    if i.op != "fusion" or not called:
        return float(sum(reads) + (0 if i.op.endswith("-start") and i.op != "copy-start" else
                                   written))  # fmt: skip
    slices = _slices(program, called[1])
    updated = {n: b for n, (kind, b) in slices.items() if kind == "update"}
    for number, (_, touched) in slices.items():
        if number < len(reads):
            reads[number] = min(reads[number], touched)
    if updated:  # the result is an operand, changed in place
        written = min(written, sum(updated.values()))
    return float(sum(reads) + written)


def _slices(program: Program, computation: str) -> dict[int, tuple[str, int]]:
    """Parameters of a fusion of which only slices are touched: number -> (how, bytes)."""
    body = program.computations.get(computation, ())
    users = collections.defaultdict(list)
    for i in body:
        for position, name in enumerate(i.operands):
            users[name].append((i, position))

    def final(name: str) -> list[tuple[Instruction, int]]:
        found = []
        for i, position in users[name]:
            found += final(i.name) if i.op == "bitcast" else [(i, position)]
        return found

    slices = {}
    for i in body:
        if i.op != "parameter" or not i.arguments.isdigit():
            continue
        uses = final(i.name)
        if uses and all(u.op == "dynamic-slice" and at == 0 for u, at in uses):
            slices[int(i.arguments)] = ("slice", sum(size(u.shape) for u, _ in uses))
        elif uses and all(u.op == "dynamic-update-slice" and at == 0 for u, at in uses):
            updates = sum(size(program.shape_of(computation, u.operands[1])) for u, _ in uses)
            slices[int(i.arguments)] = ("update", updates)
    return slices


def busy_seconds(program: Program, peak_flops: float, bandwidth: float) -> float:
    """Time of all instructions one after the other, each as its products or its memory allow."""
    inside: dict[str, float] = {}

    def flops_in(computation: str) -> float:
        if computation not in inside:
            inside[computation] = sum(
                flops_of(computation, i) for i in program.computations.get(computation, ())
            )
        return inside[computation]

    def flops_of(computation: str, i: Instruction) -> float:
        if i.op in ("convolution", "dot"):
            return _product_flops(program, computation, i)
        if i.op == "fusion" and (called := re.search(r"calls=%?([\w.\-]+)", i.rest)):
            return flops_in(called[1])
        return _estimate(i) if i.op == "custom-call" else 0.0

    seconds = 0.0
    for i, visit in program.executed(fused=False):
        if i.op in _FREE or i.op.endswith("-done"):
            continue
        memory = _touched(program, visit.computation, i) / bandwidth
        seconds += visit.times * max(flops_of(visit.computation, i) / peak_flops, memory)
    return seconds


def largest_buffers(program: Program, count: int = 10) -> list[dict[str, Any]]:
    """The largest arrays that instructions make: bytes, shape, what made them, source line.

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
        arrays = [a for a in _ARRAY.finditer(i.shape) if size(a[0]) == bytes_]
        shape = f"{arrays[0][1]}[{arrays[0][2]}]" if arrays else i.shape
        key = (shape, program.source(i))
        row = met.setdefault(
            key,
            {"bytes": bytes_, "shape": shape, "made_by": i.op_name, "source": key[1], "number": 0},
        )
        row["number"] += 1
    return sorted(met.values(), key=lambda row: -row["bytes"])[:count]


def out_of_memory(message: str) -> dict[str, Any] | None:
    """What the TPU compiler says of a program that doesn't fit, or None if it says something else.

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


def summary(
    program: Program, mesh: Mapping[str, int], peak_flops: float, bandwidth: float
) -> dict[str, Any]:
    """All of the above, ready for JSON. ``mesh``: the sizes of its axes, by name."""
    devices = math.prod(mesh.values())
    found = collectives(program, devices)
    by_kind: dict[str, float] = collections.Counter()
    rows: dict[tuple, dict[str, Any]] = {}
    for c in found:
        by_kind[c.kind] += c.times * c.sent
        key = (c.kind, mesh_axes(c.members, mesh), c.members)
        row = rows.setdefault(
            key,
            {"kind": c.kind, "axes": key[1], "members": list(c.members), "times": 0, "bytes": 0.0,
             "overlapped": 0.0},
        )  # fmt: skip
        row["times"] += c.times
        row["bytes"] += c.times * c.sent
        row["overlapped"] += c.times * c.sent * c.asynchronous
    return {
        "matmul_flops": matmul_flops(program),
        "hbm_bytes": hbm_bytes(program),
        "busy_seconds": busy_seconds(program, peak_flops, bandwidth),
        "sent_bytes": dict(by_kind),
        "collectives": sorted(rows.values(), key=lambda row: -row["bytes"]),
        "loops": [[body, trips] for body, trips in program.loops if "windowed" not in body],
        "windowed_loops": sum("windowed" in body for body, _ in program.loops),
        "unknown_trips": sum(trips is None for _, trips in program.loops),
        "kernels": sum(
            visit.times for i, visit in program.executed()
            if i.op == "custom-call" and "tpu_custom_call" in i.rest
        ),
        "buffers": largest_buffers(program),
    }  # fmt: skip
