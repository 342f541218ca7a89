"""`t5x_lite infer`: texts in, JSON lines out."""

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5x_lite import config
from t5x_lite.data.chat import ChatTemplate, check_messages
from t5x_lite.data.reading import task_reading, template_of
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.errors import UserError
from t5x_lite.evaluation.heads import OBJECTIVES
from t5x_lite.inference.decoding import Method, generate
from t5x_lite.inference.sampling import Greedy
from t5x_lite.inference.scoring import log_likelihood
from t5x_lite.inference.weights import compress
from t5x_lite.lines import check_whole, read_lines, split_lines
from t5x_lite.models.config import TransformerConfig
from t5x_lite.parallel import distributed
from t5x_lite.parallel.compile_cache import use_compile_cache
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import Rules, use_mesh
from t5x_lite.programs.embed import embed_records
from t5x_lite.programs.eval import checkpoint_paths
from t5x_lite.programs.heads import answer_records
from t5x_lite.programs.results_file import continued, fingerprint, shard, shard_name
from t5x_lite.programs.weights import open_weights
from t5x_lite.ranges import Count, Positive
from t5x_lite.training.setup import Setup, set_up
from t5x_lite.training.state import key_for

Record = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]
BATCH_SIZE = 8


def main(args: argparse.Namespace) -> int:
    use_compile_cache()
    distributed.initialize(args.coordinator_address, args.process_count, args.process_index)
    if bool(args.prompt) == bool(args.input):
        raise UserError("infer needs either --prompt TEXT (repeatable) or --input FILE.")
    if args.prompt:
        records = [{"input": text} for text in args.prompt]
        for text in args.prompt:
            check_whole(text, "--prompt")
    else:
        records = read_records(args.input)
    records = shard(records, args.shard)
    config.require("infer")
    [path] = checkpoint_paths(config.evaluate("infer.model_dir"), args.checkpoint)
    if not args.output:
        for result in config.call("infer", records=records, checkpoint=path):
            print(json.dumps(result, ensure_ascii=False), flush=True)
        return 0
    output = shard_name(args.output, args.shard)
    if args.shard and os.path.exists(output) and not args.overwrite:
        raise UserError(f"{output} exists already; give --overwrite or another name")
    key = fingerprint(records, path, config.config_text())
    with continued(output, key, _batch_size()) as (file, done):
        for result in config.call("infer", records=records, checkpoint=path, first=done):
            print(json.dumps(result, ensure_ascii=False), file=file, flush=True)
    again = f" ({done:,} of them by an earlier call)" if done else ""
    print(f"{len(records):,} records written to {output}{again}", file=sys.stderr)
    return 0


def _batch_size() -> int:
    try:
        return config.evaluate("infer.batch_size")
    except UserError:
        return BATCH_SIZE


def read_records(path: str) -> list[Record]:
    """Reads text lines, or JSON lines with an "input" (and perhaps a "target"); "-" is stdin.

    A record may have "messages" of a chat in the place of "input".

    Raises:
      UserError: no such file, invalid UTF-8 or JSON, a record without "input", or no record.
    """
    try:
        if path == "-":
            lines = split_lines(sys.stdin.buffer.read().decode("utf-8-sig"))
        else:
            lines = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read --input {path}: {error}.") from error
    is_json = next((line for line in lines if line.strip()), "").lstrip().startswith("{")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line) if is_json else {"input": line}
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number} is no JSON ({error}); line 1 was.") from error
        if isinstance(record, dict) and "messages" in record:
            try:
                check_messages(record["messages"])
            except UserError as error:
                raise UserError(f"{path}:{number}: {error}.") from error
        elif not isinstance(record, dict) or not isinstance(record.get("input"), str):
            raise UserError(f'{path}:{number} has no text under "input": found {line[:60]!r}.')
        if is_json and "\\u" in line:
            check_whole(json.dumps(record, ensure_ascii=False), f"{path}:{number}")
        records.append(record)
    if not records:
        raise UserError(f"{path} has no text in it: one prompt a line, or JSON lines with 'input'.")
    return records


def _check_answers(records: Sequence[Record]) -> None:
    """Refuses targets and choices that are no texts, before anything is computed."""
    for number, record in enumerate(records, 1):
        target, choices = record.get("target"), record.get("choices", [""])
        if target is not None and not isinstance(target, str):
            raise UserError(f'"target" of record {number} is {target!r:.60}, expected a text.')
        good = isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices)
        if not good:
            raise UserError(
                f'"choices" of record {number} is {choices!r:.60}, expected a list of one or '
                "more texts."
            )


