"""A training step on this CPU, against PyTorch: processor seconds, memory, time to the first step.

  python benchmarks/step.py --json=step.json                            # t5x_lite alone
  python benchmarks/step.py --torch_python=TORCH_ENV/bin/python         # and Hugging Face, A B A B
  python benchmarks/step.py --workloads=t5 --t5x=CHECKOUT               # and T5X's model
  python benchmarks/step.py --tiny --rounds=1 --steps=1                 # does it run?

Workloads: "t5", T5 1.1 small (512 + 114 tokens, untied, 76.96M parameters), and "lm", like GPT-2
(8 layers, 512 wide, 8 heads, 512 tokens, tied); 8 rows, 32,128 ids, float32, AdamW, no dropout, no
padding; remat = "minimal" here (less memory, and no slower), as PyTorch's compiler recomputes, too.
Each run is a process of its own, with an empty compile cache. Processor seconds count all threads,
so other work on the machine changes them less than it does the time on the clock; the matrix
products' peak, measured in the same minutes, tells how much it did.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROCESS_START = time.time()


def workload(name: str, tiny: bool):
    """TransformerConfig, rows, and lengths of the model's features."""
    from t5x_lite.models.config import TransformerConfig

    size = {"vocab_size": 32128, "embed_dim": 512, "mlp_dim": 1024, "num_decoder_layers": 8}
    lengths = {"encoder_input_tokens": 512, "decoder_target_tokens": 114}
    if tiny:
        size |= {"vocab_size": 512, "embed_dim": 64, "mlp_dim": 128, "num_decoder_layers": 2}
        lengths = {"encoder_input_tokens": 32, "decoder_target_tokens": 16}
    if name == "t5":
        layers = size["num_decoder_layers"]
        size |= {"num_heads": 6, "head_dim": 64, "num_encoder_layers": layers}
        return TransformerConfig(**size, dtype="float32"), 8, lengths
    size |= {"num_heads": 8, "head_dim": 64, "mlp_dim": 4 * size["embed_dim"]}
    lengths = {"decoder_target_tokens": lengths["encoder_input_tokens"]}
    config = TransformerConfig(
        **size, architecture="decoder_only", mlp_activations=("gelu",), norm="layer",
        positions="learned", use_bias=True, scale_attention=True, tied_embeddings=True,
        scale_tied_logits=False, init_std=0.02, dtype="float32",
    )  # fmt: skip
    return config, 8, lengths


def features(lengths: dict, rows: int, vocab_size: int) -> dict:
    """Random tokens, no padding."""
    import numpy as np

    rng = np.random.default_rng(0)
    batch = {k: rng.integers(2, vocab_size, (rows, n)).astype(np.int32) for k, n in lengths.items()}
    targets = batch["decoder_target_tokens"]
    batch["decoder_input_tokens"] = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    batch["decoder_loss_weights"] = np.ones_like(targets)
    return batch


def child(name: str, steps: int, tiny: bool, changes: dict) -> dict:
    """Measures t5x_lite in this process."""
    import dataclasses

    import jax

    from t5x_lite.models.flops import train_flops
    from t5x_lite.models.model import Model
    from t5x_lite.parallel.mesh import make_mesh
    from t5x_lite.parallel.rules import logical_rules
    from t5x_lite.training.background_compile import BackgroundCompile
    from t5x_lite.training.optimizers import AdamW
    from t5x_lite.training.schedules import constant
    from t5x_lite.training.state import abstract_state, init_state
    from t5x_lite.training.step import make_train_step

    config, rows, lengths = workload(name, tiny)
    model = Model(dataclasses.replace(config, **changes))
    optimizer = AdamW(schedule=constant(rate=1e-4))
    transform = optimizer.build(model.abstract_params(), model.logical_axes())
    abstract = abstract_state(model, transform, make_mesh(), logical_rules())
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    step = make_train_step(model, transform, optimizer.schedule)
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    batch = jax.device_put(features(lengths, rows, config.vocab_size))
    compiling = BackgroundCompile(step, abstract, batch)  # as `train` does
    state = init_state(model, transform, abstract, seed=0)
    step = compiling.result()
    found = measured(step, state, batch, steps, lambda state: state.params)
    return found | {"model_flops": train_flops(config, lengths, rows)}


