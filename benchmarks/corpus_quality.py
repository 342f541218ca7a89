"""Does cleaning help? A small language model on raw and on cleaned text of the same token budget.

  python benchmarks/corpus_quality.py prepare --folder=F [--mb=60]  # text of this machine
  python benchmarks/corpus_quality.py clean --folder=F              # web_en.gin; needs [corpus]
  nice python benchmarks/corpus_quality.py train --folder=F [--steps=400 --seeds=2]
  python benchmarks/corpus_quality.py table --folder=F

Raw text is what such machines carry: pages of HTML with their navigation (tags cut out, as in WET
files), manuals, change logs, Python of two versions, so that copies occur; to that come planted
copies, near copies, mojibake and boilerplate. 10 % of the documents are held out before anything is
planted, and of those all that share more than a tenth of their 13-grams with what is trained on go.
Both models have the same vocabulary (trained on raw text), seeds and tokens, and are evaluated on
the held-out documents as they are, and on those that cleaning keeps, cleaned.
"""

import argparse
import gzip
import html
import json
import random
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from t5x_lite.corpus.duplicates import line_key
from t5x_lite.corpus.text import comparable

HELD_OUT = 0.1
BOILERPLATE = (
    "Home | About us | Products | Contact | Sign in\nWe use cookies to improve your experience. "
    "Accept all\nShare this page: Facebook Twitter LinkedIn\n",
    "\nRelated articles\nRead more...\nRead more...\nRead more...\nSubscribe to our newsletter\n"
    "Copyright 2024. All rights reserved. Privacy policy. Terms of use\n",
)


# --------------------------------------------------------------------------------------- raw text


def files(source: str) -> Iterator[Path]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    roots = {
        "pages": ["/usr/share/doc", *map(str, Path.home().glob(".rustup/toolchains/stable*"))],
        "manuals": ["/usr/share/man/man1", "/usr/share/man/man3", "/usr/share/man/man7"],
        "documents": ["/usr/share/doc", "/usr/share/perl", sysconfig.get_path("purelib")],
        "python": [str(stdlib), *sorted(map(str, stdlib.parents[2].glob("3.1*/lib/python3.1*")))],
    }[source]
    suffixes = {
        "pages": (".html",), "manuals": (".gz",), "python": (".py",),
        "documents": (".txt", ".md", ".rst", ".pod", ".gz"),
    }[source]  # fmt: skip
    for root in roots:
        found = [p for p in sorted(Path(root).rglob("*")) if p.suffix in suffixes and p.is_file()]
        random.Random(0).shuffle(found)
        yield from found


def text_of(path: Path, source: str) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            text = file.read(400_000).decode("utf-8", errors="ignore")
    except (OSError, EOFError):
        return ""
    if source == "pages":
        text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
        text = re.sub(r"</?(p|div|li|h\d|tr|br|pre|nav|section|ul|td)\b[^>]*>", "\n", text)
        text = html.unescape(re.sub(r"<[^>]*>", "", text))
        text = re.sub(r"[ \t]*\n\s*", "\n", text)
    if source == "manuals":
        text = re.sub(r'^[.\'](\\".*|[A-Za-z]{1,2}\b)[ \t]*', "", text, flags=re.MULTILINE)
        text = re.sub(r"\\f.|\\&|\\s[-+]?\d", "", text).replace("\\-", "-")
    return text.strip()


def gather(megabytes: float) -> list[tuple[str, str]]:
    """(source, text): a quarter of the bytes from each kind of file."""
    found = []
    for source in ("pages", "manuals", "documents", "python"):
        size = 0
        for path in files(source):
            text = text_of(path, source)
            if 200 < len(text) < 100_000:
                found.append((source, text))
                size += len(text.encode())
            if size > megabytes * 1e6 / 4:
                break
        print(f"{source}: {size / 1e6:.1f} MB", flush=True)
    return found


def damaged(text: str, rng: random.Random) -> str:
    """The text, sometimes with boilerplate around it or as mojibake: as the web would have it."""
    chance = rng.random()
    if chance < 0.08:
        return BOILERPLATE[0] + text + BOILERPLATE[1]
    if chance < 0.12:
        odd = text.replace("'", "\u2019").replace(" - ", " \u2013 ")
        return odd.encode().decode("cp1252", errors="replace")
    return text


def runs(text: str, n: int = 13) -> set[int]:
    words = comparable(text).split()
    return {hash(tuple(words[i : i + n])) for i in range(max(1, len(words) - n + 1))}


