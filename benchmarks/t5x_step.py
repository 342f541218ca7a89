"""A side of step.py: the same work by T5X's model, from a checkout of T5X; prints JSON.

Of T5X only `examples/t5/network.py` and `layers.py` are read, which need flax alone; the loss and
AdamW are optax's. What T5X's own trainer adds isn't measured.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import types
from pathlib import Path

import step as benchmark


def load_network(checkout: Path):
    """T5X's module network.py, without running the packages' __init__.py around it."""
    folder = checkout
    for name in ("t5x", "t5x.examples", "t5x.examples.t5"):
        folder = folder / name.rpartition(".")[2]
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    if not (folder / "network.py").is_file():
        sys.exit(f"{folder / 'network.py'} isn't there: --t5x is the folder of a checkout of T5X.")
    return importlib.import_module("t5x.examples.t5.network")


def build(network, tiny: bool):
    """T5X's Transformer of step.py's workload "t5", and the batch."""
    config, rows, lengths = benchmark.workload("t5", tiny)
    wanted = {
        "vocab_size": config.vocab_size, "emb_dim": config.embed_dim, "dtype": "float32",
        "num_heads": config.num_heads, "head_dim": config.head_dim, "mlp_dim": config.mlp_dim,
        "num_encoder_layers": config.num_encoder_layers, "dropout_rate": 0.0,
        "num_decoder_layers": config.num_decoder_layers, "logits_via_embedding": False,
        "mlp_activations": ("gelu", "linear"),
    }  # fmt: skip
    missing = set(wanted) - {field.name for field in dataclasses.fields(network.T5Config)}
    assert not missing, f"T5X's T5Config has no {missing}"
    batch = benchmark.features(lengths, rows, config.vocab_size)
    return network.Transformer(config=network.T5Config(**wanted)), batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--t5x", type=Path, required=True, help="a checkout of T5X")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()

    import jax
    import optax

    model, batch = build(load_network(args.t5x), args.tiny)
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    inputs = jax.device_put([batch[name] for name in names])
    optimizer = optax.adamw(1e-4)

    def loss(params):
        logits = model.apply({"params": params}, *inputs, enable_dropout=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, inputs[-1]).mean()

    def step(state, _):
        params, moments = state
        value, gradients = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), {"loss": value}

    @jax.jit
    def init():
        params = model.init(jax.random.key(0), *inputs, enable_dropout=False)["params"]
        return params, optimizer.init(params)

    step = jax.jit(step, donate_argnums=0)
    print(json.dumps(benchmark.measured(step, init(), None, args.steps, lambda s: s[0])))


if __name__ == "__main__":
    main()
