"""`t5x_lite explain`: one text, token by token, as one or two sets of weights see it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_lite import config
from t5x_lite.data.features import model_features, pad_example
from t5x_lite.data.loader import eval_batches
from t5x_lite.data.objectives.chat import Chat
from t5x_lite.data.reading import template_of
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.errors import UserError
from t5x_lite.inference import inspection
from t5x_lite.inference.decoding import generate
from t5x_lite.lines import check_whole
from t5x_lite.parallel.compile_cache import use_compile_cache
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.programs.eval import checkpoint_paths
from t5x_lite.programs.weights import open_weights
from t5x_lite.report import explain_page
from t5x_lite.training.setup import Setup, set_up

Features = dict[str, np.ndarray]  # of one row: [1, length]
_STEP = 64  # lengths are padded to multiples of it, so that few shapes are compiled


def main(args: argparse.Namespace) -> int:
    use_compile_cache()
    if len(args.runs) > 2:
        raise UserError(f"explain takes one or two sets of weights, found {len(args.runs)}.")
    if args.target is not None and args.text is None:
        raise UserError("--target is what the model should answer to --text: give both.")
    for name in ("text", "target"):
        check_whole(getattr(args, name) or "", f"--{name}")
    setup = read_setup(args)
    if args.top < 1 or args.top > setup.model.config.vocab_size:
        raise UserError(f"--top={args.top}: expected 1 or more, at most the vocabulary.")
    result = explain(
        setup, args.runs, args.text, args.target, top=args.top, attention=bool(args.html)
    )
    attention = result.pop("attention", {})
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print_result(result)
    if args.html:
        page = explain_page.render(result, attention)
        Path(args.html).write_text(page, encoding="utf-8")
        print(f"page: {args.html} ({len(page) / 1000:,.0f} kB)", file=sys.stderr)
    return 0


def read_setup(args: argparse.Namespace) -> Setup:
    """Model, task and devices, of --gin_file or of the first run's own config.gin."""
    files = args.gin_file
    if not files:
        here = Path(args.runs[0])
        found = [p / "config.gin" for p in (here, *here.parents) if (p / "config.gin").is_file()]
        if not found:
            raise UserError(
                f"{here} is in no run's folder (no config.gin): give --gin_file, with its model "
                "and task."
            )
        files = [str(found[0])]
    config.parse(files, args.gin_bindings, args.gin_search_paths, "infer", trust=args.trust_config)
    given = {name: config.evaluate(f"infer.{name}") for name in ("model", "task", "lengths")}
    for name, value in given.items():
        given[name] = value() if isinstance(value, type) else value
    devices = {name: config.evaluate(f"infer.{name}") for name in ("mesh", "rules")}
    # As many rows, all the same, as the mesh wants: a model may need all devices for one text.
    return set_up(**given, batch_size=jax.device_count(), pack=False, **devices)


def _given(name: str) -> Any:
    """What the configuration gives to a parameter of `infer`; None if nothing."""
    try:
        return config.evaluate(f"infer.{name}")
    except UserError:
        return None