def infer(
    *,
    model_dir: str,
    model: TransformerConfig,
    task: Task | Mixture,
    lengths: Mapping[str, Positive],
    records: Sequence[Record],
    mesh: MeshConfig | None = None,
    rules: Rules | None = None,
    batch_size: Positive = BATCH_SIZE,
    method: Method | None = None,
    max_new_tokens: Positive | None = None,
    weights: str = "float32",
    pooling: str = "mean",
    seed: Count = 0,
    accept_other_vocabulary: bool = False,
    checkpoint: str = "latest",
    first: int = 0,
) -> Iterator[Record]:
    """Yields each record with "prediction" and "score" (log-probability), best first if several.

    A record with a "target" gets "target_log_likelihood" too. Of one with "choices", a list of
    texts, the prediction is the most probable of them; "choice_scores" has all their
    log-probabilities. Both include the EOS (or the template's stop) that ends a text. Inputs are
    read as the weights were trained to read them (data/reading.py); longer ones than
    lengths["inputs"] are cut, and say so with "truncated": true. Of an encoder-only model, each
    with its "embedding" (see `embed_records`) or what its head says (see `answer_records`).

    Args:
      records: {"input": text, ...}; other keys are passed through. Of a task of conversations, the
        text is what a user says, or there are "messages" instead, that end with a user's.
      method: Greedy() (the default), Sample(...), BeamSearch(...) or Lookup(...).
      max_new_tokens: None: the length of the task's targets.
      pooling: how a text becomes a vector: that of the run's ContrastiveLoss.
      weights: how they are kept in memory: "float32", "bfloat16" or "int8".
      accept_other_vocabulary: use weights that were trained with another vocabulary, too.
      first: the first record that is still to do, a multiple of batch_size.
    """
    if model.architecture != "encoder_only":
        _check_answers(records)
    setup = set_up(model, task, lengths, batch_size, mesh, rules=rules, pack=False)
    [path] = checkpoint_paths(model_dir, checkpoint)
    setup, params = open_weights(setup, path, accept_other_vocabulary=accept_other_vocabulary)
    if setup.model.encoder_only:
        if isinstance(task.objective, OBJECTIVES):
            return answer_records(setup, params, records[first:])
        return embed_records(setup, params, records[first:], pooling)
    with use_mesh(setup.mesh, setup.rules):
        merged, params = setup.model.merged(params)
        setup = dataclasses.replace(setup, model=merged)
        params = compress(params, weights)
    new_tokens = max_new_tokens or setup.lengths["targets"]

    def results() -> Iterator[Record]:
        with use_mesh(setup.mesh, setup.rules):
            for start in range(first, len(records), batch_size):
                some = records[start : start + batch_size]
                rng = jax.random.fold_in(key_for(seed, "sampling"), start)
                yield from _complete(setup, params, some, method or Greedy(), new_tokens, rng)

    return results()


def _complete(
    setup: Setup, params: Any, records: Sequence[Record], method: Method, new_tokens: int, rng
) -> Iterator[Record]:
    vocabulary, reading = setup.task.vocabulary, setup.reading
    has_encoder = setup.model.config.has_encoder
    limit = setup.lengths.get("inputs", setup.lengths["targets"])
    template = template_of(setup.task)
    tokens = [_prompt(r, template, setup.task) for r in records]
    cut = [reading.inputs(x, vocabulary.eos_id, limit) for x in tokens]
    asked = [_messages(record) if template else None for record in records]
    longer = [len(x) + reading.inputs_eos > limit for x in tokens]
    chosen = _choices(setup, params, records, cut, asked)
    if len(chosen) == len(records):
        for i, record in enumerate(records):
            cut_off = {"truncated": True} if longer[i] else {}
            yield record | chosen[i] | cut_off
        return
    inputs = _pad(cut, setup.batch_size, limit if has_encoder else _round_up(cut, limit))
    if has_encoder:
        batch = {"encoder_input_tokens": setup.place({"x": inputs[setup.rows]})["x"]}
        prompts = None
    else:
        batch, prompts = {}, setup.place({"x": inputs[setup.rows]})["x"]
    decoded = generate(
        setup.model,
        params,
        batch,
        method=method,
        max_new_tokens=new_tokens,
        prompts=prompts,
        bidirectional_prompts=reading.bidirectional,
        rng=rng,
        eos_id=reading.end_ids(vocabulary) if template else vocabulary.eos_ids,
    )
    tokens, scores = np.asarray(decoded.tokens), np.asarray(decoded.scores)
    given = [i for i, record in enumerate(records) if isinstance(record.get("target"), str)]
    pairs = [(cut[i], records[i]["target"], asked[i]) for i in given]
    likelihoods = dict(zip(given, _likelihoods(setup, params, pairs), strict=True))
    for i, record in enumerate(records):
        answers = [
            (vocabulary.decode(row), float(x)) for row, x in zip(tokens[i], scores[i], strict=True)
        ]
        if template:
            answers = _until_stop(setup, params, answers, template, cut[i], asked[i], new_tokens)
        result = record | {"prediction": answers[0][0], "score": answers[0][1]}
        if len(answers) > 1:
            result["predictions"] = [{"text": text, "score": score} for text, score in answers]
        if longer[i]:
            result["truncated"] = True
        if i in likelihoods:
            result["target_log_likelihood"] = likelihoods[i]
        yield result | chosen.get(i, {})


