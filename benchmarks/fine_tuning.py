"""Fine-tuned models' scores: from the start, from the quickstart's weights, and with LoRA.

  bash launch/quickstart.sh        # or longer: ... --gin.TOTAL_STEPS=2000
  python benchmarks/fine_tuning.py --folder=runs/scores --pretrained=runs/quickstart \
      --cola=cola --multi30k=multi30k --shakespeare=input.txt --json=scores.json
  python benchmarks/fine_tuning.py --folder=F --pretrained=P --only=modules_full,modules_lora

cola, multi30k: folders with the files that their recipes name. "modules" needs no data: of which of
twelve packages of Python's own library are these five lines? Its rows are made here, training and
held-out ones of different files. Each row trains, takes the best checkpoint by the recipe's metric,
and evaluates it on all held-out data, with the bootstrap's 95 % interval. What is finished in the
folder isn't trained again.
"""

import argparse
import hashlib
import json
import resource
import sysconfig
import time
from pathlib import Path

from command import report, t5x_lite

PACKAGES = (
    "asyncio", "ctypes", "email", "encodings", "http", "idlelib", "importlib", "logging",
    "multiprocessing", "tkinter", "unittest", "xml",
)  # fmt: skip
LINES, ROWS, HELD_OUT_ROWS = 5, 400, 60  # of a snippet; of a package, for each use
MODULES = (
    "--gin_file=recipes/finetune_text_pairs.gin",
    "--gin.INPUTS='of which package: {text}'",
    "--gin.TARGETS='{label}'",
    "--gin.METRICS=[@accuracy]",
    "--gin.LENGTHS={'inputs': 96, 'targets': 8}",
    "--gin.PACK=False",
    "--gin.train.eval_batch_count=None",
    "--gin.CheckpointConfig.keep_best='text/accuracy'",
    "--gin.CheckpointConfig.best_mode='max'",
)
# All matrices but the embeddings', 1.9 % of the parameters. It learns more slowly: more steps.
LORA = (
    "--gin_file=adapters/lora.gin",
    "--gin.LoRA.pattern='(attention|mlp)/.*kernel$'",
    "--gin.LoRA.rank=4",
    "--gin.LoRA.alpha=8.0",
)


def warm(pretrained: Path) -> tuple[str, ...]:
    """The quickstart's weights and vocabulary."""
    return (
        f"--gin.train.initial_checkpoint='{pretrained}'",
        "--gin.VOCABULARY=@SentencePieceVocabulary()",
        f"--gin.VOCABULARY_FILE='{pretrained.parent / 'python_library.4k.model'}'",
    )


def rows_to_train(args: argparse.Namespace) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """{name: (metric, more of `eval`'s flags, flags of `train`)} of what there is data for."""
    found: dict = {}
    data = args.folder / "modules"
    modules = (*MODULES, f"--gin.DATA='{data}.train.tsv'",
               f"--gin.VALIDATION_DATA='{data}.validation.tsv'")  # fmt: skip
    starts = {"scratch": (), "full": warm(args.pretrained)}
    starts["lora"] = (*starts["full"], *LORA)
    for start, flags in starts.items():
        steps = ("--gin.TOTAL_STEPS=1500",) if start == "lora" else ()
        found[f"modules_{start}"] = ("accuracy", (), (*modules, *flags, *steps))
    if args.cola:
        cola = ("--gin_file=recipes/finetune_cola.gin",
                f"--gin.DATA='{args.cola}/in_domain_train.tsv'",
                f"--gin.VALIDATION_DATA='{args.cola}/in_domain_dev.tsv'")  # fmt: skip
        for start, flags in starts.items():
            found[f"cola_{start}"] = ("matthews", (), (*cola, *flags))
    if args.multi30k:
        beams = ("--gin.evaluate.split='test_2016_flickr'",
                 "--gin.TextEvaluation.method=@BeamSearch()")  # fmt: skip
        flags = ("--gin_file=recipes/finetune_multi30k.gin", f"--gin.DATA='{args.multi30k}'")
        found["multi30k_scratch"] = ("bleu", beams, flags)
    if args.shakespeare:
        flags = ("--gin_file=recipes/tiny_shakespeare.gin", f"--gin.DATA='{args.shakespeare}'")
        found["shakespeare_scratch"] = ("loss", (), flags)
    return found


