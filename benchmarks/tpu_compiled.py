"""The training step compiled for TPU slices that aren't here: MaxText's runs, in our framework.

  python benchmarks/tpu_compiled.py --case=a                  # one of a, b, c, d
  python benchmarks/tpu_compiled.py --case=a --case=c --set remat=dots --set fsdp=8 --set tensor=2
  python benchmarks/tpu_compiled.py --case=b --layers=4 --text=/tmp/b.txt    # quick, for looking

Needs libtpu (pip install 't5x_lite[plan]'), no TPU. Prints one JSON object a case.
Cases (AdamW, float32 state, bfloat16 compute, packed rows):
  a  1B on v5e-16: 2048 tokens, 4 rows a chip
  b  Llama-2 7B on v5e-256: 2048 tokens, 4 rows a chip, queries, keys and values kept
  c  125M on v5e-8: 1024 tokens, 32 rows a chip
  d  Llama-2 7B on v5p-128 (64 chips): 4096 tokens, 4 rows a chip, products kept
Remat is MaxText's in each. `fsdp` lies over all chips, split along the torus (docs/parallelism.md);
--set fsdp_split=None leaves that to XLA.
--set NAME=VALUE changes a field of TransformerConfig, MeshConfig, or num_microbatches, or
per_chip (rows); --reader=FILE reads the program with another
script's `stats(compiled)`, --text=FILE writes it to look at.
"""

import argparse
import ast
import dataclasses
import importlib.util
import json
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("XLA_FLAGS", None)

SHAPES = {
    "1b": dict(embed_dim=2048, num_heads=16, head_dim=128, mlp_dim=7168, num_decoder_layers=16),
    "7b": dict(embed_dim=4096, num_heads=32, head_dim=128, mlp_dim=11008, num_decoder_layers=32),
    "125m": dict(embed_dim=768, num_heads=12, head_dim=64, mlp_dim=2048, num_decoder_layers=12),
}
# MaxText's own: peak GiB, GB sent (commit e591f30, jax 0.10.2, libtpu 0.0.52)
MAXTEXT = {"a": (3.122, 6.35), "b": (10.028, 53.18), "c": (4.844, 0.77), "d": (45.909, 52.55)}
# topology, shape, tokens, rows per chip, remat
CASES = {
    "a": ("v5e-16", "1b", 2048, 4, "full"),
    "b": ("v5e-256", "7b", 2048, 4, "save_qkv"),
    "c": ("v5e-8", "125m", 1024, 32, "full"),
    "d": ("v5p-128", "7b", 4096, 4, "dots_no_batch"),
}


def build(case: str, changes: dict, layers: int | None, topology: str | None):
    """(run, topology) of a case."""
    from t5x_lite.models.config import TransformerConfig
    from t5x_lite.parallel.mesh import MeshConfig
    from t5x_lite.planning import topologies
    from t5x_lite.planning.compile import Run, stand_in_task
    from t5x_lite.training.optimizers import AdamW
    from t5x_lite.training.schedules import constant

    name, shape, tokens, per_chip, remat = CASES[case]
    place = topologies.find(topology or name)
    fields = dict(
        architecture="decoder_only",
        vocab_size=32000,
        mlp_activations=("silu", "linear"),
        positions="rope",
        scale_attention=True,
        tied_embeddings=False,
        init_std=0.02,
        dtype="bfloat16",
        remat=remat,
        **SHAPES[shape],
    )
    if layers:
        fields["num_decoder_layers"] = layers
    mesh, others = {"data": 1, "fsdp": place.chips, "fsdp_split": place.shape}, {}
    for key, value in changes.items():
        if key in {f.name for f in dataclasses.fields(TransformerConfig)}:
            fields[key] = value
        elif key in {f.name for f in dataclasses.fields(MeshConfig)}:
            mesh[key] = value
        elif key == "per_chip":
            per_chip = value
        elif key == "tokens":
            tokens = value
        else:
            others[key] = value
    run = Run(
        model=TransformerConfig(**fields),
        task=stand_in_task(),
        lengths={"targets": tokens},
        batch_size=per_chip * place.chips,
        optimizer=AdamW(schedule=constant(rate=1e-4), weight_decay=0.1, clip_norm=1.0),
        mesh=MeshConfig(**mesh),
        **others,
    )
    return run, place


def figures(run, place, found: dict) -> dict:
    """The figures of one chip that are compared."""
    from t5x_lite.models.flops import train_flops

    memory, gib = found["memory"], 2**30
    lengths = {"decoder_target_tokens": run.lengths["targets"]}
    model_flops = train_flops(run.model, lengths, run.batch_size) / place.chips
    return {
        "fits": found["fits"],
        "compile_cpu_seconds": found["compile_cpu_seconds"],
        "peak_gib": round(memory.get("peak", memory["total"]) / gib, 3),
        "arguments_gib": round(memory["arguments"] / gib, 3),
        "temporary_gib": round(memory["temporary"] / gib, 3),
        "host_gib": round(memory.get("host", 0) / gib, 3),
        "sent_gb": round(sum(found["sent_bytes"].values()) / 1e9, 2),
        "sent_gb_by_kind": {k: round(v / 1e9, 2) for k, v in found["sent_bytes"].items()},
        "hbm_gb": round(found["hbm_bytes"] / 1e9, 1),
        "model_tflop": round(model_flops / 1e12, 2),  # attention in full, no causal discount
        "executed_tflop": {k: round(v / 1e12, 2) for k, v in found["matmul_flops"].items()},
        "kernels": found["kernels"],
        "loops": found["loops"],
        "windowed_loops": found["windowed_loops"],
    }


def compared(case: str) -> dict:
    peak, sent = MAXTEXT[case]
    return {"maxtext_peak_gib": peak, "maxtext_sent_gb": sent}


def literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def reader_of(path: str):
    spec = importlib.util.spec_from_file_location("reader", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--layers", type=int, help="another number of layers, to be quick")
    parser.add_argument("--topology", help="another topology")
    parser.add_argument("--reader", metavar="FILE", help="a script with stats(compiled)")
    parser.add_argument("--text", metavar="FILE", help="where to write the compiled program")
    parser.add_argument("--option", action="append", default=[], metavar="XLA_FLAG=VALUE")
    args = parser.parse_args()

    from t5x_lite.planning import topologies
    from t5x_lite.planning.compile import compile_step, examine, trace, versions

    changes = {k: literal(v) for k, _, v in (pair.partition("=") for pair in args.set)}
    options = {k: literal(v) for k, _, v in (pair.partition("=") for pair in args.option)}
    for case in args.case or CASES:
        run, place = build(case, changes, args.layers, args.topology)
        clock = time.monotonic()
        traced = trace(run, topologies.abstract_devices(place))
        found = {"case": case, "topology": place.name, "changes": changes}
        found |= {"trace_seconds": round(time.monotonic() - clock, 1), "versions": versions()}
        if args.reader:
            found |= reader_of(args.reader).stats(compile_step(traced, options))
        else:
            read = examine(traced, place, options=options, text_file=args.text)
            found |= figures(run, place, read)
            found |= {"layers": args.layers} if args.layers else compared(case)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