def prepare(folder: Path, megabytes: float) -> None:
    rng, train, held = random.Random(1), [], []
    for source, text in gather(megabytes):
        # By the text's hash, so that copies fall on the same side.
        position = line_key(comparable(text)) / 2**64
        (held if position < HELD_OUT else train).append((source, damaged(text, rng)))
    copies = []
    for source, text in rng.sample(train, len(train) // 10):
        if rng.random() < 0.5:
            words = text.split(" ")
            for _ in range(max(1, len(words) // 200)):
                words[rng.randrange(len(words))] = rng.choice(("new", "other", "changed"))
            text = " ".join(words)
        copies.append((source, text))
    train += copies
    rng.shuffle(train)
    seen: set[int] = set()
    for _, text in train:
        seen |= runs(text)
    apart = [row for row in held if len((r := runs(row[1])) & seen) <= 0.1 * len(r)]
    print(f"train {len(train):,} documents ({len(copies):,} planted copies); held out {len(held):,}"
          f", of which {len(apart):,} share little with them")  # fmt: skip
    for name, rows in (("train", train), ("held", apart)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        with open(folder / name / "raw.jsonl", "w", encoding="utf-8") as file:
            for i, (source, text) in enumerate(rows):
                file.write(json.dumps({"text": text, "url": f"{source}/{i}"}) + "\n")


# ------------------------------------------------------------------------------------------ clean


def clean(folder: Path) -> None:
    """F/train/clean.jsonl and F/held/clean.jsonl: what the recipe makes of them."""
    from t5x_lite import cli
    from t5x_lite.corpus.dataset import read

    for name in ("train", "held"):
        given = [f"--gin.INPUT='{folder}/{name}/raw.jsonl'", f"--gin.OUTPUT='{folder}/tfds'"]
        more = [
            f"--gin.NAME='{name}'",
            "--gin.Corpus.held_out=0.0",
            "--gin.Corpus.workers=1",
            "--gin.GopherQuality.by_spaces=True",
        ]  # else technical prose fails by its marks
        if cli.main(["corpus", "--gin_file=corpus/web_en.gin", *given, *more]):
            sys.exit(1)
        with open(folder / name / "clean.jsonl", "w", encoding="utf-8") as file:
            for record in read(folder / "tfds" / name / "1.0.0", "train"):
                file.write(json.dumps({k: record[k] for k in ("text", "url")}) + "\n")


# ------------------------------------------------------------------------------------------ train

SETTINGS = """
TOTAL_STEPS = {steps}
VOCABULARY_SIZE = 4096
BATCH_SIZE = 16
TransformerConfig.embed_dim = 96
TransformerConfig.num_heads = 3
TransformerConfig.head_dim = 32
TransformerConfig.mlp_dim = 288
TransformerConfig.num_decoder_layers = 3
WARMUP_STEPS = 50
HELD_OUT = 0.001
Task.vocabulary = @SentencePieceVocabulary()
SentencePieceVocabulary.path = "{folder}/vocabulary.model"
train.eval_period = {steps}
train.eval_batch_count = 1
CheckpointConfig.period = {steps}
"""


def t5x_lite(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "t5x_lite", *words], check=True)


def train(folder: Path, steps: int, seeds: int) -> None:
    from t5x_lite.data.sentencepiece_training import train_sentencepiece

    with open(folder / "train" / "raw.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    if not (folder / "vocabulary.model").exists():
        train_sentencepiece(texts, folder / "vocabulary.model", 4096, max_bytes=4_000_000)
    (folder / "quality.gin").write_text(SETTINGS.format(steps=steps, folder=folder))
    recipe = ["--gin_file=recipes/pretrain_text_lm.gin", f"--gin_file={folder}/quality.gin"]
    for seed in range(seeds):
        for kind in ("raw", "clean"):
            run = folder / "runs" / f"{kind}{seed}"
            given = [*recipe, f"--gin.TEXT='{folder}/train/{kind}.jsonl'", f"--gin.SEED={seed}",
                     f"--gin.MODEL_DIR='{run}'"]  # fmt: skip
            t5x_lite("train", *given)
            for held in ("raw", "clean"):
                text = f"--gin.TEXT='{folder}/held/{held}.jsonl'"
                t5x_lite("eval", *given, text, "--gin.HELD_OUT=0.0",
                         "--gin.evaluate.split='train'", "--gin.evaluate.num_samples=0",
                         "--gin.evaluate.batch_count=120")  # fmt: skip
                found = (run / "eval.jsonl").read_text().splitlines()[-1]
                row = {"trained on": kind, "held out": held, "seed": seed, **json.loads(found)}
                with open(folder / "results.jsonl", "a") as file:
                    file.write(json.dumps(row) + "\n")


def table(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    print("| trained on | held-out raw, bits per byte | held-out clean, bits per byte |")
    print("|---|---|---|")
    for kind in ("raw", "clean"):
        cells = []
        for held in ("raw", "clean"):
            found = [r["bits_per_byte"] for r in rows
                     if (r["trained on"], r["held out"]) == (kind, held)]  # fmt: skip
            cells.append(", ".join(f"{value:.3f}" for value in found))
        print(f"| {kind} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "clean", "train", "table"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--mb", type=float, default=60)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    folder = args.folder.absolute()
    if args.what == "prepare":
        prepare(folder, args.mb)
    elif args.what == "train":
        train(folder, args.steps, args.seeds)
    else:
        {"clean": clean, "table": table}[args.what](folder)


if __name__ == "__main__":
    main()