def make_modules(folder: Path) -> None:
    """modules.train.tsv and modules.validation.tsv: text, label."""
    library = Path(sysconfig.get_paths()["stdlib"])
    rows: dict[str, list[str]] = {"train": [], "validation": []}
    for package in PACKAGES:
        snippets: dict[str, list[str]] = {"train": [], "validation": []}
        for file in sorted((library / package).rglob("*.py")):
            digest = hashlib.sha256(file.relative_to(library).as_posix().encode()).digest()
            split = "validation" if digest[0] % 5 == 0 else "train"
            lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
            lines = [line.replace("\t", " ") for line in lines if len(line) > 10]
            parts = [lines[i : i + LINES] for i in range(0, len(lines) - LINES, LINES)]
            snippets[split] += [" ".join(part)[:400] for part in parts]
        for split, count in (("train", ROWS), ("validation", HELD_OUT_ROWS)):
            chosen = sorted(snippets[split], key=lambda s: hashlib.sha256(s.encode()).digest())
            rows[split] += [f"{text}\t{package}" for text in chosen[:count]]
    for split, lines in rows.items():
        text = "\n".join(["text\tlabel", *lines]).replace('"', "'")
        (folder / f"modules.{split}.tsv").write_text(text + "\n")


def measure(folder: Path, name: str, metric: str, more: tuple, flags: tuple) -> dict:
    """Trains and evaluates one; {"name", "values", "intervals", "minutes", "processor_minutes"}."""
    result = folder / f"{name}.json"
    if result.exists():
        return json.loads(result.read_text())
    run, started, before = folder / name, time.monotonic(), _processor_seconds()
    t5x_lite("train", *flags, f"--gin.MODEL_DIR='{run}'")
    trained = {"minutes": (time.monotonic() - started) / 60,
               "processor_minutes": (_processor_seconds() - before) / 60}  # fmt: skip
    t5x_lite("eval", f"--gin_file={run}/config.gin", f"--checkpoint=best:{metric}",
             "--gin.evaluate.confidence_samples=1000", *more)  # fmt: skip
    [judged] = (run / "eval").glob("*/[0-9]*[0-9].json")
    found = json.loads(judged.read_text())
    row = {"name": name, "step": int(judged.stem), **trained}
    row |= {key: found[key] for key in ("values", "intervals") if key in found}
    result.write_text(json.dumps(row, indent=1))
    return row


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(rows: list[dict]) -> str:
    lines = ["| | score | 95 % | step | minutes | processor minutes |", "|---|---|---|---|---|---|"]
    for row in rows:
        chosen = {k: v for k, v in row["values"].items() if not k.endswith(("_norm", "tokens"))}
        score = ", ".join(f"{k} {v:.4g}" for k, v in chosen.items())
        bounds = ", ".join(f"{k} {a:.4g} to {b:.4g}" for k, (a, b) in row["intervals"].items())
        lines.append(f"| {row['name']} | {score} | {bounds} | {row['step']:,} | "
                     f"{row['minutes']:.1f} | {row['processor_minutes']:.1f} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True, help="the quickstart's run")
    parser.add_argument("--cola", type=Path)
    parser.add_argument("--multi30k", type=Path)
    parser.add_argument("--shakespeare", type=Path)
    parser.add_argument("--only", help="names of rows, comma-separated")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()
    for name in ("folder", "pretrained", "cola", "multi30k", "shakespeare"):
        if (path := getattr(args, name)) is not None:
            setattr(args, name, path.resolve())
    args.folder.mkdir(parents=True, exist_ok=True)
    make_modules(args.folder)
    known = rows_to_train(args)
    names = args.only.split(",") if args.only else known
    report((measure(args.folder, name, *known[name]) for name in names), table, args.json)


if __name__ == "__main__":
    main()
