"""Tiny runs, and the figures that each way into the package gives of one, as plain values.

A run is trained once, by the command line; everything else reads its folder.
"""

import asyncio
import contextlib
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import t5x_lite as tl
from t5x_lite import cli, config
from t5x_lite.evaluation.harness import Judge, Pair
from t5x_lite.interop.origin import origin_of
from t5x_lite.models.model import Model
from t5x_lite.programs.serve import build
from t5x_lite.serve.requests import Asked
from t5x_lite.serve.settings import ServeConfig

COMMON = """
include "runs/base.gin"
include "optimizers/adamw.gin"
MODEL = @TransformerConfig()
TransformerConfig.vocab_size = 384
TransformerConfig.embed_dim = 16
TransformerConfig.num_heads = 2
TransformerConfig.head_dim = 8
TransformerConfig.mlp_dim = 32
TransformerConfig.dtype = "float32"
TransformerConfig.init_std = 0.4
TASK = @Task()
Task.name = "small"
Task.vocabulary = @ByteVocabulary()
BATCH_SIZE = 8
TOTAL_STEPS = 3
PEAK_RATE = 0.01
WARMUP_STEPS = 1
train.eval_batch_count = None
train.num_samples = 2
train.checkpoint = @CheckpointConfig()
evaluate.num_samples = 0
ChatTemplate.name = "plain"
"""
ARCHITECTURES = {
    "encoder_decoder": """
TransformerConfig.num_encoder_layers = 1
TransformerConfig.num_decoder_layers = 1
""",
    "decoder_only": """
TransformerConfig.architecture = "decoder_only"
TransformerConfig.positions = "rope"
TransformerConfig.num_encoder_layers = 0
TransformerConfig.num_decoder_layers = 2
""",
    "encoder_only": """
TransformerConfig.architecture = "encoder_only"
TransformerConfig.num_encoder_layers = 1
TransformerConfig.num_decoder_layers = 0
""",
}
WORDS = ["alpha", "bee", "sea", "delta", "echo", "foxtrot", "gulf", "hat", "in", "jar", "kilo"]
# The last input is longer than the inputs of LENGTHS: it is cut, everywhere alike.
PAIRS = [{"inputs": f"say {word} {n}", "targets": word[::-1]} for n, word in enumerate(WORDS)] + [
    {"inputs": "the long one " + " ".join(WORDS), "targets": "cut"}
]
TEXTS = [{"text": " ".join(WORDS[n:] + WORDS[:n])[: 20 + 3 * n]} for n in range(len(WORDS))]
CHATS = [
    {"messages": [{"role": "user", "content": pair["inputs"]},
                  {"role": "assistant", "content": pair["targets"]}]}
    for pair in PAIRS[:-1]
]  # fmt: skip


@dataclasses.dataclass
class Run:
    """A trained run. `figures`: what was read of it, by the way into the package."""

    folder: Path
    architecture: str
    objective: str

    @property
    def gin(self) -> str:
        return str(self.folder / "config.gin")


def make(
    folder: Path, architecture: str, objective: str, records: list[dict], more: str = ""
) -> Run:
    """Trains a run on records, which are its held-out data, too."""
    file, held_out = folder / "data.jsonl", folder / "held_out.jsonl"
    for path in (file, held_out):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = "conversations" if "messages" in records[0] else "task_data"
    text = f"""{COMMON}{ARCHITECTURES[architecture]}
Task.objective = @{objective}()
Task.source = @{source}()
{source}.files = "{file}"
{source}.validation_files = "{held_out}"
MODEL_DIR = "{folder}/run"
{more}
"""
    (folder / "run.gin").write_text(text)
    command("train", f"--gin_file={folder / 'run.gin'}")
    return Run(folder / "run", architecture, objective)


def command(*arguments: str) -> str:
    """What a command prints; its configuration is gone afterwards."""
    said = io.StringIO()
    with config.fresh(), contextlib.redirect_stdout(said):
        assert cli.main(list(arguments)) == 0, said.getvalue()
    return said.getvalue()


# ------------------------------------------------------------------------------- the ways in


def trained(run: Run) -> dict[str, float]:
    """The last evaluation of training, {"loss", "accuracy", ...}."""
    text = (run.folder / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.strip().split("\n")]
    found = [line for line in lines if "eval/loss" in line][-1]
    return {k.removeprefix("eval/"): v for k, v in found.items() if k.startswith("eval/")}


