"""Size and shape of the code: what a run imports and executes, what to read for one step.

  python benchmarks/house.py                 # this checkout; about two minutes
  python benchmarks/house.py --root=OTHER    # another checkout, with this environment
  python benchmarks/house.py --json

A quickstart of three steps (shrunk: two layers, a byte vocabulary) runs under a line tracer. Lines
of module bodies (definitions) are not counted as executed. "To read for one step" are whole files:
those with a line executed between asking for a batch and the end of the step, and those that build
and trace the step.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the ground up; imports may only go down. Modules beside these folders are below all of them,
# but for TOP.
TOP = ("cli", "verbs", "completion", "lm_eval", "__main__")
FLOORS = (
    ("parallel",),
    ("models", "data", "corpus"),
    ("training", "inference", "evaluation", "interop", "planning", "report"),
    ("serve", "programs"),
)

TRACER = r"""
import json, os, sys, threading
root = os.path.join(sys.argv[1], "t5x_lite") + os.sep
executed, depth, step, marks = {}, [0], {}, {"on": False}

def trace(frame, event, arg):
    code = frame.f_code
    name = code.co_filename
    if not name.startswith(root) or code.co_name == "<module>":
        return None
    n, f, traced = 0, frame, False
    while f is not None:
        n += f.f_code.co_filename.startswith(root)
        traced |= f.f_code.co_filename.endswith("training/step.py")  # jit traces it in a thread
        f = f.f_back
    depth[0] = max(depth[0], n)
    def local(frame, event, arg):
        executed.setdefault(name, set()).add(frame.f_lineno)
        if traced or marks["on"]:
            step.setdefault(name, set()).add(frame.f_lineno)
        return local
    return local(frame, event, arg)

threading.settrace(trace)
sys.settrace(trace)
from t5x_lite.programs import recorder as r
def between(method, on):
    whole = getattr(r.Recorder, method)
    def marked(self, *args, **named):
        if on: marks["on"] = True
        try:
            return whole(self, *args, **named)
        finally:
            if not on: marks["on"] = False
    setattr(r.Recorder, method, marked)
between("waiting_for_data", True)
between(os.environ.get("AFTER_STEP", "made"), False)
from t5x_lite import cli
status = cli.main(sys.argv[3:])
sys.settrace(None); threading.settrace(None)
loaded = sorted(m.__file__ for m in list(sys.modules.values())
                if (getattr(m, "__file__", None) or "").startswith(root))
json.dump({"status": status, "loaded": loaded, "depth": depth[0],
           "executed": {k: len(v) for k, v in executed.items()},
           "step": {k: len(v) for k, v in step.items() if v}}, open(sys.argv[2], "w"))
"""


def count_lines(files) -> int:
    return sum(len(Path(f).read_text().split("\n")) for f in files)


def run(root: Path) -> dict:
    """What a quickstart of three steps imported and executed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "trace.json"
        flags = [
            "train", "--gin_file=recipes/quickstart.gin", f"--gin.MODEL_DIR='{folder}/run'",
            "--gin.TOTAL_STEPS=3", "--gin.WARMUP_STEPS=1", "--gin.BATCH_SIZE=4",
            "--gin.Task.vocabulary=@ByteVocabulary()", "--gin.train.eval_batch_count=1",
        ]  # fmt: skip
        env = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", TRACER, str(root), str(out), *flags]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        found = json.loads(out.read_text()) if out.exists() else {"status": done.returncode}
        if found["status"] != 0:
            sys.exit(f"the run failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return found


# ------------------------------------------------------------------------------- static


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path, at_top_only: bool) -> dict[str, set[str]]:
    """module -> modules of the package that it imports (at the top of the file, or anywhere)."""
    files = {module_name(p, root): p for p in (root / "t5x_lite").rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text())
        nodes = tree.body if at_top_only else ast.walk(tree)
        found: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
                found.add(node.module)
        graph[name] = {m for m in found if m in files and m != name}
        # `from package import module` is an import of the module, not of the package's __init__.
        graph[name] -= {m for m in graph[name] if any(o.startswith(m + ".") for o in graph[name])}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in graph[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            component = []
            while True:
                component.append(stack.pop())
                if component[-1] == v:
                    break
            if len(component) > 1:
                found.append(sorted(component))

    sys.setrecursionlimit(10_000)
    for v in graph:
        if v not in index:
            visit(v)
    return found


def floor(module: str) -> int:
    room = (module.split(".") + [""])[1]
    for number, rooms in enumerate(FLOORS, start=1):
        if room in rooms:
            return number
    return len(FLOORS) + 1 if room in TOP else 0


def arrows_up(graph: dict[str, set[str]]) -> list[str]:
    return sorted(
        f"{a} -> {b}" for a, targets in graph.items() for b in targets if floor(a) < floor(b)
    )


def functions(root: Path):
    for path in (root / "t5x_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                where = f"{path.relative_to(root)}:{node.lineno} {node.name}"
                arguments = node.args
                width = len(arguments.args) + len(arguments.kwonlyargs) + len(arguments.posonlyargs)
                yield node.end_lineno - node.lineno + 1, width, where


def measure(root: Path) -> dict:
    files = list((root / "t5x_lite").rglob("*.py"))
    traced = run(root)
    every = list(functions(root))
    longest = max((len(f.read_text().split("\n")), str(f.relative_to(root))) for f in files)
    return {
        "files": len(files),
        "lines": count_lines(files),
        "files imported by a quickstart": len(traced["loaded"]),
        "lines imported by a quickstart": count_lines(traced["loaded"]),
        "lines executed by a quickstart": sum(traced["executed"].values()),
        "files to read for one step": len(traced["step"]),
        "lines to read for one step": count_lines(traced["step"]),
        "lines executed in one step": sum(traced["step"].values()),
        "deepest stack of own functions": traced["depth"],
        "circles of imports": circles(import_graph(root, at_top_only=True)),
        "circles, imports in functions too": circles(import_graph(root, at_top_only=False)),
        "arrows up": arrows_up(import_graph(root, at_top_only=False)),
        "longest file": longest,
        "longest function": max((n, where) for n, _, where in every),
        "widest function": max((width, where) for _, width, where in every),
    } | {"step files": sorted(os.path.relpath(f, root) for f in traced["step"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--list", action="store_true", help="name the files, circles and arrows")
    args = parser.parse_args()
    found = measure(args.root.resolve())
    if args.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        many = isinstance(value, list)
        if name != "step files":
            print(f"{name:36} {len(value) if many else value}")
        if args.list and many:
            print("\n".join(f"    {v}" for v in value))


if __name__ == "__main__":
    main()
