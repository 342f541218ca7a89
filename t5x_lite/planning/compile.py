"""A run's own training step, lowered and compiled for devices that this machine doesn't have.

Nothing is computed or allocated: only shapes, dtypes and shardings exist.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from t5x_lite.data.objectives.lm import CausalLM
from t5x_lite.data.objectives.masked import MaskedLM
from t5x_lite.data.objectives.span import SpanCorruption
from t5x_lite.data.sources import InMemory
from t5x_lite.data.tasks import Task
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.errors import UserError
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.model import Model
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import Rules, use_mesh
from t5x_lite.planning import analytic, hlo, roofline, traffic
from t5x_lite.planning.summary import summarize
from t5x_lite.planning.topologies import Topology
from t5x_lite.training.build import build
from t5x_lite.training.guards import SpikeGuard
from t5x_lite.training.setup import Setup, data_shards, set_up
from t5x_lite.training.state import TrainState, abstract_state
from t5x_lite.training.step import check_microbatches
from t5x_lite.training.trainable import Trainable

STATE = ("parameters", "optimizer", "gradients")  # of a chip's memory
DUMPED = "*jit_train_step*"
OPTIMISED = f"{DUMPED}.after_optimizations.txt"
ASSIGNED = f"{DUMPED}-buffer-assignment.txt"
LAST = f"{DUMPED}_after_buffer_assignment.txt"  # written before code is generated
COMPILER = "compiler"  # the name of its thread
READER = 2  # raise it when programs are read in another way: it is a part of the cache's key


@dataclasses.dataclass(frozen=True)
class Run:
    """The arguments of `train` that determine the training step."""

    model: TransformerConfig
    task: Any
    lengths: Mapping[str, int]
    batch_size: int
    optimizer: Any
    mesh: MeshConfig | None = None
    rules: Rules | None = None
    loss: Any = None
    pack: bool = True
    num_microbatches: int = 1
    seed: int = 0
    spike_guard: SpikeGuard | None = None
    total_steps: int = 1
    trainable: str | None = None
    frozen: str | None = None
    layer_decay: float = 1.0

    @property
    def trained(self) -> Trainable:
        return Trainable(self.trainable, self.frozen, self.layer_decay)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A run set up on a topology, and its step lowered for it."""

    setup: Setup
    state: TrainState  # abstract
    lowered: Any  # jax.stages.Lowered


def stand_in_task(objective: Any = None, architecture: str = "decoder_only") -> Task:
    """Returns a task whose data is never read: planning needs only the objective's features."""
    if objective is None:
        usual: dict[str, Any] = {"decoder_only": CausalLM(), "encoder_only": MaskedLM()}
        objective = usual.get(architecture, SpanCorruption())
    return Task("stand_in", InMemory([{"text": "x"}]), objective, ByteVocabulary())


def for_platform(model: TransformerConfig, topology: Topology) -> TransformerConfig:
    """Returns the model with dtype "auto" resolved for the topology's chips."""
    if model.dtype != "auto":
        return model
    dtype = "float32" if topology.chip.platform == "cpu" else "bfloat16"
    return dataclasses.replace(model, dtype=dtype)


class _KnownShapes(Model):
    """A model that traces its initialisation once for all its copies: a search makes hundreds."""

    def abstract_params(self) -> Any:
        return _shapes(dataclasses.replace(self.config, remat="none"))[0]

    def logical_axes(self) -> Any:
        return _shapes(dataclasses.replace(self.config, remat="none"))[1]


@functools.lru_cache(maxsize=8)
def _shapes(config: TransformerConfig) -> tuple[Any, Any]:
    return Model(config).abstract_params(), Model(config).logical_axes()


def set_up_state(run: Run, devices: Sequence[Any]) -> tuple[Setup, TrainState]:
    """The run's set-up and abstract state. Raises UserError for all that `train` would refuse."""
    setup = _set_up(run, devices)
    model = _KnownShapes(setup.model.config)
    transform, names = run.trained.transform(run.optimizer, model)
    state = abstract_state(model, transform, setup.mesh, setup.rules, run.spike_guard, names)
    return setup, state


def _set_up(run: Run, devices: Sequence[Any]) -> Setup:
    setup = set_up(
        run.model, run.task, run.lengths, run.batch_size, run.mesh,
        rules=run.rules, pack=run.pack, devices=devices,
    )  # fmt: skip
    check_microbatches(run.batch_size, run.num_microbatches, data_shards(setup))
    return setup


