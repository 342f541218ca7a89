"""A compiled program, parsed from its text: instructions, loops, and how often each one runs.

XLA's own cost analysis counts a loop's body once, whatever its trip count; here each instruction
counts as often as it runs. Made for the text of TPU programs; CPU and GPU programs parse too.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all",
)  # fmt: skip
PHASES = ("forward", "backward", "recomputed", "update")
_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16,
    "f16": 16, "s16": 16, "u16": 16, "f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64,
    "u64": 64,
}  # fmt: skip
ARRAY = re.compile(rf"\b({'|'.join(_BITS)})\[([\d,]*)\](\{{[^}}]*\}})?")
_LINE = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)?(.*)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation|called_computations=\{)=?%?([\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction. ``operands``: names in its computation; ``rest``: the text after them."""

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
        """One of PHASES, from the name that jax gave the operation."""
        if "rematted_computation" in self.op_name:
            return "recomputed"
        if "transpose(" in self.op_name:
            return "backward"
        return "forward" if "jvp(" in self.op_name else "update"


@dataclasses.dataclass(frozen=True)
class Visit:
    """A computation at one call site: how often it runs there, and in which loop."""

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
        """Yields instructions with visits; without ``fused`` only those that access memory."""
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
    """Bytes of a shape: the sum over a tuple's elements, or the ``largest`` of them.

    ``memory``: only arrays in "hbm" (which includes what a text without memory spaces says).
    """
    found = [0.0]
    for dtype, dims, layout in ARRAY.findall(shape):
        if memory == "hbm" and re.search(r"S\([1-9]\d*\)", layout):
            continue
        found.append(math.prod(map(int, filter(None, dims.split(",")))) * _BITS[dtype] / 8)
    return int(max(found) if largest else sum(found))


def parse(text: str) -> Program:
    """Parses `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    body, entry = None, ""
    for line in text.split("\n"):
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
            # the parent's id is stored plus one: 0 means that there is none
            if not parent or int(parent) in (0, frame):
                return innermost
            frame = int(parent)
        return innermost

    return {frame: place(frame) for frame in frames}