def explain(
    setup: Setup,
    weights: Sequence[str],
    text: str | None,
    target: str | None,
    *,
    top: int = 5,
    attention: bool = False,
) -> dict[str, Any]:
    """JSON values: "weights", "inputs" and "targets", lists of tokens in their order.

    A token has "text" and, if it belongs to a span, "span"; one that was predicted has "log_prob",
    "rank", "entropy" and "alternatives"; with two sets of weights, the same of the second under
    "other". With ``attention``, "attention": {kind: float32 [L, N, queries, keys]} of the first.
    """
    accept = bool(_given("accept_other_vocabulary"))
    paths = [_checkpoint(path) for path in weights]
    batch: Features | None = None
    result: dict[str, Any] = {"weights": [str(path) for path in paths]}
    with use_mesh(setup.mesh, setup.rules):
        for number, path in enumerate(paths):
            reads, params = open_weights(setup, path, accept_other_vocabulary=accept)
            if batch is None:
                setup = reads  # the example is that of the first weights
                batch = make_example(setup, params, text, target)
                if not {"decoder_target_tokens", "encoder_target_tokens"} & set(batch):
                    raise UserError(
                        f"{type(setup.task.objective).__name__} predicts no tokens, and explain is "
                        "about how likely tokens are."
                    )
                sizes = _used(batch)
                inputs = batch.get("encoder_input_tokens", np.zeros((1, 0), np.int32))[0]
                result["inputs"] = _tokens(setup, inputs[: sizes.get("encoder")], False)
                targets = inspection.targets_of(batch)[0]
                if "decoder_target_tokens" not in batch:  # between what is predicted, what is read
                    targets = np.where(inspection.counted(batch)[0], targets, inputs)
                targets = targets[: sizes.get("decoder", sizes.get("encoder"))]
                result["targets"] = _tokens(setup, targets, True)
            placed = setup.place({name: _rows(setup, x) for name, x in batch.items()})
            looks = inspection.look(setup.model, params, placed, top)
            looks = jax.tree.map(lambda x: np.asarray(x)[0], looks)
            for i in np.flatnonzero(inspection.counted(batch)[0]).tolist():
                token = result["targets"][i]
                token |= {"other": _seen(setup, looks, i)} if number else _seen(setup, looks, i)
            if attention and number == 0:
                found = inspection.attention(setup.model, params, placed)
                result["attention"] = {
                    kind: np.asarray(
                        w[:, 0, :, : sizes[_ASKS.get(kind, kind)], : sizes[_ASKED.get(kind, kind)]]
                    )
                    for kind, w in found.items()
                }
    return result | {"summary": summary(result["targets"], len(paths))}


# The sides of an attention whose name isn't that of its side.
_ASKS, _ASKED = {"cross": "decoder"}, {"cross": "encoder"}


def _checkpoint(path: str) -> str:
    """A run's newest checkpoint, or the path as it is."""
    return checkpoint_paths(path, "latest")[0] if (Path(path) / "run.json").is_file() else path


def _rows(setup: Setup, x: np.ndarray) -> np.ndarray:
    return np.repeat(x, len(setup.rows), axis=0)


# ---- the example


def make_example(setup: Setup, params: Any, text: str | None, target: str | None) -> Features:
    """The model features [1, length] to look at.

    No text: one of the held-out examples. Text and target: as inputs and targets (of a task of
    conversations, a question and its answer), or for a causal model one behind the other. A text
    alone: for a causal model, the target; with sentinels in it, or where examples are pairs, what
    the model itself answers is; otherwise the objective makes an example of it as in training.
    """
    task, vocabulary = setup.task, setup.task.vocabulary
    if isinstance(task, Mixture):
        task = task.leaves[0][0]
    features = task.objective.features
    if text is None:
        batch = next(eval_batches(task, lengths=setup.lengths, batch_size=1, max_batches=1,
                                  architecture=setup.architecture))  # fmt: skip
        return batch
    tokens, messages = vocabulary.encode(text), None
    if len(tokens) == 0:
        raise UserError(f"--text={text!r} has no tokens: give a text.")
    if template_of(task) is not None:
        messages = [{"role": "user", "content": text}]
        tokens = setup.reading.chat(messages, vocabulary)
        if target is None and isinstance(task.objective, Chat):
            raise UserError("explain needs --target, the answer, for a task of conversations.")
    pair = features == ("inputs", "targets") or isinstance(task.objective, Chat)
    if target is None and pair and _is_question(setup, task, tokens):
        if not setup.model.config.has_encoder:
            raise UserError("explain needs --target for a decoder-only model with pairs.")
        inputs = setup.reading.inputs(tokens, vocabulary.eos_id, setup.lengths["inputs"])
        target_ids = _answer(setup, params, inputs)
    elif target is not None and pair:
        limit = setup.lengths.get("inputs", setup.lengths["targets"])
        inputs = setup.reading.inputs(tokens, vocabulary.eos_id, limit)
        target_ids = setup.reading.targets(target, vocabulary, messages)
    elif target is not None and features != ("targets",):
        raise UserError(f"--target: {type(task.objective).__name__} has no targets to be given.")
    else:
        if target is not None:
            tokens = np.append(tokens, vocabulary.encode(target))
        return _by_objective(setup, task, tokens)
    example = {"inputs": inputs, "targets": target_ids[: setup.lengths["targets"]]}
    return _features(setup, example)