def trace(run: Run, devices: Sequence[Any]) -> Traced:
    """Sets the run up as `train` does, on abstract devices, and lowers its step.

    Raises UserError for all that `train` would refuse.
    """
    setup = _set_up(run, devices)
    training = build(
        setup,
        run.optimizer,
        loss=run.loss,
        num_microbatches=run.num_microbatches,
        seed=run.seed,
        guard=run.spike_guard,
        trainable=run.trained,
        # A schedule's own length, which may be another one's than a plan's, changes no shape.
        total_steps=run.total_steps if getattr(run.optimizer.schedule, "open", False) else None,
    )
    with use_mesh(setup.mesh, setup.rules):
        lowered = training.step.lower(training.abstract, setup.abstract_batch())
    return Traced(setup, training.abstract, lowered)


@contextlib.contextmanager
def no_persistent_cache():
    """A program for absent devices can be written to jax's cache, but not read back from it."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def compile_step(traced: Traced, options: Mapping[str, Any] | None = None) -> Any:
    """Returns the jax.stages.Compiled. ``options``: XLA's flags, by name."""
    # XLA_FLAGS of this process may ask for quick compiling, which isn't what a TPU will run.
    whole = {"xla_backend_optimization_level": 3} | dict(options or {})
    with no_persistent_cache():
        return traced.lowered.compile(compiler_options=whole)


def examine(
    traced: Traced,
    topology: Topology,
    *,
    options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    text_file: str | os.PathLike[str] | None = None,
    early: bool = False,
) -> dict[str, Any]:
    """Compiles the step and reads what it does; JSON-able, kept in ``cache_dir`` if given.

    The compiled program is written to ``text_file``, if that is given.

    ``early``: reads the program once it is optimised and its memory laid out. Generating code,
    which takes minutes, changes neither; but only then are "program" and "peak" of the memory
    known, and only then says the compiler for certain that it all fits. It can't be stopped: who
    reads early ends the process afterwards (`os._exit`). A whole result that is kept, or comes
    first, is given instead: "early" says which it is.

    Keys: matmul_flops (by phase), hbm_bytes, busy_seconds, collectives (with "seconds"), memory
    (bytes on one chip), buffers, fits, and others of `summarize`. Of a program that doesn't fit
    the compiler tells only what it would need and its largest buffers.
    """
    path = None
    if cache_dir is not None:
        path = Path(cache_dir) / f"{_key(traced, topology, options)}.json"
        for kept in (path, path.with_suffix(".early.json"))[: 1 + early]:
            if kept.exists() and text_file is None:
                return json.loads(kept.read_text())
    found = _examine(traced, topology, options, text_file, early)
    if path is not None:
        path = path.with_suffix(".early.json") if found["early"] else path
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(found))
        unfinished.rename(path)
    return found


def _key(traced: Traced, topology: Topology, options: Mapping[str, Any] | None) -> str:
    settings = (topology.name, sorted((options or {}).items()), versions(), READER)
    parts = (traced.lowered.as_text(), *settings)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """Versions of the libraries that compile."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _examine(
    traced: Traced, topology: Topology, options: Any, text_file: Any, early: bool
) -> dict[str, Any]:
    clock, cpu = time.monotonic(), time.process_time()
    state = analytic.state_memory(traced.state)
    compiled = needs = None
    # The compiler may still write to the folder while it is deleted.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # The compiler dumps the program before it finds that the chip is too small.
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiling = compile_until_written if early else compile_step
        try:
            compiled = compiling(traced, dict(options or {}) | dump)
        except jax.errors.JaxRuntimeError as error:
            needs = traffic.out_of_memory(str(error))
            if needs is None:
                raise
        text, assigned = _dumped(folder, OPTIMISED), _dumped(folder, ASSIGNED)
    early = compiled is None and needs is None
    if text_file is not None and text is not None:
        Path(text_file).write_text(text, encoding="utf-8")
    fits = compiled is not None
    if compiled is not None:
        memory = _memory(compiled, topology)
    elif needs is None:
        memory = traffic.allocated(assigned) | {"limit": topology.chip.hbm}
        fits = memory["total"] <= memory["limit"]
    else:
        arguments = state["parameters"] + state["optimizer"]
        memory = {"arguments": arguments, "temporary": needs["used"], "limit": needs["limit"]}
        memory["total"] = needs["used"] + (0 if needs["whole"] else arguments)
    memory = state | memory
    memory["activations"] = max(0, memory["temporary"] - memory["gradients"])
    found = {"memory": memory, "fits": fits, "early": early, "buffers": []}
    if text is not None:
        found |= summarise(text, traced, topology)
    return found | {
        "compile_seconds": round(time.monotonic() - clock, 1),
        "compile_cpu_seconds": round(time.process_time() - cpu, 1),
    }


def compile_until_written(traced: Traced, options: Mapping[str, Any]) -> Any:
    """Like `compile_step`, but returns None once everything before code generation is dumped.

    The compiler then goes on in a thread; the process doesn't wait for it at its end.
    """
    compiler: Future = Future()

    def work() -> None:
        try:
            compiler.set_result(compile_step(traced, options))
        except BaseException as error:
            compiler.set_exception(error)

    threading.Thread(target=work, daemon=True, name=COMPILER).start()
    folder, before = Path(options["xla_dump_to"]), None
    while not compiler.done():
        sizes = {path: path.stat().st_size for path in folder.glob(DUMPED)}
        found = all(any(folder.glob(pattern)) for pattern in (OPTIMISED, ASSIGNED, LAST))
        if found and sizes == before:  # none is being written
            return None
        before = sizes
        time.sleep(0.3)
    return compiler.result()


def _dumped(folder: str, pattern: str) -> str | None:
    paths = sorted(Path(folder).glob(pattern))
    return paths[-1].read_text(encoding="utf-8") if paths else None


def _memory(compiled: Any, topology: Topology) -> dict[str, Any]:
    """Bytes on one chip, by XLA's account."""
    ma = compiled.memory_analysis()
    total = (
        ma.argument_size_in_bytes + ma.output_size_in_bytes - ma.alias_size_in_bytes
        + ma.temp_size_in_bytes + ma.generated_code_size_in_bytes
    )  # fmt: skip
    return {
        "arguments": ma.argument_size_in_bytes,
        "temporary": ma.temp_size_in_bytes,
        "program": ma.generated_code_size_in_bytes,
        "host": ma.host_temp_size_in_bytes + ma.host_argument_size_in_bytes,
        "peak": getattr(ma, "peak_memory_in_bytes", 0),
        "total": total,
        "limit": topology.chip.hbm,
    }