def measured(step, state, batch, steps: int, params_of) -> dict:
    """Runs ``step(state, batch)`` once and ``steps`` times more: what all sides report."""
    import jax

    cpu, losses, first = [], [], None
    for _ in range(steps + 1):
        begin = time.process_time()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        cpu.append(time.process_time() - begin)
        first = first or time.time() - PROCESS_START
    return {
        "cpu_seconds": statistics.median(cpu[1:]),
        "first_step_seconds": first,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": sum(x.size for x in jax.tree.leaves(params_of(state))),
        "losses": losses,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
    }


def matmul_peak(seconds: float = 1.0) -> dict:
    """FLOP per processor second of the fastest of some float32 products, by jax on this CPU."""
    import jax
    import jax.numpy as jnp

    found = []
    for m, k, n in ((2048, 2048, 2048), (4096, 512, 1024), (4096, 1024, 512), (512, 4096, 1024)):
        x, y = jnp.ones((m, k)), jnp.ones((k, n))
        product = jax.jit(jnp.matmul)
        product(x, y).block_until_ready()
        count, cpu = 0, time.process_time()
        while time.process_time() - cpu < seconds:
            product(x, y).block_until_ready()
            count += 1
        found.append(2 * m * k * n * count / (time.process_time() - cpu))
    return {"flops_per_cpu_second": max(found)}


def run(command: list[str], xla_flags: str) -> dict:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment |= {"XLA_FLAGS": xla_flags, "PYTHONPATH": str(HERE.parent)}
    begin = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return result | {"seconds": time.time() - begin}


def measure(args) -> dict:
    mine = [sys.executable, __file__, "--child", f"--steps={args.steps}", f"--set={args.set}"]
    theirs = [args.torch_python, str(HERE / "torch_step.py"), f"--steps={args.steps}"]
    tiny = ["--tiny"] if args.tiny else []
    results: dict = {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
    }
    for name in args.workloads.split(","):
        sides = {"t5x_lite": [*mine, f"--workloads={name}", *tiny]}
        if args.torch_python:
            for mode in ("eager", "compile"):
                sides[f"torch {mode}"] = [*theirs, f"--workload={name}", f"--mode={mode}", *tiny]
        if args.t5x and name == "t5":
            its = [sys.executable, str(HERE / "t5x_step.py"), f"--t5x={args.t5x}"]
            sides["T5X"] = [*its, f"--steps={args.steps}", *tiny]
        runs: dict[str, list] = {side: [] for side in [*sides, "matmul"]}
        for _ in range(args.rounds):
            for side, command in sides.items():
                # T5X sets no flags.
                runs[side].append(run(command, "" if side == "T5X" else args.xla_flags))
            runs["matmul"].append(run([sys.executable, __file__, "--matmul"], args.xla_flags))
        results[name] = {side: summary(found) for side, found in runs.items()}
    return results


def summary(runs: list[dict]) -> dict:
    """Medians of the numbers, the rest of the first run, and all runs."""
    numbers = [k for k, v in runs[0].items() if isinstance(v, int | float)]
    return runs[0] | {k: statistics.median(r[k] for r in runs) for k in numbers} | {"runs": runs}


def table(results: dict) -> str:
    lines = ["| | processor seconds a step | of the products' peak | MiB | first step, s |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, sides in results.items():
        if not isinstance(sides, dict):
            continue
        peak = sides["matmul"]["flops_per_cpu_second"]
        for side, found in sides.items():
            if side != "matmul":
                flops = sides["t5x_lite"]["model_flops"]
                lines.append(
                    f"| {name}, {side} | {found['cpu_seconds']:.2f} | "
                    f"{flops / found['cpu_seconds'] / peak:.0%} | {found['peak_mib']:,.0f} | "
                    f"{found['first_step_seconds']:.1f} |"
                )
        lines.append(f"\nPeak of matrix products: {peak / 1e9:.1f} GFLOP per processor second.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default="t5,lm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--torch_python", help="interpreter with torch and transformers")
    parser.add_argument("--t5x", help="a checkout of T5X, for its model")
    parser.add_argument("--xla_flags", default="--xla_cpu_experimental_ynn_fusion_type=")
    parser.add_argument("--set", default='{"remat": "minimal"}', help="changes of the model")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--json", help="file for all numbers")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--matmul", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.matmul:
        print(json.dumps(matmul_peak()))
    elif args.child:
        print(json.dumps(child(args.workloads, args.steps, args.tiny, json.loads(args.set))))
    else:
        results = measure(args)
        print(table(results))
        if args.json:
            Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
