"""How much of its time a training loop waits for saving: a 250M-parameter state every 50 steps.

    python benchmarks/checkpoint_stall.py --json

T5 1.1 base with AdamW (3 GB of state), with a batch so small that a step is as short as can be,
which is the hardest case; the same loop once without saving and once with it, in one process. On a
real accelerator a step of a real batch takes its place: --batch and --inputs.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402

import t5x_lite as tl
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.training.checkpoints import CheckpointConfig, Checkpoints
from t5x_lite.training.schedules import constant

BASE = dict(embed_dim=768, num_heads=12, head_dim=64, mlp_dim=2048,
            num_encoder_layers=12, num_decoder_layers=12)  # fmt: skip
SMALL = dict(embed_dim=64, num_heads=2, head_dim=32, mlp_dim=128,
             num_encoder_layers=2, num_decoder_layers=2)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help="of each of the two loops")
    parser.add_argument("--period", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--inputs", type=int, default=32)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--folder", help="on the disk to measure (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    config = tl.TransformerConfig(vocab_size=32128, **(SMALL if args.small else BASE))
    source = tl.InMemory([{"text": f"sentence {i} of some text " * 9} for i in range(50)])
    task = tl.Task(name="text", source=source, objective=tl.SpanCorruption(),
                   vocabulary=tl.ByteVocabulary())  # fmt: skip
    lengths = {"inputs": args.inputs, "targets": max(16, args.inputs // 4)}
    setup = tl.set_up(config, task, lengths, args.batch)
    optimizer = tl.AdamW(schedule=constant(rate=1e-5))
    transform = optimizer.build(setup.model.abstract_params(), setup.model.logical_axes())
    abstract = tl.abstract_state(setup.model, transform, setup.mesh, setup.rules)
    state = tl.init_state(setup.model, transform, abstract, 0)
    step = jax.jit(
        tl.make_train_step(setup.model, transform, optimizer.schedule),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda x: x.sharding, abstract), None),
    )
    loader = tl.BatchLoader(task, lengths=lengths, batch_size=args.batch, seed=0,
                            architecture=config.architecture)  # fmt: skip
    batch = setup.place(next(loader).features)
    folder = tempfile.mkdtemp(prefix="stall_", dir=args.folder)
    checkpoints = Checkpoints(folder, CheckpointConfig(period=args.period, keep_latest=1))
    number = 0

    def loop(saving: bool) -> tuple[float, list[float]]:
        """Seconds in all, and those of each save that the loop waited for."""
        nonlocal state, number
        waits, began = [], time.monotonic()
        for _ in range(args.steps):
            state, metrics = step(state, batch)
            number += 1
            if saving and number % args.period == 0:
                jax.block_until_ready(metrics)  # what the device still does isn't the save's
                started = time.monotonic()
                checkpoints.save(number, state.to_dict(), data_position=None, description={})
                waits.append(time.monotonic() - started)
        jax.block_until_ready(state)
        return time.monotonic() - began, waits

    with use_mesh(setup.mesh, setup.rules):
        for _ in range(2):  # compiles, and warms up
            state, _ = step(state, batch)
        number = args.period - 1
        state, _ = step(state, batch)
        number += 1
        checkpoints.save(number, state.to_dict(), data_position=None, description={})
        started = time.monotonic()
        checkpoints.wait()
        write = time.monotonic() - started
        without, _ = loop(saving=False)
        with_saving, waits = loop(saving=True)
        checkpoints.close()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    report = {
        "device": jax.devices()[0].device_kind,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "state_gigabytes": round(size / 1e9, 3),
        "steps": args.steps,
        "period": args.period,
        "seconds_per_step": round(without / args.steps, 3),
        "seconds_without_saving": round(without, 2),
        "seconds_with_saving": round(with_saving, 2),
        "saves": len(waits),
        "seconds_waited_at_each": [round(w, 3) for w in waits],
        "share_of_time_waited": round(sum(waits) / with_saving, 4),
        "slowdown": round(with_saving / without - 1, 4),
        "seconds_of_a_write_in_the_background": round(write, 2),
    }
    shutil.rmtree(folder)
    print(json.dumps(report, indent=1) if args.json else report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