def summarise(text: str, traced: Traced, topology: Topology) -> dict[str, Any]:
    """`summarize` of an optimised program's text, with the collectives' seconds."""
    chip, mesh = topology.chip, traced.setup.mesh
    found = summarize(hlo.parse(text), dict(mesh.shape), chip.flops, chip.hbm_bandwidth)
    devices = list(mesh.devices.flat)
    for row in found["collectives"]:
        members = [devices[n] for n in row.pop("members")]
        places = [tuple(getattr(d, "coords", (d.id,))) for d in members]
        slices = [getattr(d, "slice_index", 0) or 0 for d in members]
        row["seconds"] = roofline.collective_seconds(row, topology, places, slices)
    found["collectives"] = _merged(found["collectives"])
    return found


def _merged(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row for each kind of collective and mesh axes."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["kind"], row["axes"])
        into = merged.setdefault(key, {"kind": key[0], "axes": key[1]})
        for name in ("times", "bytes", "overlapped", "seconds"):
            into[name] = into.get(name, 0) + row[name]
    return sorted(merged.values(), key=lambda row: -row["bytes"])


def count(
    run: Run, topology: Topology, devices: Sequence[Any]
) -> tuple[Setup, TrainState, dict[str, Any]]:
    """Like `trace` and `examine`, by formulas only: for chips without a compiler here."""
    setup, state = set_up_state(run, devices)
    return setup, state, counted(run, topology, setup, state)


def counted(run: Run, topology: Topology, setup: Setup, state: TrainState) -> dict[str, Any]:
    """Like `examine`, by formulas."""
    found = analytic.counts(setup, state, run.num_microbatches)
    memory = found["memory"]
    memory["limit"] = topology.chip.hbm
    memory["total"] = sum(memory[k] for k in (*STATE, "activations"))
    found["fits"] = memory["total"] <= memory["limit"]
    for row in found["collectives"]:
        if topology.chip.platform == "tpu":
            speed = 2 * topology.chip.link
        else:  # eight GPUs share a box
            speed = topology.chip.link if topology.chips <= 8 else topology.chip.network
        row["seconds"] = row["bytes"] / speed
    return found


def host_devices(number: int) -> list[Any]:
    """So many CPU devices, to lay arrays out on; nothing is put there.

    Raises:
      UserError: if jax has started with fewer.
    """
    with contextlib.suppress(RuntimeError):  # jax has started: its devices are all there are
        jax.config.update("jax_num_cpu_devices", number)
    devices = jax.devices("cpu")
    if len(devices) < number:
        raise UserError(
            f"{number} devices are to be planned for, and jax runs with {len(devices)} on this "
            f"CPU: unset XLA_FLAGS' xla_force_host_platform_device_count."
        )
    return devices[:number]
