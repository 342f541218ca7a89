"""The result as TFDS reads it: array_record files, features.json and dataset_info.json."""

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from t5x_lite.corpus.steps import Document

TEXTS = ("text", "id", "source", "url", "language", "license")


@functools.cache
def features(scores: tuple[str, ...]) -> Any:
    """Text features, and one float for each score."""
    tfds = _tfds()
    import numpy as np

    fields = {name: tfds.features.Text() for name in TEXTS}
    if scores:
        fields["scores"] = tfds.features.FeaturesDict({name: np.float32 for name in scores})
    return tfds.features.FeaturesDict(fields)


def file_name(name: str, split: str, shard: int, shards: int) -> str:
    return f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


def write_file(path: Path, documents: Iterable[Document], scores: Iterable[str]) -> int:
    """Writes one file and returns the bytes of its records."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    kind, size = features(tuple(scores)), 0
    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for document in documents:
            fields = {name: document[name].encode(errors="replace") for name in TEXTS}
            if scores:
                fields["scores"] = {name: document["scores"].get(name, 0.0) for name in scores}
            record = tf_example_pb2.Example.FromString(
                kind.serialize_example(kind.encode_example(fields))
            ).SerializeToString(deterministic=True)  # else the features' order is another each time
            writer.write(record)
            size += len(record)
    finally:
        writer.close()
    return size


def write_metadata(
    folder: Path, name: str, version: str, description: str, scores: list[str], splits: dict
) -> None:
    """splits: {name: [(records, bytes) of each file]}."""
    tfds = _tfds()
    from tensorflow_datasets.core import naming

    infos = []
    for split, shards in splits.items():
        template = naming.ShardedFileTemplate(
            dataset_name=name,
            data_dir=folder,
            split=split,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[records for records, _ in shards],
                num_bytes=sum(size for _, size in shards),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(tuple(scores)),
        split_infos=infos,
        version=version,
        description=description,
        check_data=False,  # reading it back would need TensorFlow
    )


def read(folder: Path, split: str) -> Iterator[dict[str, str]]:
    """The records of a split in their order; none if there is no such split."""
    builder = _tfds().builder_from_directory(str(folder))
    if split in builder.info.splits:
        for record in builder.as_data_source(split):
            yield {k: v.decode() if isinstance(v, bytes) else v for k, v in record.items()}


def _tfds() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that TensorFlow is absent
        import tensorflow_datasets as tfds

        _ = tfds.features, tfds.folder_dataset
    return tfds
