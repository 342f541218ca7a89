"""One command for a machine with a GPU: are the kernels right, and how fast are training steps?

  python benchmarks/gpu.py --json=gpu.json
  python benchmarks/gpu.py --tiny                # small shapes: does it run (a CPU will do)?

Times T5 1.1 base, large and xl at 512 + 114 tokens and LMs of 125M, 350M and 1.3B at 2,048, in
bfloat16 with float32 parameters. MFU is of --peak_tflops, model FLOPs without recomputation.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from step import features

from t5x_lite.models import Model, TransformerConfig
from t5x_lite.models.flops import train_flops
from t5x_lite.models.functional.attention import Mask, dot_product_attention
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.parallel.rules import logical_rules
from t5x_lite.training.optimizers import AdamW
from t5x_lite.training.schedules import constant
from t5x_lite.training.state import abstract_state, init_state
from t5x_lite.training.step import make_train_step

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


def workload(kind: str, size: str, tiny: bool):
    width, heads, head_dim, mlp, layers, rows, remat = (
        TINY if tiny else {"t5": T5, "lm": LM}[kind][size]
    )
    common = {
        "vocab_size": 512 if tiny else 32128, "embed_dim": width, "num_heads": heads,
        "head_dim": head_dim, "mlp_dim": mlp, "num_decoder_layers": layers, "remat": remat,
        "dtype": "bfloat16",
    }  # fmt: skip
    if kind == "t5":
        lengths = {"encoder_input_tokens": 512, "decoder_target_tokens": 114}
        config = TransformerConfig(**common, num_encoder_layers=layers)
    else:
        lengths = {"decoder_target_tokens": 2048}
        config = TransformerConfig(
            **common, architecture="decoder_only", mlp_activations=("silu", "linear"),
            positions="rope", scale_attention=True,
        )  # fmt: skip
    return config, rows, {k: 16 if tiny else n for k, n in lengths.items()}


def check_kernels(length: int) -> dict[str, float]:
    """Largest difference of each form's output and gradients to the reference's, in float32."""
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


def time_step(kind: str, size: str, steps: int, tiny: bool, peak: float, changes: dict) -> dict:
    config, rows, lengths = workload(kind, size, tiny)
    model = Model(dataclasses.replace(config, **changes))
    optimizer = AdamW(schedule=constant(rate=1e-4))
    transform = optimizer.build(model.abstract_params(), model.logical_axes())
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = abstract_state(model, transform, mesh, logical_rules())
    state = init_state(model, transform, abstract, seed=0)
    step = jax.jit(make_train_step(model, transform, optimizer.schedule), donate_argnums=0)
    batch = jax.device_put(features(lengths, rows, config.vocab_size))
    begin = time.perf_counter()
    step = step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - begin
    seconds = []
    for _ in range(steps + 2):
        begin = time.perf_counter()
        state, metrics = step(state, batch)
        loss = float(metrics["loss"])
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[2:])
    flops = train_flops(config, lengths, rows)
    return {
        "model": f"{kind} {size}",
        "rows": rows,
        "seconds": median,
        "tokens_per_second": rows * sum(lengths.values()) / median,
        "mfu": flops / median / (peak * 1e12),
        "temporary_mib": step.memory_analysis().temp_size_in_bytes / 2**20,
        "compile_seconds": compile_seconds,
        "loss": loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="t5 base,t5 large,t5 xl,lm 125M,lm 350M,lm 1.3B")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--peak_tflops", type=float, default=989.0, help="bfloat16, dense; H100/H200"
    )
    parser.add_argument("--set", default="{}", help='changes of the model, {"attention": "cudnn"}')
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", help="file for all numbers")
    args = parser.parse_args()
    results: dict = {"jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}
    results["kernels"] = check_kernels(64 if args.tiny else 1024)
    print(f"{results['device']}: attention's largest relative differences {results['kernels']}")
    results["steps"] = []
    for model in args.models.split(","):
        kind, size = model.split()
        changes = json.loads(args.set)
        found = time_step(kind, size, args.steps, args.tiny, args.peak_tflops, changes)
        results["steps"].append(found)
        print(
            f"{model}: {found['seconds'] * 1e3:.1f} ms, "
            f"{found['tokens_per_second']:,.0f} tokens/s, "
            f"MFU {found['mfu']:.1%}",
            flush=True,
        )
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
