"""Each model family pretrained for a few hundred steps on Python's own library: held-out loss.

  python benchmarks/families.py --folder=runs/families --json=families.json
  python benchmarks/families.py --folder=F --families=bert,xlnet --steps=20   # does it run?

Small shapes (128 wide, 4 layers in all), 16 rows of about 128 tokens, one vocabulary of 4,096
pieces, AdamW. "unigram" is the loss of the best model without context on the same targets. Losses
of different objectives can't be compared: each family is only compared with its own start. A family
whose run is finished in the folder isn't trained again.
"""

import argparse
import json
from pathlib import Path

from command import report, t5x_lite

T5 = {"OBJECTIVE": "@SpanCorruption()", "LENGTHS": '{"inputs": 128, "targets": 29}'}
LM = {"OBJECTIVE": "@CausalLM()", "LENGTHS": '{"targets": 128}'}
HEADS = {"num_heads": 2, "head_dim": 64}
ENCODER_DECODER = {"num_encoder_layers": 2, "num_decoder_layers": 2, **HEADS}
DECODER = {"num_decoder_layers": 4, **HEADS}
ENCODER = {"num_encoder_layers": 4, **HEADS}
EXPERTS = {"num_experts": 4, "mlp_dim": 256}
# name: (model's gin file, macros, fields of the model)
FAMILIES = {
    "t5_1_0": ("t5_1_0.gin", T5, ENCODER_DECODER),
    "t5_1_1": ("t5_1_1.gin", T5, ENCODER_DECODER),
    "umt5": ("t5_1_1.gin", T5, {**ENCODER_DECODER, "relative_bias_per_layer": True}),
    "ul2": (
        "t5_1_1.gin",
        {"OBJECTIVE": "@UL2()", "LENGTHS": '{"inputs": 128, "targets": 85}'},
        ENCODER_DECODER,
    ),
    "llama": ("lm.gin", LM, {**DECODER, "num_kv_heads": 1}),
    "qwen3": ("lm.gin", LM, {**DECODER, "num_kv_heads": 1, "qk_norm": True}),
    "gpt2": ("gpt2.gin", LM, DECODER),
    "gemma2": ("gemma2.gin", LM, {**DECODER, "attention_window": 32}),
    "gemma3": ("gemma3.gin", LM, {**DECODER, "attention_window": 32, "full_attention_every": 2}),
    "mixtral": ("lm.gin", LM, {**DECODER, **EXPERTS}),
    "bert": (
        "bert.gin",
        {
            "OBJECTIVE": "@NextSentence()",
            "LENGTHS": '{"inputs": 128, "labels": 128, "types": 128, "pair_label": 1}',
            "PEAK_RATE": "0.001",  # norms behind the layers, and a seventh of the labels
        },
        ENCODER,
    ),
    "xlnet": (
        "xlnet.gin",
        {
            "OBJECTIVE": "@PermutationLM()",
            "LENGTHS": '{"inputs": 128, "labels": 128, "order": 128}',
        },
        ENCODER,
    ),
}


def gin_text(name: str, folder: Path, steps: int) -> str:
    model, macros, fields = FAMILIES[name]
    fields = {"vocab_size": 4096, "embed_dim": 128, "mlp_dim": 384, "dropout_rate": 0.0} | fields
    bindings = "\n".join(f"TransformerConfig.{key} = {value!r}" for key, value in fields.items())
    chosen = "\n".join(f"{key} = {value}" for key, value in macros.items())
    return f"""include "runs/base.gin"
include "models/{model}"
include "tasks/python_library_lm.gin"
include "optimizers/adamw.gin"
Task.objective = %OBJECTIVE
MODEL_DIR = "{folder / name}"
VOCABULARY_FILE = "{folder / "python_library.4k.model"}"
{bindings}
BATCH_SIZE = 16
TOTAL_STEPS = {steps}
PEAK_RATE = 0.003
WARMUP_STEPS = {max(1, steps // 10)}
train.eval_period = {steps}
train.eval_batch_count = 20
train.num_samples = 0
{chosen}
"""


def train(name: str, folder: Path, steps: int) -> dict:
    """The family's row: parameters, held-out loss at both ends, unigram loss, tokens a second."""
    recipe = folder / f"{name}.gin"
    recipe.write_text(gin_text(name, folder, steps))
    t5x_lite("train", f"--gin_file={recipe}")
    summary = json.loads((folder / name / "summary.json").read_text())
    return {
        "family": name,
        "start": summary["first"]["loss"],
        "end": summary["last"]["loss"],
        "unigram": summary["unigram_loss"],
        "accuracy": summary["last"]["accuracy"],
        "steps": summary["step"],
        "tokens_per_second": summary["tokens_per_second"],
    }


def table(rows: list[dict]) -> str:
    lines = ["| family | start | end | unigram | accuracy |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['family']} | {row['start']:.3f} | {row['end']:.3f} | "
            f"{row['unigram']:.3f} | {row['accuracy']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "python_library.4k.model"
    if not vocabulary.exists():
        t5x_lite("vocab", "--gin_file=recipes/quickstart.gin", f"--output={vocabulary}",
                 "--size=4096", "--model_type=bpe")  # fmt: skip
    names = args.families.split(",")
    report((train(name, folder, args.steps) for name in names), table, args.json)


if __name__ == "__main__":
    main()
