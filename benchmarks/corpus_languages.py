"""What is kept and dropped of real text in many languages: manual pages and books of the system.

  apt-get install manpages-{ja,fr,de,ru,zh,es,pl,tr,uk,vi,pt-br} debian-handbook
  python benchmarks/corpus_languages.py --folder=F [--show=20]

Manual pages of /usr/share/man become text without their macros, the handbook's pages are read as
HTML; each language goes through Repair, Language, Roots and Pii, and exact and near duplicates.
Prints a row a language: documents, kept, duplicates, and what was dropped by which rule. --show
prints the beginnings of so many kept and dropped documents of each, to be looked at.
"""

import argparse
import gzip
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from t5x_lite.corpus.cleaning import clean
from t5x_lite.corpus.duplicates import Duplicates
from t5x_lite.corpus.encodings import decoded
from t5x_lite.corpus.language import Language, tag
from t5x_lite.corpus.limits import Repair
from t5x_lite.corpus.pii import Pii
from t5x_lite.corpus.readers import Reader
from t5x_lite.corpus.roots import Roots
from t5x_lite.corpus.settings import Corpus
from t5x_lite.corpus.tally import Tally
from t5x_lite.corpus.text import count_sentences, words

_FONT = re.compile(r"\\f(?:\[\w*\]|\(\w\w|.)|\\s[-+]?\d|\\[&%:|^]")


def roff_text(source: str) -> str:
    """A manual page without macros and escapes; headings and bold words stay."""
    lines = []
    for line in source.split("\n"):
        if line.startswith(('.\\"', "'\\\"", '."')):
            continue
        if line.startswith((".", "'")):
            name, _, rest = line[1:].strip().partition(" ")
            if name in ("SH", "SS", "B", "I", "BR", "BI", "IR", "RB", "RI", "TP", "Nd", "Sh"):
                lines.append(rest.replace('"', ""))
            continue
        lines.append(line)
    text = _FONT.sub("", "\n".join(lines))
    return re.sub(r"\\(\(..|\[\w+\])", "", text).replace("\\-", "-").replace("\\e", "\\")


def documents(most: int) -> dict[str, list[dict]]:
    """{language: documents} of manual pages and of Debian's handbook."""
    found: dict[str, list[dict]] = {}
    rng = random.Random(0)
    for folder in sorted(Path("/usr/share/man").iterdir()):
        if folder.name.startswith("man"):
            continue
        files = sorted(folder.glob("man*/*.gz"))
        for file in rng.sample(files, min(most, len(files))):
            text = roff_text(decoded(gzip.decompress(file.read_bytes())))
            found.setdefault(folder.name, []).append(document(text, str(file)))
    for folder in sorted(Path("/usr/share/doc/debian-handbook/html").glob("*")):
        files = sorted(folder.glob("*.html"))
        for file in rng.sample(files, min(most, len(files))):
            for page in Reader().read(str(file), str(file), "handbook", _Ignored()):
                found.setdefault(folder.name, []).append(page)
    return found


def document(text: str, name: str) -> dict:
    return {"text": text, "url": name, "id": name, "source": "man", "language": "", "license": "",
            "scores": {}}  # fmt: skip


class _Ignored:
    def add(self, kind: str, where: str) -> None:
        print(kind, where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--most", type=int, default=200)
    parser.add_argument("--show", type=int, default=0)
    given = parser.parse_args()
    steps = (Repair(), Language(min_score=0.0), Roots(), Pii())
    corpus = Corpus(__file__, given.folder, steps=steps)
    by_language: dict[str, list[dict]] = {}
    for name, found in documents(given.most).items():
        by_language.setdefault(name.replace("-", "_"), []).extend(found)
    out = Path(given.folder)
    out.mkdir(parents=True, exist_ok=True)
    for name, found in sorted(by_language.items()):
        tally, kept, dropped, seen = Tally(), [], [], set()
        duplicates, identified = Counter(), Counter()
        for one in found:
            reason = clean(corpus, one, tally)
            identified[one["language"] or "?"] += 1
            if reason is not None:
                dropped.append((reason, one))
                continue
            keys = [(i, k) for i, k in enumerate(Duplicates().keys(one["text"]).tolist())]
            kind = "exact" if keys[0] in seen else "near" if seen & set(keys) else ""
            seen |= set(keys)
            if kind:
                duplicates[kind] += 1
                dropped.append((kind, one))
            else:
                kept.append(one)
        right = identified[tag(name)] / len(found)
        counted = sum(len(words(one["text"])) for one in kept) / max(1, len(kept))
        sentences = sum(count_sentences(one["text"]) for one in kept) / max(1, len(kept))
        rules = Counter(reason.partition("/")[2] or reason for reason, _ in dropped)
        print(f"{name:8s} {len(found):5d} documents, {right:4.0%} taken for {tag(name)}, kept "
              f"{len(kept):4d} of {counted:6.0f} words and {sentences:4.0f} sentences; "
              f"{dict(rules.most_common())}")  # fmt: skip
        rng = random.Random(1)
        with open(out / f"{name}.txt", "w") as file:
            for title, rows in (("KEPT", [("", d) for d in kept]), ("DROPPED", dropped)):
                for reason, one in rng.sample(rows, min(given.show, len(rows))):
                    text = json.dumps(one["text"][:300], ensure_ascii=False)
                    file.write(f"{title} {reason} {one['language']} {one['url']}\n  {text}\n")


if __name__ == "__main__":
    main()
