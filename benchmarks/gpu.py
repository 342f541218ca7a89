"""One command for a machine with a GPU: are the kernels right, and how fast are training steps?

  python benchmarks/gpu.py --json=gpu.json                                # with torch beside jax
  python benchmarks/gpu.py --torch_python=TORCH_ENV/bin/python            # or somewhere else
  python benchmarks/gpu.py --tiny                # small shapes: does it run (a CPU will do)?
  TORCHDYNAMO_DISABLE=1 python benchmarks/gpu.py --tiny  # on a CPU: torch.compile takes minutes

Times T5 1.1 base, large and xl at 512 + 114 tokens and LMs of 125M, 350M and 1.3B at 2,048 (like
Llama), in bfloat16 with float32 parameters and AdamW, against Hugging Face's models compiled by
PyTorch with their fastest attention (torch_gpu.py), A B A B: each run is a process of its own, and
one at a time has the device. What doesn't fit its memory is tried with half the rows. MFU is of
--peak_tflops, model FLOPs without recomputation. Without torch, this package is timed alone.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MFU_GOALS = {"t5 large": 0.45, "lm 1.3B": 0.55}
RATIO_GOAL = 1.3  # of PyTorch's tokens per second
NO_ROOM = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemoryError")

# width, heads, head_dim, mlp, layers of a stack, rows, remat
T5 = {
    "base": (768, 12, 64, 2048, 12, 64, "minimal"),
    "large": (1024, 16, 64, 2816, 24, 32, "minimal"),
    "xl": (2048, 32, 64, 5120, 24, 16, "full"),
}
LM = {
    "125M": (768, 12, 64, 2048, 12, 32, "minimal"),
    "350M": (1024, 16, 64, 2816, 24, 16, "minimal"),
    "1.3B": (2048, 16, 128, 5504, 24, 8, "minimal"),
}
TINY = (64, 2, 32, 128, 2, 2, "minimal")


def sizes(model: str, tiny: bool) -> dict:
    """What both sides build: {"kind", "vocab", "width", ..., "rows", "lengths", "remat"}."""
    kind, size = model.split()
    names = ("width", "heads", "head_dim", "mlp", "layers", "rows", "remat")
    found = dict(zip(names, TINY if tiny else {"t5": T5, "lm": LM}[kind][size], strict=True))
    lengths = [512, 114] if kind == "t5" else [2048]
    vocab = 512 if tiny else 32128
    return found | {
        "kind": kind,
        "vocab": vocab,
        "lengths": [16] * len(lengths) if tiny else lengths,
    }


def workload(size: dict):
    """TransformerConfig, and lengths of the model's features."""
    from t5x_lite.models.config import TransformerConfig

    common = {
        "vocab_size": size["vocab"], "embed_dim": size["width"], "num_heads": size["heads"],
        "head_dim": size["head_dim"], "mlp_dim": size["mlp"], "remat": size["remat"],
        "num_decoder_layers": size["layers"], "dtype": "bfloat16",
    }  # fmt: skip
    if size["kind"] == "t5":
        names = ("encoder_input_tokens", "decoder_target_tokens")
        config = TransformerConfig(**common, num_encoder_layers=size["layers"])
    else:
        names = ("decoder_target_tokens",)
        config = TransformerConfig(
            **common, architecture="decoder_only", mlp_activations=("silu", "linear"),
            positions="rope", scale_attention=True,
        )  # fmt: skip
    return config, dict(zip(names, size["lengths"], strict=True))


