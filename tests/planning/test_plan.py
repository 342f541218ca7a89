"""`t5x_lite plan`, as users call it, on models so small that the TPU compiler takes seconds."""

import dataclasses
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time

import jax
import pytest
import tiny
from waiting import wait_until

from t5x_lite import cli, config
from t5x_lite.errors import UserError
from t5x_lite.models.model import Model
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.planning import analytic, hlo, page, products, report, search, topologies, workers
from t5x_lite.planning import check as checking
from t5x_lite.planning import compile as compiling
from t5x_lite.planning.runs import start_jax
from t5x_lite.training.optimizers import AdamW
from t5x_lite.training.schedules import constant
from t5x_lite.training.setup import set_up
from t5x_lite.training.state import abstract_state, init_state
from t5x_lite.training.step import make_train_step

RECIPE = ["--gin_file=recipes/pretrain_text_lm.gin", "--gin.TransformerConfig.embed_dim=32",
          "--gin.TransformerConfig.num_decoder_layers=2", "--gin.TransformerConfig.num_heads=2",
          "--gin.TransformerConfig.head_dim=16", "--gin.TransformerConfig.mlp_dim=64",
          "--gin.VOCABULARY_SIZE=384"]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_config(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with config.fresh():
        yield


def run(**changes) -> compiling.Run:
    return compiling.Run(
        model=tiny.LM, task=compiling.stand_in_task(), lengths={"targets": 32}, batch_size=16,
        optimizer=AdamW(schedule=constant(rate=1e-3)), total_steps=10, **changes,
    )  # fmt: skip


def plan(*flags: str) -> int:
    return cli.main(["plan", *RECIPE, *flags])


# ------------------------------------------------------------------------------- by formulas


def test_a_gpu_is_planned_by_formulas_without_data(capsys):
    """Neither the text nor the folder of the recipe is given."""
    assert plan("--topology=gpu:h100x8", "--price=2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["chips"], found["source"], found["mesh"]["data"]) == (8, "formulas", 8)
    assert found["batch_size"] == 32 and found["tokens"] == 2000 * 32 * 128
    assert found["cost"] == pytest.approx(2 * found["chip_hours"])
    times = found["time"]
    assert times["overlapped"] <= times["as_compiled"] <= times["not_overlapped"]
    memory = found["memory"]
    assert memory["total"] == sum(memory[name] for name in (*compiling.STATE, "activations"))


def test_the_table_and_the_page(capsys, tmp_path):
    page_file = tmp_path / "plan.html"
    assert plan("--topology=gpu:h200x2", f"--html={page_file}") == 0
    out = capsys.readouterr().out
    for word in ("parameters", "optimizer", "HBM traffic", "all-reduce over data", "chip-hours"):
        assert word in out
    text = page_file.read_text()
    assert text.startswith("<!doctype html>") and "Memory of one chip" in text
    assert "<script" not in text and "://" not in text.replace("https://arxiv.org", "")


def test_state_memory_is_that_of_the_real_state():
    one = run(mesh=MeshConfig(data=2, fsdp=4))
    setup, state = compiling.set_up_state(one, jax.devices())
    transform = one.optimizer.build(setup.model.abstract_params(), setup.model.logical_axes())
    abstract = abstract_state(setup.model, transform, setup.mesh, setup.rules)
    assert jax.tree.map(lambda x: x.sharding, abstract) == jax.tree.map(lambda x: x.sharding, state)
    real = init_state(setup.model, transform, abstract, seed=0)
    held = sum(s.data.nbytes for x in jax.tree.leaves(real) for s in x.addressable_shards[:1])
    memory = analytic.state_memory(state)
    assert abs(memory["parameters"] + memory["optimizer"] - held) <= 16  # step and bad_steps


def test_gradients_are_those_of_what_is_trained():
    one = run(frozen="embedder|/mlp/")
    _, state = compiling.set_up_state(one, jax.devices()[:1])
    table, layers = state.params["token_embedder"], state.params["decoder"]["layers"]
    frozen = analytic.shard_bytes(table) + analytic.shard_bytes(layers["mlp"])
    memory = analytic.state_memory(state)
    assert memory["gradients"] == memory["parameters"] - frozen
    assert abs(memory["optimizer"] - 2 * memory["gradients"]) <= 16  # the count of steps


def test_flags_for_other_devices_do_not_reach_the_tpus_compiler(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_x=1 --xla_dump_to=d --xla_gpu_y=2")
    start_jax()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=d"


@pytest.mark.parametrize("remat", [r for r in analytic._KEPT if r != "none"])
def test_remat_needs_no_more_memory_than_none(remat):
    lengths = {"decoder_target_tokens": 512}
    none = analytic.activation_memory(tiny.LM, lengths, 8)
    less = analytic.activation_memory(dataclasses.replace(tiny.LM, remat=remat), lengths, 8)
    assert less <= none


def test_every_remat_policy_has_a_formula():
    from t5x_lite.models.config import CHOICES

    assert set(analytic._KEPT) == set(analytic._AGAIN) == set(CHOICES["remat"])


def test_predicted_beside_measured():
    """The compiled step executes what the mathematics needs, but for the embedding's gradient."""
    setup = set_up(tiny.LM, tiny.task(compiling.CausalLM()), {"targets": 32}, 8)
    optimizer = AdamW(schedule=constant(rate=1e-3))
    transform = optimizer.build(setup.model.abstract_params(), setup.model.logical_axes())
    state = abstract_state(setup.model, transform, setup.mesh, setup.rules)
    lines = checking.predicted_and_measured(setup, state)
    assert "predicted" in lines["memory per device"] and "measured" in lines["memory per device"]
    step = jax.jit(make_train_step(setup.model, transform, optimizer.schedule))
    with use_mesh(setup.mesh, setup.rules):
        compiled = step.lower(state, setup.abstract_batch()).compile()
    lines = checking.predicted_and_measured(setup, state, compiled=compiled)
    assert "; compiled step " in lines["memory per device"]
    executed = sum(products.matmul_flops(hlo.parse(compiled.as_text())).values()) * setup.mesh.size
    predicted = sum(analytic.counts(setup, state)["matmul_flops"].values()) * setup.mesh.size
    assert executed == pytest.approx(predicted, rel=0.05)


# ------------------------------------------------------------------------------- search


def test_search_lists_layouts_that_divide():
    place = topologies.find("gpu:h100x8")
    found = list(search.candidates(run(), place, [16]))
    for layout in found:
        mesh = layout.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 8
        assert 16 % (layout.num_microbatches * mesh.data * mesh.fsdp) == 0
    assert {layout.mesh.tensor for layout in found} == {1, 2}  # two heads for keys and values
    assert len(set(found)) == len(found)


def read(speed: float, total: int) -> dict:
    return {"source": "read", "fits": True, "time": {}, "tokens_per_second": speed,
            "memory": {"total": total}}  # fmt: skip


def compiled(plan: dict, program: int = 1, **changes) -> dict:
    memory = {"total": plan["memory"]["total"] + program, "program": program}
    return plan | {"source": "compiled", "memory": memory} | changes


def test_search_compiles_whole_what_it_shows_and_what_takes_its_place():
    """a doesn't fit after all, and the compiler refuses c: b, d and e are the best."""
    plans = {"a": read(5, 7), "b": read(4, 8), "c": read(3, 4), "d": read(2, 5), "e": read(1, 3)}
    asked = []

    def whole(layouts, at_least):
        asked.append((layouts, at_least))
        outcomes = {"a": compiled(plans["a"], fits=False), "c": None}
        return {x: outcomes[x] if x in outcomes else compiled(plans[x], 4) for x in layouts}

    found = search.settle(plans, whole)
    assert asked == [(["a", "c", "e"], 1), (["b", "d"], 1)]
    assert sorted(found) == ["a", "b", "d", "e"]
    assert {plan["source"] for plan in found.values()} == {"compiled"}


def test_search_compiles_the_fastest_whole_when_its_time_is_up():
    plans, asked = {"a": read(2, 7), "b": read(1, 3)}, []

    def whole(layouts, at_least):
        asked.append(at_least)
        return {x: compiled(plans[x]) for x in layouts[:at_least]}

    found = search.settle(plans, whole)
    assert asked == [1, 0]
    assert {x: plan["source"] for x, plan in found.items()} == {"a": "compiled", "b": "read"}


def test_no_layout_is_begun_after_the_deadline_but_those_that_must(monkeypatch):
    layouts = [search.Layout(MeshConfig(), remat, 1, 8) for remat in ("none", "full", "dots")]
    monkeypatch.setattr(workers, "_in_process", lambda *task: {"error": task[2].remat})
    args = cli.parse_args(["plan", "--topology=v5e-1", "--workers=2"])
    place = topologies.find(args.topology)
    for at_least in (0, 1, 3):
        found = workers.compile_all(args, place, layouts, time.monotonic(), at_least, early=True)
        assert found == dict.fromkeys(layouts[:at_least])


SEARCHER = """
import time
from t5x_lite.planning import workers
worker = workers.process_context().Process(target=workers.end_with_parent)
worker.start()
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_a_searchs_processes_end_with_it_even_if_it_is_killed():
    with subprocess.Popen([sys.executable, "-c", SEARCHER], stdout=subprocess.PIPE) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not _runs(worker), "the worker's end")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:  # one that nobody has waited for is a zombie
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_search_by_formulas_writes_the_best_as_gin(capsys, tmp_path):
    best = tmp_path / "best.gin"
    flags = ["--topology=gpu:h100x4", "--rows_per_chip=4,8", f"--best={best}"]
    assert plan("--search", "--json", *flags) == 0
    result = json.loads(capsys.readouterr().out)
    front = result["pareto"]
    assert front[0] == result["best"]
    speeds = [p["tokens_per_second"] for p in front]
    memory = [p["memory"]["total"] for p in front]
    assert speeds == sorted(speeds, reverse=True) and memory == sorted(memory, reverse=True)
    assert {p["batch_size"] for p in result["plans"]} == {16, 32}
    # The file goes behind the recipe, and plans the same.
    assert plan(f"--gin_file={best}", "--topology=gpu:h100x4", "--json") == 0
    again = json.loads(capsys.readouterr().out)
    for name in ("mesh", "remat", "batch_size", "num_microbatches", "steps", "tokens_per_second"):
        assert again[name] == result["best"][name]
    assert report.layout_rows(front)[0][0] == "mesh" and "<svg" in page.render(result)


# ------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e-255"], "unknown topology 'v5e-255'"),
        (["--topology=gpu:h100x8", "--gin.MeshConfig.fsdp=3"], "found 8"),
        (["--topology=gpu:h100x8", "--gin.BATCH_SIZE=12"], "batch of 12 rows"),
        (["--topology=gpu:h100x8", "--price=-1"], "--price=-1.0"),
        (["--topology=cpu", "--search", "--budget_minutes=0"], "--budget_minutes=0.0"),
        (["--topology=cpu", "--search", "--rows_per_chip=x"], "--rows_per_chip=x"),
        ([], "--topology"),
    ],
)
def test_mistakes_are_one_line(flags, message, capsys):
    assert plan(*flags) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_plan_needs_a_config(capsys):
    assert cli.main(["plan", "--topology=cpu"]) == 2
    assert "plan needs --gin_file=FILE" in capsys.readouterr().err


def test_more_devices_than_jax_has_started_with():
    assert jax.devices()
    with pytest.raises(UserError, match="9999 devices"):
        compiling.host_devices(9999)


# ------------------------------------------------------------------------------- the TPU compiler


@pytest.fixture
def libtpu(monkeypatch):
    pytest.importorskip("libtpu", reason="the TPU compiler isn't installed")
    assert jax.devices()  # jax has read XLA_FLAGS; libtpu ends the process if it doesn't know one
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_a_run_that_does_not_fit_names_its_largest_buffers(libtpu, tmp_path):
    """The compiler gives up before the expensive part, so that this takes seconds."""
    place = topologies.find("v5e-4")
    model = dataclasses.replace(tiny.LM, dtype="bfloat16", attention="xla")
    one = dataclasses.replace(run(mesh=MeshConfig(data=4)), model=model, batch_size=4 * 2**15,
                              lengths={"targets": 128})  # fmt: skip
    traced = compiling.trace(one, topologies.abstract_devices(place))
    found = compiling.examine(traced, place, cache_dir=tmp_path)
    made = report.make(one, place, traced.setup, traced.state, found)
    assert not made["fits"]
    assert made["memory"]["limit"] == pytest.approx(15.75 * 2**30)
    assert made["memory"]["total"] > made["memory"]["limit"]
    largest = made["buffers"][0]
    assert largest["bytes"] >= made["memory"]["limit"] / 20
    assert ".py:" in largest["source"]
    assert "too much" in report.as_text(made) and largest["shape"] in report.as_text(made)
    # What was found is kept.
    [kept] = tmp_path.glob("*.json")
    before = kept.stat().st_mtime_ns
    assert compiling.examine(traced, place, cache_dir=tmp_path) == found
    assert kept.stat().st_mtime_ns == before


def test_the_programs_own_step_is_compiled(libtpu, tmp_path, monkeypatch):
    """Executed products are the model's, and arguments are the state and the batch."""
    place = topologies.find("v5e-1")
    model = dataclasses.replace(tiny.LM, dtype="bfloat16", attention="xla", num_decoder_layers=1)
    one = dataclasses.replace(run(), model=model)
    traced = compiling.trace(one, topologies.abstract_devices(place))
    (tmp_path / "dumps").mkdir()  # the compiler that goes on makes its folder again
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "dumps"))
    early = compiling.examine(traced, place, cache_dir=tmp_path, early=True)
    assert compiling.examine(traced, place, cache_dir=tmp_path, early=True) == early
    for thread in threading.enumerate():
        if thread.name == compiling.COMPILER:
            thread.join()
    found = compiling.examine(traced, place, cache_dir=tmp_path)
    # Read before code is generated it says the same, but for the program's own memory.
    assert early.pop("early") and not found["early"]
    differing = {name for name in early if early[name] != found[name]}
    assert differing <= {"memory", "compile_seconds", "compile_cpu_seconds"}
    for name, rest in (("arguments", 0), ("host", 0), ("temporary", 2**15)):
        assert 0 <= found["memory"][name] - early["memory"][name] <= rest
    without = found["memory"]["total"] - found["memory"]["program"]
    assert 0 <= without - early["memory"]["total"] <= 2**15
    # What is known of the whole is preferred.
    assert compiling.examine(traced, place, cache_dir=tmp_path, early=True) == found
    assert found["fits"] and found["collectives"] == []
    batch = sum(math.prod(x.shape) * 4 for x in jax.tree.leaves(traced.setup.abstract_batch()))
    state = found["memory"]["parameters"] + found["memory"]["optimizer"]
    assert found["memory"]["arguments"] >= state + batch
    made = report.make(one, place, traced.setup, traced.state, found)
    executed = sum(found["matmul_flops"].values())
    assert executed == pytest.approx(made["model_flops"], rel=0.02)
    assert made["parameters"] == sum(
        x.size for x in jax.tree.leaves(Model(model).abstract_params())
    )


@pytest.mark.slow
def test_search_reads_all_compiles_the_best_and_goes_on(libtpu, tmp_path, monkeypatch, capsys):
    """And leaves no process, though their compilers go on."""
    chosen = [search.Layout(MeshConfig(), remat, 1, 32) for remat in ("none", "full")]
    monkeypatch.setattr(search, "candidates", lambda *_: iter(chosen))
    flags = ["--topology=v5e-1", "--search", "--workers=1", "--json", f"--cache_dir={tmp_path}"]
    assert plan(*flags) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["compiled"], first["not_compiled"]) == (2, 0)
    assert first["best"]["source"] == first["pareto"][0]["source"] == "compiled"
    assert first["compiled_whole"] == len(first["pareto"])
    assert len(list(tmp_path.glob("*.early.json"))) == 2
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert plan(*flags) == 0
    again = json.loads(capsys.readouterr().out)
    assert sorted(again.pop("plans"), key=str) == sorted(first.pop("plans"), key=str)
    assert again == first
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert multiprocessing.active_children() == []
