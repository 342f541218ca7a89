"""Text generation on this CPU, against Hugging Face's `generate` with the same weights.

  python benchmarks/decode.py --json=decode.json                          # t5x_lite alone
  python benchmarks/decode.py --torch_python=TORCH_ENV/bin/python         # both, A B A B
  python benchmarks/decode.py --tiny --rounds=1 --repeats=1               # does it run?
  python benchmarks/decode.py --workloads=repetitive --sides=plain,lookup # prompt lookup

Workloads, float32: "t5", T5 1.1 small, 128 tokens read; "lm", like GPT-2 (12 layers, 768 wide,
50,257 ids, tied), prompts of 128 tokens; 64 new tokens, no end of text. "repetitive": the
LM with a text that repeats itself. Cases: greedy with 1 and 32 rows, and a beam search of width 4
with 1 row. The weights are random, written once by `save_pretrained` and read by both sides. Each
round of each side is a process of its own; the prompt's pass counts, compiling doesn't. Both sides'
greedy tokens must be the same.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CASES = {"greedy 1": (1, 1), "greedy 32": (32, 1), "beam 4": (1, 4)}  # rows, beams
# Sides of this package: what differs from greedy decoding or beam search with float32 weights.
SIDES: dict[str, dict] = {
    "plain": {},
    "fused": {"model": {"fused_projections": True}},
    "unrolled": {"model": {"scan_layers": False}},
    "lookup": {"lookup": True},
    "bfloat16": {"weights": "bfloat16"},
    "int8": {"weights": "int8"},
}


def sizes(workload: str, tiny: bool) -> dict:
    if workload == "t5":
        return {"read": 128, "new": 64, "vocab": 32128} | (
            {"read": 16, "new": 8, "vocab": 512} if tiny else {}
        )
    return {"read": 128, "new": 64, "vocab": 50257} | (
        {"read": 16, "new": 8, "vocab": 512} if tiny else {}
    )


def model_config(workload: str, tiny: bool):
    from t5x_lite.models.config import TransformerConfig

    vocab = sizes(workload, tiny)["vocab"]
    if workload == "t5":
        shape = {"embed_dim": 512, "mlp_dim": 1024, "num_heads": 6, "layers": 8}
    else:
        shape = {"embed_dim": 768, "mlp_dim": 3072, "num_heads": 12, "layers": 12}
    if tiny:
        shape = {"embed_dim": 64, "mlp_dim": 128, "num_heads": 2, "layers": 2}
    layers = shape.pop("layers")
    shape |= {"vocab_size": vocab, "num_decoder_layers": layers, "dtype": "float32"}
    shape["head_dim"] = 32 if tiny else 64
    if workload == "t5":
        return TransformerConfig(**shape, num_encoder_layers=layers)
    return TransformerConfig(
        **shape, architecture="decoder_only", mlp_activations=("gelu",), norm="layer",
        positions="learned", max_positions=512, use_bias=True, scale_attention=True,
        tied_embeddings=True, scale_tied_logits=False, init_std=0.06,
    )  # fmt: skip


def make_weights(folder: Path, workload: str, tiny: bool) -> None:
    import jax

    from t5x_lite.interop.pretrained import save_pretrained
    from t5x_lite.models.model import Model

    model = Model(model_config(workload, tiny))
    save_pretrained(folder, model, jax.jit(model.init)(jax.random.key(0)))


def inputs(workload: str, rows: int, tiny: bool):
    """Token ids [rows, read], without padding; those of a decoder begin with the start token 0."""
    import numpy as np

    size = sizes(workload, tiny)
    rng = np.random.default_rng(0)
    ids = rng.integers(3, size["vocab"], (rows, size["read"])).astype(np.int32)
    if workload == "repetitive":
        ids = np.tile(ids[:, : size["read"] // 8], (1, 8))
    if workload != "t5":
        ids[:, 0] = 0
    return ids


def timed(call, repeats: int) -> dict:
    """Medians of the seconds of call(), which is run once more before."""
    tokens, wall, cpu = call(), [], []
    for _ in range(repeats):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - begin_cpu)
    return {
        "seconds": statistics.median(wall),
        "cpu_seconds": statistics.median(cpu),
        "tokens": tokens.tolist(),
    }


def child(folder: str, workload: str, side: str, cases: list[str], args) -> dict:
    """Measures t5x_lite in this process."""
    import numpy as np

    from t5x_lite.inference.beam import BeamSearch
    from t5x_lite.inference.decoding import generate
    from t5x_lite.inference.lookup import Lookup
    from t5x_lite.inference.sampling import Greedy
    from t5x_lite.inference.weights import compress
    from t5x_lite.interop.pretrained import from_pretrained

    settings = SIDES[side]
    model, params, _ = from_pretrained(folder, dtype="float32", **settings.get("model", {}))
    params = compress(params, settings.get("weights", "float32"))
    results = {}
    for case in cases:
        rows, beams = CASES[case]
        ids = inputs(workload, rows, args.tiny)
        options = {"max_new_tokens": sizes(workload, args.tiny)["new"], "eos_id": -1}
        alone = Lookup() if settings.get("lookup") else Greedy()
        options["method"] = BeamSearch(beams) if beams > 1 else alone
        if workload == "t5":
            batch = {"encoder_input_tokens": ids}
        else:
            batch, options["prompts"] = {}, ids[:, 1:]

        def call(batch=batch, options=options):
            return np.asarray(generate(model, params, batch, **options).tokens[:, 0])

        begin = time.perf_counter()
        call()
        compiled = time.perf_counter() - begin
        results[case] = timed(call, args.repeats) | {"first_seconds": compiled}
    return results


def run(command: list[str], xla_flags: str) -> dict:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags}
    environment |= {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else {}


def measure(args) -> dict:
    tiny = ["--tiny"] if args.tiny else []
    results: dict = {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
    }
    cases = args.cases.split(",")
    for workload in args.workloads.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = str(Path(temporary) / "weights")
            common = [f"--folder={folder}", f"--workloads={workload}", *tiny]
            run([sys.executable, __file__, "--make", *common], args.xla_flags)
            common += [f"--repeats={args.repeats}", f"--cases={args.cases}"]
            sides = {
                name: [sys.executable, __file__, "--child", f"--sides={name}", *common]
                for name in args.sides.split(",")
            }
            if args.torch_python:
                sides["transformers"] = [args.torch_python, str(HERE / "torch_decode.py"), *common]
            runs: dict[str, list] = {side: [] for side in sides}
            for _ in range(args.rounds):
                for side, command in sides.items():
                    runs[side].append(run(command, args.xla_flags))
        results[workload] = {
            case: {side: summary([r[case] for r in found]) for side, found in runs.items()}
            for case in cases
        }
        for case, sides in results[workload].items():
            check_tokens(workload, case, sides, args.tiny)
    return results


def summary(runs: list[dict]) -> dict:
    """Medians of the numbers, all runs' numbers, and the first run's tokens."""
    assert all(run["tokens"] == runs[0]["tokens"] for run in runs), "a side's own tokens differ"
    numbers = {k: [run[k] for run in runs] for k in runs[0] if k != "tokens"}
    medians = {k: statistics.median(found) for k, found in numbers.items()}
    return medians | {"tokens": runs[0]["tokens"], "runs": numbers}


def check_tokens(workload: str, case: str, sides: dict, tiny: bool) -> None:
    """Adds "same": the share of rows that are the first side's. Greedy's must all be."""
    first = next(iter(sides.values()))["tokens"]
    assert {len(row) for row in first} == {sizes(workload, tiny)["new"]}
    for side, found in sides.items():
        tokens = found.pop("tokens") if side != next(iter(sides)) else found["tokens"]
        found["same"] = statistics.mean(a == b for a, b in zip(first, tokens, strict=True))
        if case.startswith("greedy") and found["same"] < 1 and side not in ("int8", "bfloat16"):
            sys.exit(f"{workload}, {case}: the tokens of {side} differ in {1 - found['same']:.0%}")


def table(results: dict, tiny: bool) -> str:
    lines = ["| | tokens/s | processor ms a token | ratio | processor time, ratio | same |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for workload, cases in results.items():
        if not isinstance(cases, dict):
            continue
        for case, sides in cases.items():
            tokens = CASES[case][0] * sizes(workload, tiny)["new"]
            base = sides.get("transformers") or next(iter(sides.values()))
            for side, found in sides.items():
                lines.append(
                    f"| {workload}, {case}, {side} | {tokens / found['seconds']:,.0f} | "
                    f"{1000 * found['cpu_seconds'] / tokens:.2f} | "
                    f"{base['seconds'] / found['seconds']:.2f} | "
                    f"{base['cpu_seconds'] / found['cpu_seconds']:.2f} | {found['same']:.0%} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", default="t5,lm")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sides", default="plain", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch_python", help="interpreter with torch and transformers")
    parser.add_argument("--xla_flags", default="")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--json", help="file for all numbers")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_weights(Path(args.folder), args.workloads, args.tiny)
    elif args.child:
        found = child(args.folder, args.workloads, args.sides, args.cases.split(","), args)
        print(json.dumps(found))
    else:
        results = measure(args)
        print(table(results, args.tiny))
        if args.json:
            Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