def check_kernels(length: int) -> dict[str, float]:
    """Largest difference of each form's output and gradients to the reference's, in float32."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from t5x_lite.models.functional.attention import dot_product_attention
    from t5x_lite.models.functional.masks import Mask

    forms = ["blockwise"] + (["cudnn"] if jax.default_backend() == "gpu" else [])
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, (2, length, 4, 64)) for key in keys]
    q, k, v, weights = (x.astype(jnp.bfloat16) for x in arrays)

    def run(form: str, *inputs):
        def loss(q, k, v):
            mask = Mask(causal=True)
            out = dot_product_attention(q, k, v, mask=mask, scale=0.125, implementation=form)
            return jnp.sum(out.astype(jnp.float32) * weights), out

        grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
        return [np.asarray(x, np.float32) for x in (out, *grads)]

    expected = run("xla", *(x.astype(jnp.float32) for x in (q, k, v)))
    found = {}
    for form in forms:
        pairs = zip(run(form, q, k, v), expected, strict=True)
        found[form] = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
        if not found[form] < 0.05:
            raise SystemExit(f"{form} attention is off by {found[form]:.3f} of the largest value")
    return found


def time_step(size: dict, steps: int, changes: dict) -> dict:
    """Measures t5x_lite in this process."""
    import jax
    from step import features

    from t5x_lite.models.flops import train_flops
    from t5x_lite.models.model import Model
    from t5x_lite.parallel.mesh import make_mesh
    from t5x_lite.parallel.rules import logical_rules
    from t5x_lite.training.optimizers import AdamW
    from t5x_lite.training.schedules import constant
    from t5x_lite.training.state import abstract_state, init_state
    from t5x_lite.training.step import make_train_step

    config, lengths = workload(size)
    model = Model(dataclasses.replace(config, **changes))
    optimizer = AdamW(schedule=constant(rate=1e-4))
    transform = optimizer.build(model.abstract_params(), model.logical_axes())
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = abstract_state(model, transform, mesh, logical_rules())
    state = init_state(model, transform, abstract, seed=0)
    step = jax.jit(make_train_step(model, transform, optimizer.schedule), donate_argnums=0)
    batch = jax.device_put(features(lengths, size["rows"], config.vocab_size))
    begin = time.perf_counter()
    step = step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - begin
    for _ in range(2):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    begin = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, batch)
    loss = float(metrics["loss"])
    seconds = (time.perf_counter() - begin) / steps
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "seconds": seconds,
        "peak_mib": memory.get("peak_bytes_in_use", 0) / 2**20,
        "compile_seconds": compile_seconds,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "model_flops": train_flops(config, lengths, size["rows"]),
        "loss": loss,
        "device": str(jax.devices()[0].device_kind),
        "versions": {"jax": jax.__version__},
    }


def run(command: list[str], size: dict) -> dict:
    """The command's numbers with all rows, or with the half of them that fits, or its error."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    while True:
        done = subprocess.run(
            [*command, f"--size={json.dumps(size)}"],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if not done.returncode:
            return json.loads(done.stdout.strip().splitlines()[-1]) | {"rows": size["rows"]}
        if size["rows"] == 1 or not any(word in done.stderr for word in NO_ROOM):
            return {"error": done.stderr.strip()[-2000:]}
        size = size | {"rows": size["rows"] // 2}


def torch_python(wanted: str | None) -> str | None:
    """An interpreter that has torch and transformers, or None, which is said."""
    python = wanted or sys.executable
    check = subprocess.run(
        [python, "-c", "import torch, transformers"], capture_output=True, text=True
    )
    if not check.returncode:
        return python
    why = (check.stderr.strip().splitlines() or ["it doesn't start"])[-1]
    print(f"No PyTorch side: {python}: {why}", flush=True)
    return None


def measure(model: str, python: str | None, args) -> dict:
    """{side: medians}, with tokens_per_second and mfu."""
    size = sizes(model, args.tiny)
    mine = [sys.executable, __file__, "--child", f"--steps={args.steps}", f"--set={args.set}"]
    sides = {"t5x_lite": mine}
    if python:
        sides["torch"] = [python, str(HERE / "torch_gpu.py"), f"--steps={args.steps}"]
    runs: dict[str, list] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, command in sides.items():
            runs[side].append(run(command, size))
    found: dict = {side: summary(each) for side, each in runs.items()}
    flops = found["t5x_lite"].get("model_flops", 0) / found["t5x_lite"].get("rows", 1)  # of a row
    for one in found.values():
        if "error" not in one:
            rows, seconds = one["rows"], one["seconds"]
            one["tokens_per_second"] = rows * sum(size["lengths"]) / seconds
            one["mfu"] = flops * rows / seconds / (args.peak_tflops * 1e12)
    return found


def summary(runs: list[dict]) -> dict:
    """Medians of the numbers, the rest of the first run, and all runs; or the first error."""
    for one in runs:
        if "error" in one:
            return one
    numbers = [k for k, v in runs[0].items() if isinstance(v, int | float)]
    return runs[0] | {k: statistics.median(r[k] for r in runs) for k in numbers} | {"runs": runs}


def rows_of_table(model: str, sides: dict) -> list[str]:
    """One line for each side: what was measured, beside the goals."""
    theirs = sides.get("torch", {}).get("tokens_per_second")
    lines = []
    for side, found in sides.items():
        if "error" in found:
            lines.append(f"| {model}, {side} | {found['error'].splitlines()[-1][:100]} | | | | | |")
            continue
        ours, ratio = side == "t5x_lite", ""
        mfu = f"{found['mfu']:.1%}"
        if ours and model in MFU_GOALS:
            mfu += f" (goal {MFU_GOALS[model]:.0%})"
        if ours and theirs:
            ratio = f"{found['tokens_per_second'] / theirs:.2f} (goal {RATIO_GOAL})"
        lines.append(
            f"| {model}, {side} | {found['rows']} | {found['seconds'] * 1e3:.1f} | "
            f"{found['tokens_per_second']:,.0f} | {mfu} | {found['peak_mib']:,.0f} | {ratio} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="t5 base,t5 large,t5 xl,lm 125M,lm 350M,lm 1.3B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--torch_python", help="interpreter with torch and transformers")
    parser.add_argument(
        "--peak_tflops", type=float, default=989.0, help="bfloat16, dense; H100/H200"
    )
    parser.add_argument("--set", default="{}", help='changes of the model, {"attention": "cudnn"}')
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", help="file for all numbers, written after each model")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kernels", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        size = json.loads(args.size)
        found = check_kernels(64 if args.tiny else 1024) if args.kernels else None
        print(json.dumps(found or time_step(size, args.steps, json.loads(args.set))))
        return
    python = torch_python(args.torch_python)
    kernels = [sys.executable, __file__, "--child", "--kernels", *["--tiny"] * args.tiny]
    checked = run(kernels, {"rows": 1})
    checked.pop("rows", None)
    results: dict = {"kernels": checked, "steps": {}}
    print(f"attention's largest relative differences: {results['kernels']}\n", flush=True)
    print(
        "| | rows | ms a step | tokens/s | MFU | MiB | of PyTorch's tokens/s |\n" + "|---" * 7 + "|"
    )
    for model in args.models.split(","):
        results["steps"][model] = measure(model, python, args)
        print("\n".join(rows_of_table(model, results["steps"][model])), flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
