"""TensorFlow Datasets as a source, read without TensorFlow: array_record and TFRecord copies."""

import contextlib
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_lite.data.file_bytes import FileBytes, open_bytes
from t5x_lite.data.files import cached_arrays, local_copy, version_of
from t5x_lite.data.source import Record, Source, Subset, digest
from t5x_lite.data.tf_example import TornFile, frame_spans
from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.ranges import Fraction

# TFDS imports its datasets' code group by group and stops at the first group that lacks a package
# (h5py, say); the groups after that one, these among them, are then never found by name.
_CODE_GROUPS = ("question_answering", "summarization", "text", "text_simplification", "translate")


class Tfds(Source):
    """A TFDS dataset prepared in the array_record or tfrecord format, by name: "c4/en:3.1.0".

    Of tfrecord files, which have no index, one pass finds where the records are.

    Args:
      name: the dataset, with config and version where wanted.
      data_dir: the folder of prepared datasets (local or gs://) or of this one version; None is
        TFDS's own default.
      keys: {record key: feature}, "a/b" for a nested feature; a string means {"text": string}; None
        gives all features under their own names. Bytes are decoded as UTF-8.
      splits: {"train": "train[:90%]", ...}, TFDS's slicing included. By default the dataset's own;
        if it has no "validation", that is the last `held_out` of "train".
      held_out: see `splits`.
      download: download and prepare the dataset if it isn't there yet.

    Raises:
      UserError: tensorflow-datasets isn't installed, or the dataset, its copy on disk, a format
        with random access, a split or a feature is missing. All on first use.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | None = None,
        keys: str | Mapping[str, str] | None = None,
        splits: Mapping[str, str] | None = None,
        held_out: Fraction = 0.01,
        download: bool = False,
    ):
        if not 0 <= held_out < 1:
            raise UserError(f"held_out is {held_out}; it must be a share of records in [0, 1).")
        self.name, self.data_dir, self.held_out, self.download = name, data_dir, held_out, download
        self.keys = {"text": keys} if isinstance(keys, str) else keys
        self._given_splits = None if splits is None else dict(splits)

    def __getstate__(self):
        # A builder isn't for other processes: they open their own.
        given = ("name", "data_dir", "held_out", "download", "keys", "_given_splits")
        return {name: getattr(self, name) for name in given}

    @functools.cached_property
    def _builder(self) -> Any:
        builder = open_builder(self.name, self.data_dir)
        where = f"{builder.info.full_name} at {builder.data_path}"
        if not builder.data_path.exists():
            if not self.download:
                raise UserError(
                    f"{where} is not prepared; set Tfds.download = True, or run t5x_lite data "
                    f"build {self.name} --data_dir=..."
                )
            builder.download_and_prepare(file_format="array_record")
        formats = {f.value for f in builder.info.available_file_formats()}
        if not formats & {"array_record", "tfrecord"}:
            more = " (TFDS's Parquet writer loses records)" if "parquet" in formats else ""
            raise UserError(
                f"{where} is stored as {' and '.join(sorted(formats))}{more}, expected array_record"
                f" or tfrecord: prepare it again, t5x_lite data build {self.name} --data_dir=..."
            )
        return builder

    @functools.cached_property
    def _split_specs(self) -> dict[str, str]:
        own = self._builder.info.splits
        if self._given_splits is not None:
            return self._given_splits
        specs = {name: name for name in own}
        if "train" in specs and "validation" not in specs:
            total = own["train"].num_examples
            held = min(max(round(total * self.held_out), self.held_out > 0), total - 1)
            specs |= {"train": f"train[:{total - held}]", "validation": f"train[{total - held}:]"}
        return specs

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._split_specs)

    def _split(self, name: str) -> Source:
        spec = self._split_specs[name]
        info, own = self._split_info(spec), self._builder.info.splits
        # TFDS knows the bytes of whole splits only.
        whole = own.get(spec.split("[")[0], info)
        share = info.num_examples / max(whole.num_examples, 1)
        records = _Records(self, spec, info, round(int(whole.num_bytes) * share))
        return Subset(records, name, range(len(records)), records.num_bytes)

    def _split_info(self, spec: str) -> Any:
        own = self._builder.info.splits
        try:
            return own[spec]
        except (KeyError, ValueError, AssertionError) as e:
            raise UserError(
                f"{self.name} has no split {spec!r}; it has {', '.join(own)}."
                + did_you_mean(spec.split("[")[0], own)
            ) from e

    # As a sequence it is its training split.

    @functools.cached_property
    def _train(self) -> Source:
        return self.split("train")

    def __len__(self) -> int:
        return len(self._train)

    def __getitem__(self, index: int) -> Record:
        return self._train[index]

    @property
    def num_files(self) -> int:
        return sum(s.num_shards for s in self._builder.info.splits.values())

    @property
    def num_bytes(self) -> int:
        return self._train.num_bytes

    @functools.cached_property
    def fingerprint(self) -> str:
        info = self._builder.info
        sizes = [(n, s.num_examples, int(s.num_bytes)) for n, s in sorted(info.splits.items())]
        return digest(info.full_name, sizes, sorted(self._split_specs.items()), self.keys)


class _Records(Source):
    """The records of one TFDS split or slice."""

    def __init__(self, dataset: Tfds, spec: str, info: Any, num_bytes: int):
        self.dataset, self.spec, self.num_bytes = dataset, spec, num_bytes
        self.num_files, self._length = info.num_shards, info.num_examples
        for key, feature in (dataset.keys or {}).items():
            _check_feature(dataset, key, feature)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_reader"}

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def _reader(self) -> Any:
        builder = self.dataset._builder
        if "array_record" in {f.value for f in builder.info.available_file_formats()}:
            return builder.as_data_source(self.spec)
        instructions = builder.info.splits[self.spec].file_instructions
        return _TfRecordReader(instructions, builder.info.features)

    @property
    def fingerprint(self) -> str:
        return digest(self.dataset.fingerprint, self.spec)

    def __getitem__(self, index: int) -> Record:
        features = self._reader[index]
        if self.dataset.keys is not None:
            paths = self.dataset.keys.items()
            features = {
                key: functools.reduce(lambda node, part: node[part], path.split("/"), features)
                for key, path in paths
            }
        try:
            return {k: _text(v) for k, v in features.items()}
        except UnicodeDecodeError as e:
            raise UserError(
                f"Record {index} of {self.dataset.name} {self.spec} is not UTF-8: {e.reason} at "
                f"offset {e.start}; choose text features with Tfds.keys."
            ) from None


class _TfRecordReader:
    """The examples of some TFRecord files, or slices of them, by number."""

    def __init__(self, instructions: Sequence[Any], features: Any):
        self._features = features
        self._paths = paths = [str(i.filename) for i in instructions]
        # An open file holds a descriptor, so there can't be one for each of thousands of files.
        self._data = functools.lru_cache(maxsize=64)(lambda i: open_bytes(paths[i], False))
        spans = []
        for number, i in enumerate(instructions):
            found = self._frames(number, paths[number])[i.skip :]
            spans.append(found[: i.examples_in_shard if i.take < 0 else i.take])
        self._ends = np.cumsum([len(s) for s in spans])
        self._spans = np.concatenate([*spans, np.zeros((0, 2), np.int64)])

    def _frames(self, number: int, path: str) -> np.ndarray:
        data = self._data(number)
        key = digest(version_of(local_copy(path)), "frames")
        try:
            return cached_arrays(key, len(data), lambda: {"spans": frame_spans(data)})["spans"]
        except TornFile as e:
            raise UserError(f"{path} is torn: {e}; fetch it again.") from e

    def __getitem__(self, index: int) -> Any:
        number = int(np.searchsorted(self._ends, index, "right"))
        data = self._data(number)
        begin, end = self._spans[index].tolist()
        if isinstance(data, FileBytes) and data.has_changed():
            raise UserError(
                f"{self._paths[number]} has changed since it was opened; bring the old file back, "
                "or begin a new run."
            )
        return self._features.deserialize_example_np(data[begin:end])


def _text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _text(v) for k, v in value.items()}
    return value.decode() if isinstance(value, bytes) else value


def _check_feature(dataset: Tfds, key: str, path: str) -> None:
    node = dataset._builder.info.features
    for part in path.split("/"):
        if not (hasattr(node, "keys") and part in node):
            found = sorted(node.keys()) if hasattr(node, "keys") else [type(node).__name__]
            raise UserError(
                f"{dataset.name} has no feature {path!r}, which Tfds.keys wants for {key!r}; found "
                f"{', '.join(found)}." + did_you_mean(part, found)
            )
        node = node[part]


def open_builder(name: str, data_dir: str | None) -> Any:
    """The dataset's builder, from its files if they are there, else from its code in TFDS."""
    try:
        import tensorflow_datasets as tfds
        from array_record.python import array_record_data_source  # noqa: F401  it is imported late
        from etils import epath
        from tensorflow_datasets.core import read_only_builder
    except ImportError as e:
        raise UserError(f"Tfds needs a package ({e}); pip install 't5x_lite[tfds]'.") from e
    if data_dir is not None and (epath.Path(data_dir) / "dataset_info.json").exists():
        return tfds.builder_from_directory(data_dir)
    kwargs = {} if data_dir is None else {"data_dir": data_dir}
    # Files first: reading a prepared copy needs none of the dataset's code and what that imports.
    try:
        return read_only_builder.builder_from_files(name, **kwargs)
    except tfds.core.DatasetNotFoundError:
        return _open_by_code(tfds, name, kwargs)


def _open_by_code(tfds: Any, name: str, kwargs: dict[str, Any]) -> Any:
    try:
        try:
            return tfds.builder(name, **kwargs)
        except tfds.core.DatasetNotFoundError:
            for group in _CODE_GROUPS:
                with contextlib.suppress(ImportError):
                    importlib.import_module(f"tensorflow_datasets.{group}")
            return tfds.builder(name, **kwargs)
    except tfds.core.DatasetNotFoundError:
        known = tfds.core.registered.list_imported_builders()
        raise UserError(
            f"TFDS finds no dataset {name!r}, neither prepared in "
            f"{kwargs.get('data_dir', 'its data_dir')} nor by that name in its catalogue."
            + did_you_mean(name.split("/")[0].split(":")[0], known)
        ) from None
    except ImportError as e:
        reason = " ".join(str(e).split())  # one line
        raise UserError(
            f"The code of {name!r} in TFDS needs a package that isn't here ({reason}); prepare it "
            "elsewhere with file_format='array_record' and set Tfds.data_dir to that copy."
        ) from e