def _until_stop(
    setup: Setup,
    params: Any,
    answers: list[tuple[str, float]],
    template: ChatTemplate,
    inputs: np.ndarray,
    asked: Messages | None,
    room: int,
) -> list[tuple[str, float]]:
    """Answers up to the template's stop, with the log-likelihood of what is left, best first.

    A stop that is a token ends decoding. One that the vocabulary spells doesn't: the score counts
    what was decoded behind it, too, so such an answer is scored again.
    """
    vocabulary, whole = setup.task.vocabulary, [text for text, _ in answers]
    stops = template.stop_texts(vocabulary)
    found = [(template.answer(text, vocabulary), score) for text, score in answers]
    again = [n for n, text in enumerate(whole) if any(stop in text for stop in stops)]
    for start in range(0, len(again), setup.batch_size):
        some = again[start : start + setup.batch_size]
        pairs = [(inputs, found[n][0], asked) for n in some]
        scores = _likelihoods(setup, params, pairs, room)
        for n, score in zip(some, scores, strict=True):
            found[n] = (found[n][0], score)
    return sorted(found, key=lambda pair: -pair[1]) if again else found


def _choices(
    setup: Setup,
    params: Any,
    records: Sequence[Record],
    inputs: list[np.ndarray],
    asked: Sequence[Messages | None],
) -> dict[int, Record]:
    """What the records with "choices" get, by their place."""
    pairs: list[tuple[int, str]] = []
    scores: list[float] = []
    for i, record in enumerate(records):
        pairs += [(i, choice) for choice in record.get("choices", [])]
    for start in range(0, len(pairs), setup.batch_size):
        some = [(inputs[i], text, asked[i]) for i, text in pairs[start : start + setup.batch_size]]
        scores += _likelihoods(setup, params, some)
    results: dict[int, Record] = {}
    for i in dict.fromkeys(i for i, _ in pairs):
        mine = [(score, c) for (j, c), score in zip(pairs, scores, strict=True) if j == i]
        best = max(mine, key=lambda pair: pair[0])
        results[i] = {
            "prediction": best[1],
            "score": best[0],
            "choice_scores": [score for score, _ in mine],
        }
    return results


def _prompt(record: Record, template: ChatTemplate | None, task: Task | Mixture) -> np.ndarray:
    if template is None and "messages" in record:
        raise UserError(f"infer got messages, and task {task.name} isn't one of conversations.")
    if template is None:
        return task.vocabulary.encode(record["input"])
    return task_reading(task, "decoder_only").chat(_messages(record), task.vocabulary)


def _messages(record: Record) -> Messages:
    return record.get("messages") or [{"role": "user", "content": record["input"]}]


def _likelihoods(
    setup: Setup,
    params: Any,
    pairs: Sequence[tuple[np.ndarray, str, Messages | None]],
    room: int = 0,
) -> list[float]:
    """Log-likelihoods of texts and what ends them, each behind its inputs (or messages).

    ``room``: tokens that a text may have, if they are more than lengths["targets"].
    """
    if not pairs:
        return []
    vocabulary, lengths = setup.task.vocabulary, setup.lengths
    most = max(room, lengths["targets"])
    sizes = {"inputs": lengths.get("inputs", lengths["targets"]), "targets": most}
    rows = []
    for inputs, text, messages in pairs:
        target = setup.reading.targets(text, vocabulary, messages)
        if len(target) > most:
            raise UserError(
                f"target of {len(target)} tokens ({text[:40]!r}...), but lengths['targets'] is "
                f"{most}: shorten it, or raise the length."
            )
        rows.append({"inputs": inputs, "targets": target})
    features = setup.reading.features(rows, sizes)
    batch = {
        name: _pad(list(values), setup.batch_size, values.shape[1])
        for name, values in features.items()
    }
    placed = setup.place({name: value[setup.rows] for name, value in batch.items()})
    values = np.asarray(log_likelihood(setup.model, params, placed))
    return values[: len(pairs)].tolist()


def _round_up(rows: Iterable[np.ndarray], limit: int) -> int:
    """A width for the longest row: a power of two, so that few shapes are compiled."""
    longest = max(1, *(len(row) for row in rows))
    return min(limit, 2 ** math.ceil(math.log2(longest)))


def _pad(rows: Sequence[np.ndarray], count: int, width: int) -> np.ndarray:
    out = np.zeros((count, width), np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
