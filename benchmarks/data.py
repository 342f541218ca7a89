"""How fast batches are made: tokens per processor-second, of one process.

  python benchmarks/data.py                                 # all, as a table and data.json
  python benchmarks/data.py --seqio=SEQIO_ENV/bin/python    # with seqio on the same files, A B A B
  python benchmarks/data.py --memory                        # 10 million synthetic examples

The text is Python's own library, a document a line, cut to about 2 kB; the vocabulary is trained on
it. A token is one that is not padding, of inputs and targets. Processor seconds count all threads,
so other work on the machine changes them less than it does the time on the clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHAPES = {"span 512/114": {"inputs": 512, "targets": 114}, "lm 2048": {"targets": 2048}}
VOCABULARY_SIZE, BATCH_SIZE = 8100, 64


def prepare(folder: Path) -> None:
    """corpus/*.txt, 4 files with a document a line; vocabulary.model without sentinels."""
    from t5x_lite.data.sentencepiece_training import train_sentencepiece
    from t5x_lite.data.sources import PythonLibrary
    from t5x_lite.data.text_files import TextFiles

    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for record in PythonLibrary(held_out=0.0):
        text = " ".join(record["text"].split())
        lines += [text[i : i + 2000] for i in range(0, len(text), 2000)]
    for part in range(4):
        path = folder / "corpus" / f"{part}.txt"
        path.write_text("\n".join(lines[part::4]) + "\n", encoding="utf-8", errors="replace")
    model = folder / "vocabulary.model"
    if not model.exists():
        texts = (r["text"] for r in TextFiles(str(folder / "corpus" / "0.txt")))
        train_sentencepiece(texts, model, VOCABULARY_SIZE - 100, extra_ids=0, max_bytes=3_000_000,
                            lossless=False)  # fmt: skip


def make_task(folder: Path, shape: str, cached: bool):
    from t5x_lite.data.objectives.lm import CausalLM
    from t5x_lite.data.objectives.span import SpanCorruption
    from t5x_lite.data.tasks import Task
    from t5x_lite.data.text_files import TextFiles
    from t5x_lite.data.token_cache import CachedTokens, write_cache
    from t5x_lite.data.vocabulary import SentencePieceVocabulary

    source = TextFiles(str(folder / "corpus" / "*.txt"))
    objective = SpanCorruption() if shape.startswith("span") else CausalLM()
    vocabulary = SentencePieceVocabulary(folder / "vocabulary.model", extra_ids=100)
    task = Task("benchmark", source, objective, vocabulary)
    if not cached:
        return task
    write_cache(task, folder / "cache", say=lambda line: None)
    return Task("benchmark", CachedTokens(folder / "cache", source), objective, vocabulary)


def measure(folder: Path, shape: str, cached: bool, seconds: float, workers: int = 0) -> dict:
    """Tokens, processor seconds and seconds of making batches, after the first."""
    from t5x_lite.data.loader import BatchLoader

    architecture = "encoder_decoder" if shape.startswith("span") else "decoder_only"
    loader = BatchLoader(
        make_task(folder, shape, cached), lengths=SHAPES[shape], batch_size=BATCH_SIZE, seed=0,
        architecture=architecture, num_workers=workers,
    )  # fmt: skip
    next(loader)
    tokens, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < seconds:
        features = next(loader).features
        for name in ("encoder_input_tokens", "decoder_target_tokens"):
            tokens += int((features[name] != 0).sum()) if name in features else 0
    result = {
        "tokens": tokens,
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - wall,
    }
    loader.close()
    return result


def measure_memory(examples: int) -> dict:
    """Resident memory after a tenth and after all of so many examples of 64 tokens."""
    import numpy as np
    import psutil

    from t5x_lite.data.loader import BatchLoader
    from t5x_lite.data.objectives.lm import TextToText
    from t5x_lite.data.sources import FromFunction
    from t5x_lite.data.tasks import Task
    from t5x_lite.data.vocabulary import ByteVocabulary

    class Numbers(ByteVocabulary):
        """Ids without any text work: it is the pipeline's memory that is measured."""

        def encode(self, text):
            return np.full(8, 5, np.int32)

    source = FromFunction(lambda i: {"inputs": "", "targets": ""}, length=examples)
    task = Task("synthetic", source, TextToText(), Numbers())
    loader = BatchLoader(
        task, lengths={"inputs": 512, "targets": 512}, batch_size=256, seed=0,
        architecture="encoder_decoder",
    )  # fmt: skip
    process, seen, sizes, start = psutil.Process(), 0, {}, time.perf_counter()
    while seen < examples:
        features = next(loader).features
        seen += int(features["decoder_segment_ids"].max(axis=1).sum())
        tenth = seen * 10 // examples
        if tenth not in sizes:
            sizes[tenth] = process.memory_info().rss / 2**20
            print(f"{seen:,} examples, {sizes[tenth]:.1f} MiB", flush=True)
    return {
        "examples": seen,
        "mib_at_each_tenth": [round(size, 1) for size in sizes.values()],
        "seconds": time.perf_counter() - start,
    }


def in_process(command: list[str]) -> dict:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="/tmp/t5x_lite_benchmark", type=Path)
    parser.add_argument("--seconds", default=5.0, type=float, help="of each measurement")
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--seqio", help="python of an environment with seqio (seqio_data.py)")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--examples", default=10_000_000, type=int)
    parser.add_argument("--json", default="data.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        shape, cached, workers = args.one
        result = measure(args.folder, shape, cached == "cached", args.seconds, int(workers))
        print(json.dumps(result))
        return
    if args.memory:
        print(json.dumps(measure_memory(args.examples)))
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path.insert(0, str(HERE.parent))
    prepare(args.folder)
    make_task(args.folder, "lm 2048", True)
    own = [sys.executable, str(HERE / "data.py"), f"--folder={args.folder}",
           f"--seconds={args.seconds}", "--one"]  # fmt: skip
    commands = {}
    for shape in SHAPES:
        commands[f"{shape}, raw text"] = [*own, shape, "text", "0"]
        if args.seqio:
            other = [args.seqio, str(HERE / "seqio_data.py"), str(args.folder), shape]
            commands[f"{shape}, raw text, seqio"] = [*other, str(args.seconds)]
        commands[f"{shape}, cached tokens"] = [*own, shape, "cached", "0"]
    runs: dict[str, list[dict]] = {name: [] for name in commands}
    for _ in range(args.rounds):  # interleaved, so that what else runs hits all alike
        for name, command in commands.items():
            runs[name].append(in_process(command))
    print(f"{'tokens per':32} {'processor-second':>17} {'(lowest, highest)':>24} {'second':>11}")
    for name, results in runs.items():
        speeds = sorted(r["tokens"] / r["cpu_seconds"] for r in results)
        clock = statistics.median(r["tokens"] / r["seconds"] for r in results)
        spread = f"({speeds[0]:,.0f}, {speeds[-1]:,.0f})"
        print(f"{name:32} {statistics.median(speeds):>17,.0f} {spread:>24} {clock:>11,.0f}")
    Path(args.json).write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
