"""`t5x_lite data`: what a task's data looks like; TFDS datasets built; token ids cached."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5x_lite import config
from t5x_lite.data.tasks import Mixture, Task
from t5x_lite.data.token_cache import write_cache
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.programs import data_page

_ACTIONS = ("build", "cache")
_PARQUET = (
    "TFDS's Parquet writer loses records without a word (of 1,000 it keeps 400, while "
    "dataset_info.json says 1,000)"
)
_TFRECORD = "TFDS writes tfrecord with TensorFlow only"


def main(args: argparse.Namespace) -> int:
    what: list[str] = [*args.what, ""]
    action, rest = what[0], what[1:]
    if action == "build":
        build(rest[0], args.data_dir, args.file_format)
        return 0
    files = [word for word in args.what if word not in _ACTIONS]
    for word in files:
        if not word.endswith(".gin"):
            hint = did_you_mean(word, _ACTIONS) or " Give a gin file, build NAME, or cache."
            raise UserError(f"data has no action '{word}'.{hint}")
    task, settings = read_config(args, [*files, *args.gin_file])
    if action == "cache":
        cache(task, args.cache_dir, args.shards, args.num_workers)
        return 0
    sections = data_page.sections(task, records=args.records, **settings)
    print(data_page.as_text(sections))
    if args.html:
        title = f"Data of {task.name}"
        Path(args.html).write_text(data_page.as_html(title, sections), encoding="utf-8")
        print(f"page: {args.html}")
    return 0


def read_config(args: argparse.Namespace, files: list[str]) -> tuple[Any, dict[str, Any]]:
    """The task, and lengths, architecture, pack, batch_size and seed where the config has them."""
    if not files:
        raise UserError("data needs a gin file with a task: t5x_lite data recipes/NAME.gin")
    config.parse(
        files, args.gin_bindings, args.gin_search_paths, "train.task", trust=args.trust_config
    )
    task = config.evaluate("train.task")
    if not isinstance(task, Task | Mixture):  # bound without "()"
        task = task()
    features = task.objective.features
    lengths = _given("lengths", Mapping)
    settings = {
        "lengths": lengths or {name: 512 if name == "inputs" else 114 for name in features},
        "batch_size": _given("batch_size", int) or 8,
        "pack": _given("pack", bool | str),
        "seed": _given("seed", int) or 0,
        "architecture": _architecture(features),
    }
    if settings["pack"] is None:
        settings["pack"] = True
    return task, settings


def _given(name: str, kind) -> Any:
    """The value of a parameter of `train`; None if the config doesn't give it."""
    try:
        value = config.evaluate(f"train.{name}")
    except UserError:
        return None
    return value if isinstance(value, kind) else None


def _architecture(features: tuple[str, ...]) -> str:
    from t5x_lite.models.config import TransformerConfig

    if (model := _given("model", TransformerConfig)) is not None:
        return model.architecture
    if "targets" not in features:
        return "encoder_only"
    return "encoder_decoder" if "inputs" in features else "decoder_only"


def build(name: str, data_dir: str | None, file_format: str) -> None:
    """Downloads and prepares a TFDS dataset as array_record, without TensorFlow."""
    if not name:
        raise UserError("data build needs the name of a TFDS dataset, such as glue/cola")
    if file_format != "array_record":
        why = {"parquet": _PARQUET, "tfrecord": _TFRECORD}.get(file_format, "it isn't supported")
        raise UserError(f"--file_format={file_format}: {why}; use array_record.")
    from t5x_lite.data import tfds_source

    builder = tfds_source.open_builder(name, data_dir)
    if not builder.data_path.exists():
        builder.download_and_prepare(file_format="array_record")
    splits = ", ".join(f"{k} {v.num_examples:,}" for k, v in builder.info.splits.items())
    print(f"{builder.info.full_name}: {splits}")
    print(f"features: {', '.join(builder.info.features)}")
    print(f"folder: {builder.data_path}")
    where = f", Tfds.data_dir = {data_dir!r}" if data_dir else ""
    print(f"next: in a gin file, Task.source = @Tfds(), Tfds.name = {name!r}{where}")


def cache(task: Task | Mixture, folder: str | None, shards: int | None, num_workers: int) -> None:
    """Writes the token ids of every task of a mixture, each in a folder of its name."""
    if not folder:
        raise UserError("data cache needs --cache_dir=FOLDER")
    for leaf, _ in task.leaves:
        path = os.path.join(folder, leaf.name.replace("/", "_"))
        written = write_cache(leaf, path, shards=shards, num_workers=num_workers)
        for name, tokens in written.describe()["tokens"].items():
            print(f"{path}: {name} {len(written.split(name)):,} documents, {tokens:,} tokens")
        print(f"next: Task.source = @CachedTokens(), CachedTokens.path = {path!r}")