def shown_samples(run: Run) -> list[dict[str, str]]:
    """The samples at the end of training."""
    text = (run.folder / "metrics.jsonl").read_text()
    found: dict[str, str] = {}
    for line in text.strip().split("\n"):
        found |= {k: v for k, v in json.loads(line).items() if k.startswith("sample_")}
    numbers = sorted({name.partition("/")[0] for name in found})
    return [
        {name: found[f"{number}/{name}"] for name in ("input", "target", "prediction")}
        for number in numbers
    ]


def reported(run: Run) -> dict[str, float]:
    """The latest numbers that `report --json` shows."""
    [found] = json.loads(command("report", str(run.folder), "--json"))["runs"].values()
    return found["last"]


def evaluated(run: Run, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`eval`: the figures, and the predictions where the task has metrics."""
    command("eval", f"--gin_file={run.gin}", *more)
    [*_, line] = (run.folder / "eval.jsonl").read_text().strip().split("\n")
    rows = [
        json.loads(row)
        for file in sorted(run.folder.glob("eval/validation/*.predictions.jsonl"))
        for row in file.read_text().strip().split("\n")
        if row
    ]
    return json.loads(line), rows


def inferred(run: Run, records: list[dict], *more: str) -> list[dict[str, Any]]:
    """`infer` on records with an input (or messages) and perhaps a target."""
    file = run.folder / "in.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    said = command("infer", f"--gin_file={run.gin}", f"--input={file}", *more)
    return [json.loads(line) for line in said.strip().split("\n")]


def explained(run: Run, *arguments: str) -> list[dict[str, Any]]:
    """`explain`: the target's tokens."""
    said = command("explain", str(run.folder), "--json", *arguments)
    return json.loads(said)["targets"]


def judge(run: Run) -> Judge:
    """The evaluation harness's."""
    model, params, vocabulary = tl.from_pretrained(run.folder)
    reading = origin_of(run.folder, run.architecture, model.config.vocab_size).reading
    return Judge(model, params, vocabulary, 4, 128, reading)


def judged(judge: Judge, given: str, scored: list[int]) -> float:
    """Log-likelihood of token ids behind a text."""
    [(value, _)] = judge.score([Pair(judge.encode(given), scored)])
    return value


def served(run: Run, asked: list[str | list[dict]]) -> list[tuple[str, float]]:
    """(text, sum of its tokens' log-probabilities) of greedy answers to prompts or messages."""
    with config.fresh():
        config.parse([run.gin], ["ServeConfig.slots=2"], root="infer")
        _, service = build("latest", ServeConfig())

        async def answer(one: str | list[dict]) -> tuple[str, float]:
            chat = not isinstance(one, str)
            request = Asked(
                prompts=[] if chat else [one], messages=one if chat else None, max_tokens=None,
                temperature=0.0, top_k=0, top_p=1.0, n=1, seed=0, stop=(), stream=False,
                stream_usage=False, echo=False, log_probs=0,
            )  # fmt: skip
            with service.prepare(request) as found:
                [piece] = await found.whole()
            return piece.text, sum(token.log_prob for token in piece.tokens)

        try:
            return [asyncio.run(answer(one)) for one in asked]
        finally:
            service.close()


# --------------------------------------------------------------------- without the package's help


def by_hand(
    model: Model, params: Any, encoder: list[int], decoder: list[int], start: int, prefix: int = 0
) -> float:
    """Log-likelihood of decoder[start:], of logits that one plain call of the model gives.

    encoder: token ids, [] of a decoder-only model. decoder: ids without the start token, of which
    the first `prefix`, with the start token, see each other in both directions.
    """
    batch = {
        "decoder_input_tokens": jnp.array([[0, *decoder[:-1]]]),
        "decoder_target_tokens": jnp.array([decoder]),
    }
    if encoder:
        batch["encoder_input_tokens"] = jnp.array([encoder])
    if prefix:
        seen = np.arange(len(decoder)) <= prefix
        batch["decoder_causal_attention"] = jnp.array([seen.astype(np.int32)])
    logits = np.asarray(jax.jit(model.apply)(params, batch)[0], np.float64)[0]
    logs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logs -= logits.max(-1, keepdims=True)
    return float(sum(logs[place, decoder[place]] for place in range(start, len(decoder))))


def encode(text: str) -> list[int]:
    """Ids of a ByteVocabulary."""
    return [byte + 3 for byte in text.encode()]
