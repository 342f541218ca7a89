"""`t5x_lite corpus`: raw documents -> a clean dataset, with its data card. Needs no jax."""

import argparse
import contextlib
import importlib.util

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.programs.lock import Lock

_NEEDED = (
    "apache_beam", "tensorflow_datasets", "array_record", "zstandard", "rensa", "ftfy",
    "py3langid", "resiliparse", "warcio",
)  # fmt: skip


def main(args: argparse.Namespace) -> int:
    if not args.gin_file and not args.gin_bindings:
        raise UserError("corpus needs --gin_file=FILE, such as corpus/web_en.gin")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"corpus needs {', '.join(missing)}, which aren't installed: pip install "
            "'t5x_lite[corpus]'"
        )
    config.parse(
        args.gin_file, args.gin_bindings, args.gin_search_paths, "Corpus", trust=args.trust_config
    )
    from t5x_lite.corpus.pipeline import build

    corpus = config.call("Corpus")
    with contextlib.ExitStack() as stack:
        if not corpus.target.exists():
            corpus.work.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lock(corpus.work))
        folder = build(corpus, lambda line: print(line, flush=True))
    print(f"next: Task.source = @Tfds(), Tfds.name = '{corpus.name}:{corpus.version}', "
          f"Tfds.data_dir = '{corpus.target.parents[1]}', Tfds.keys = 'text'")  # fmt: skip
    print(f"card: {folder}/data_card.html")
    return 0