def _is_question(setup: Setup, task: Task, tokens: np.ndarray) -> bool:
    vocabulary = setup.task.vocabulary
    sentinels = bool((tokens >= vocabulary.size - vocabulary.num_sentinels).any())
    return sentinels or task.objective.segment_length(setup.lengths) is None


def _by_objective(setup: Setup, task: Task, tokens: np.ndarray) -> Features:
    length = task.objective.segment_length(setup.lengths)
    example = task.example(tokens[:length], np.random.default_rng(0), setup.lengths)
    return _features(setup, example)


def _features(setup: Setup, example: dict[str, np.ndarray]) -> Features:
    widths = {name: _width(setup, name, len(example[name])) for name in example}
    if setup.model.encoder_only:
        found = model_features(pad_example(example, widths), setup.architecture, False)
        return {name: value[None] for name, value in found.items()}
    return setup.reading.features([example], widths)


def _width(setup: Setup, name: str, length: int) -> int:
    limit = setup.lengths.get(name, setup.lengths.get("inputs", length))
    return max(length, min(limit, -(-length // _STEP) * _STEP))


def _answer(setup: Setup, params: Any, inputs: np.ndarray) -> np.ndarray:
    inputs = np.pad(inputs, (0, _width(setup, "inputs", len(inputs)) - len(inputs)))
    placed = setup.place({"encoder_input_tokens": _rows(setup, inputs[None])})
    vocabulary = setup.task.vocabulary
    decoded = generate(setup.model, params, placed, max_new_tokens=setup.lengths["targets"],
                       eos_id=vocabulary.eos_ids)  # fmt: skip
    ids = np.asarray(decoded.tokens)[0, 0]
    ends = np.flatnonzero(np.isin(ids, vocabulary.eos_ids))
    ids = ids[: ends[0] + 1] if len(ends) else ids[ids > 0]
    return ids if len(ids) else np.array([vocabulary.eos_id], np.int32)


def _used(batch: Features) -> dict[str, int]:
    """How many places of each side, "encoder" and "decoder", come before padding at the end."""
    names = {"encoder": "encoder_input_tokens", "decoder": "decoder_target_tokens"}
    places = {side: np.flatnonzero(batch[name][0]) for side, name in names.items() if name in batch}
    return {side: int(found[-1]) + 1 if len(found) else 1 for side, found in places.items()}


# ---- what is told


def _tokens(setup: Setup, ids: np.ndarray, answers: bool) -> list[dict[str, Any]]:
    """Tokens with their text; to a span belong its sentinel and, in ``answers``, what follows."""
    vocabulary, found, span = setup.task.vocabulary, [], None
    pieces = Pieces(vocabulary)
    for i in ids.tolist():
        sentinel = vocabulary.size - 1 - i
        if 0 <= sentinel < vocabulary.num_sentinels:
            span = sentinel
        elif i in (*vocabulary.eos_ids, 0) or not answers:
            span = None
        token: dict[str, Any] = {"id": i, "text": pieces[i]}
        if span is not None:
            token["span"] = span
        found.append(token)
    return found


class Pieces:
    """The text of single tokens, with the space that a token begins with."""

    def __init__(self, vocabulary: Any):
        self._vocabulary = vocabulary
        self._before = vocabulary.encode("a")[-1:].tolist()
        self._start = len(vocabulary.decode(self._before))

    def __getitem__(self, i: int) -> str:
        special = {self._vocabulary.eos_id: "</s>", self._vocabulary.pad_id: "<pad>"}
        return special.get(i) or self._vocabulary.decode([*self._before, i])[self._start :]


def _seen(setup: Setup, looks: inspection.Looks, i: int) -> dict[str, Any]:
    pieces = Pieces(setup.task.vocabulary)
    likeliest = zip(looks.top_ids[i].tolist(), looks.top_log_probs[i].tolist(), strict=True)
    return {
        "log_prob": round(float(looks.log_probs[i]), 5),
        "rank": int(looks.ranks[i]),
        "entropy": round(float(looks.entropies[i]), 5),
        "alternatives": [{"id": j, "text": pieces[j], "log_prob": round(p, 5)}
                         for j, p in likeliest],
    }  # fmt: skip


def summary(targets: Sequence[dict[str, Any]], weights: int) -> dict[str, Any]:
    """Of the predicted tokens: how many, their mean log-probability, how many came first."""
    seen = [[t for t in targets if "log_prob" in t], [t["other"] for t in targets if "other" in t]]
    found = []
    for tokens in seen[:weights]:
        values = [t["log_prob"] for t in tokens]
        mean = sum(values) / max(1, len(values))
        found.append({"tokens": len(values), "log_likelihood": round(sum(values), 4),
                      "mean_log_prob": round(mean, 4), "perplexity": round(float(np.exp(-mean)), 4),
                      "first": sum(t["rank"] == 0 for t in tokens)})  # fmt: skip
    return {"weights": found}


def print_result(result: dict[str, Any]) -> None:
    """The text with its likelihoods as colours, a line on each set of weights, hard tokens."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    tokens = result["targets"]
    if result["inputs"]:
        console.print(Text.assemble(("input: ", "bold"), _heat(result["inputs"])))
    console.print(Text.assemble(("target: ", "bold"), _heat(tokens)))
    if console.is_terminal and not console.no_color:
        console.print("[dim]red: unlikely to the model[/dim]")
    for path, row in zip(result["weights"], result["summary"]["weights"], strict=True):
        console.print(
            f"{path}: {row['tokens']} tokens, log-likelihood {row['log_likelihood']:.4f}, mean "
            f"{row['mean_log_prob']:.4f}, perplexity {row['perplexity']:.5g}; {row['first']} of "
            "them were its first choice",
            markup=False,
            soft_wrap=True,
        )
    told = [t for t in tokens if "log_prob" in t]
    if len(result["weights"]) == 2:
        title = "the largest changes, from the first weights to the second"
        told.sort(key=lambda t: -abs(t["other"]["log_prob"] - t["log_prob"]))
    else:
        title = "the least likely tokens"
        told.sort(key=lambda t: t["log_prob"])
    console.print(f"\n{title}:")
    for t in told[:8]:
        others = "  ".join(f"{a['text']!r} {a['log_prob']:.2f}" for a in t["alternatives"][:3])
        change = f" -> {t['other']['log_prob']:.2f}" if "other" in t else ""
        print(f"  {t['text']!r:<16} {t['log_prob']:.2f}{change}, rank {t['rank']}; {others}")


def _heat(tokens: Sequence[dict[str, Any]]) -> Any:
    from rich.text import Text

    spans, found = ("cyan", "magenta", "yellow", "green", "blue"), Text()
    for token in tokens:
        style = ""
        if "log_prob" in token:
            style = f"on rgb({min(200, int(-28 * token['log_prob']))},0,0)"
        elif "span" in token:
            style = spans[token["span"] % len(spans)]
        shown = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1]
                        for c in token["text"])  # fmt: skip
        found.append(shown, style)
    return found
