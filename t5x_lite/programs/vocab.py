"""`t5x_lite vocab`: a SentencePiece vocabulary from text files or from a task's training text."""

import argparse
import math
import os
import shlex
import time
from collections.abc import Iterator
from typing import Any

from t5x_lite import config
from t5x_lite.data.sentencepiece_training import train_sentencepiece
from t5x_lite.data.source import Source
from t5x_lite.data.text_files import TextFiles
from t5x_lite.data.trained_vocabulary import TrainedVocabulary
from t5x_lite.data.vocabulary import SentencePieceVocabulary, Vocabulary
from t5x_lite.errors import UserError

TASK = "train.task"  # where a run's gin file names its task

MAX_SAMPLE_BYTES = 1_000_000


def main(args: argparse.Namespace) -> int:
    if bool(args.input) == bool(args.gin_file):
        raise UserError("vocab needs either --input=GLOB or --gin_file=FILE with a task")
    if args.max_bytes < 1:
        raise UserError(f"--max_bytes={args.max_bytes}: expected 1 or more")
    if args.input:
        # Whole files, so that line ends are learned too, but in parts that fit in memory.
        files = TextFiles(args.input, document="file", held_out=0.0, max_document_bytes=1 << 20)
        sources: list[tuple[Any, tuple]] = [(files, ())]
        kind = SentencePieceVocabulary.__name__
    else:
        task = read_task(args)
        sources = list(task_sources(task))
        kind = vocabulary_kind(task)
    start = time.monotonic()
    trained_on = [(source.split("train"), steps) for source, steps in sources]
    total = sum(source.num_bytes for source, _ in trained_on)
    documents = sum(len(source) for source, _ in trained_on)
    every = max(1, math.ceil(total / args.max_bytes))
    print(f"text: {documents:,} documents, {_size(total)}", end="")
    print(f", of which every {every}th document is used" if every > 1 else "")
    rate = 4 if args.model_type == "unigram" else 1
    print(f"training a {args.model_type} model: about {rate} s per MB on a laptop")
    vocabulary = train_sentencepiece(
        texts(trained_on, every),
        args.output,
        size=args.size,
        model_type=args.model_type,
        extra_ids=args.extra_ids,
        max_bytes=args.max_bytes,
        user_symbols=args.user_symbol,
    )
    seconds = time.monotonic() - start
    tokens, size = count_tokens(vocabulary, sources)
    print(f"vocabulary: {args.output}, {seconds:.1f} s")
    print(f"size: {vocabulary.size:,} ids, {vocabulary.num_sentinels} of them sentinels")
    print(f"fingerprint: {vocabulary.fingerprint}")
    if size:
        print(
            f"tokens per byte: {tokens / size:.4f} ({size / max(tokens, 1):.2f} bytes per token, "
            f"on {_size(size)} of text)"
        )
    print(f"next: {next_command(args, kind)}")
    return 0


def read_task(args: argparse.Namespace):
    """The config's task. The rest of a recipe (model, optimizer, ...) may be incomplete."""
    # The vocabulary to be made is the task's own, and isn't read before it is there.
    own = f"SentencePieceVocabulary.path={args.output!r}"
    config.parse(args.gin_file, [*args.gin_bindings, own], args.gin_search_paths, root=TASK)
    return config.evaluate(TASK)


def task_sources(task) -> Iterator[tuple[Source, tuple]]:
    """(source, preprocessors) of a task, or of each task of a mixture."""
    if callable(task) and not hasattr(task, "source"):  # bound without "()": @my/Task
        task = task()
    if hasattr(task, "tasks"):
        for part in task.tasks:
            yield from task_sources(part)
    else:
        yield task.source, tuple(task.preprocessors)


def texts(sources: list[tuple[Source, tuple]], every: int) -> Iterator[str]:
    """The texts of every `every`-th record: whichever of text, inputs, targets it has."""
    for source, preprocessors in sources:
        for i in range(0, len(source), every):
            record = source[i]
            for preprocess in preprocessors:
                try:
                    record = record and preprocess(record)  # None: the record is dropped
                except UserError as e:
                    raise UserError(f"{source.where(i)}: {e}") from e
            for key in ("text", "inputs", "targets"):
                if record and isinstance(record.get(key), str):
                    yield record[key]


def count_tokens(vocabulary: Vocabulary, sources: list[tuple[Source, tuple]]) -> tuple[int, int]:
    """(tokens, UTF-8 bytes) of a sample: of held-out text if there is any."""
    held_out = [(source.split("validation"), steps) for source, steps in sources]
    if not any(len(source) for source, _ in held_out):
        held_out = [(source.split("train"), steps) for source, steps in sources]
    total = sum(source.num_bytes for source, _ in held_out)
    tokens = size = 0
    for text in texts(held_out, max(1, math.ceil(total / MAX_SAMPLE_BYTES))):
        tokens += len(vocabulary.encode(text))
        size += len(text.encode(errors="replace"))
        if size >= MAX_SAMPLE_BYTES:
            break
    return tokens, size


def vocabulary_kind(task) -> str:
    """What reads the new file in the task's config: the class whose `path` it is."""
    while not hasattr(task, "source"):  # a mixture, whose `vocabulary` would be read; or no "()"
        task = task.tasks[0] if hasattr(task, "tasks") else task()
    own = isinstance(task.vocabulary, TrainedVocabulary)
    return (TrainedVocabulary if own else SentencePieceVocabulary).__name__


def next_command(args: argparse.Namespace, kind: str) -> str:
    """The command that trains with the new vocabulary."""
    words = [f"--gin_file={name}" for name in args.gin_file or ["FILE.gin"]]
    words += [f"--gin.{binding}" for binding in args.gin_bindings]
    words.append(f"--gin.{kind}.path={os.path.abspath(args.output)}")
    return shlex.join(["t5x_lite", "train", *words])


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
