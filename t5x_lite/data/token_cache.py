"""Token ids of a task's documents, written once and read without any text work.

  FOLDER/
    plan.json                                what is to be made; written first
    train-00000-of-00004.array_record        a record is a document's ids, as bytes
    train-00000-of-00004.array_record.json   its counts and checksum; written when it is whole
    manifest.json                            all of these; written last: without it, no cache

A document keeps its place, also one that is blank or dropped (it has no ids): batches from the
cache are those from the text, bit for bit. EOS is not stored, the objective decides on it.
"""

import concurrent.futures
import functools
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5x_lite import evidence
from t5x_lite.data.file_bytes import file_version
from t5x_lite.data.files import is_url, local_copy, written_whole
from t5x_lite.data.record_files import open_array_record
from t5x_lite.data.source import Record, Source
from t5x_lite.errors import UserError

if TYPE_CHECKING:
    from t5x_lite.data.tasks import Task

_VERSION = 1
_SHARD_BYTES = 256 << 20  # of text


class CachedTokens(Source):
    """The documents of a task as token ids, from a folder that `t5x_lite data cache` made.

    Put it in the place of the task's source; nothing else of the task changes. Its fingerprint is
    the source's, so a run may go over to a cache, or back, at any step.

    Args:
      path: the folder of one task; local or a URL.
      source: the task's source, to refuse a cache that was made of another one. None: not checked.

    Raises UserError on first use: no cache, an unfinished or damaged one, or one of another
    source, vocabulary or other preprocessors than the task's.
    """

    tokenized = True

    def __init__(self, path: str, source: Source | None = None):
        self.path, self.source = os.fspath(path).rstrip("/"), source

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        manifest = _read_json(self.path, "manifest.json")
        if manifest is None:
            found = "an unfinished cache" if _read_json(self.path, "plan.json") else "no cache"
            raise UserError(f"{self.path} holds {found}; run t5x_lite data cache, it continues.")
        if manifest["version"] != _VERSION:
            raise UserError(
                f"{self.path} has version {manifest['version']} of the format, expected {_VERSION};"
                " make it again with t5x_lite data cache."
            )
        if self.source is not None and self.source.fingerprint != manifest["source"]:
            raise UserError(
                f"{self.path} was made from a source of fingerprint {manifest['source']}, this one "
                f"has {self.source.fingerprint}; make the cache again, in another folder."
            )
        return manifest

    def check(self, task: "Task") -> None:
        """Raises UserError if it was made for another vocabulary or other preprocessors."""
        manifest, found = self.manifest, task.vocabulary.fingerprint
        if manifest["vocabulary"] != found:
            raise UserError(
                f"{self.path} was made with a vocabulary of fingerprint {manifest['vocabulary']}, "
                f"that of task {task.name!r} has {found}; make the cache again, in another folder."
            )
        if manifest["preprocessors"] != task.steps:
            raise UserError(
                f"{self.path} was made with the preprocessors {manifest['preprocessors']}, task "
                f"{task.name!r} has {task.steps}; make the cache again, in another folder."
            )

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifest["splits"])

    def _split(self, name: str) -> Source:
        return _CachedSplit(self, name)

    @functools.cached_property
    def _train(self) -> Source:
        return self.split("train")

    def __len__(self) -> int:
        return len(self._train)

    def __getitem__(self, index: int) -> Record:
        return self._train[index]

    @property
    def num_files(self) -> int:
        return sum(len(split["shards"]) for split in self.manifest["splits"].values())

    @property
    def num_bytes(self) -> int:
        return self._train.num_bytes

    @property
    def fingerprint(self) -> str:
        return self.manifest["source"]

    def describe(self) -> dict[str, Any]:
        tokens = {name: split["tokens"] for name, split in self.manifest["splits"].items()}
        return super().describe() | {"tokens": tokens}

    def __getstate__(self):
        return {"path": self.path, "source": self.source}

    def verify(self) -> None:
        """Reads all files; UserError names the first whose checksum isn't the manifest's."""
        for split in self.manifest["splits"].values():
            for shard in split["shards"]:
                path = local_copy(f"{self.path}/{shard['file']}")
                if _checksum(path) != shard["checksum"]:
                    raise UserError(
                        f"{path} is damaged: its checksum has changed; delete it, its .json and "
                        "manifest.json, and run t5x_lite data cache."
                    )


class _CachedSplit(Source):
    def __init__(self, cache: CachedTokens, name: str):
        self.cache, self.name, self.splits = cache, name, (name,)
        manifest = cache.manifest
        entry = manifest["splits"][name]
        self.num_bytes, self.num_files = entry["text_bytes"], len(entry["shards"])
        self._keys, self._dtype = manifest["keys"], np.dtype(manifest["dtype"])
        self._shards = entry["shards"]
        self._ends = np.cumsum([shard["documents"] for shard in self._shards])
        self._begins = self._ends - [shard["documents"] for shard in self._shards]
        self._open_shard = functools.lru_cache(maxsize=256)(self._reader)
        self._opened: dict[int, tuple[str, tuple[int, int, int]]] = {}  # path, version

    def __getstate__(self):
        return {"cache": self.cache, "name": self.name}

    def __setstate__(self, state):
        self.__init__(**state)

    def _reader(self, number: int) -> Any:
        shard = self._shards[number]
        path = local_copy(f"{self.cache.path}/{shard['file']}")
        size = os.path.getsize(path) if evidence.exists(path) else 0
        if size != shard["size"]:
            raise UserError(
                f"{path} has {size:,} bytes, expected {shard['size']:,}; delete it, manifest.json "
                "and its .json, and run t5x_lite data cache."
            )
        self._opened[number] = (path, file_version(path))
        return open_array_record(path)

    @property
    def fingerprint(self) -> str:
        return self.cache.fingerprint

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Record:
        shard = int(self._ends.searchsorted(index, "right"))
        data = self._open_shard(shard).read([int(index - self._begins[shard])])[0]
        # Each time: of a file that was cut short, the reader gives empty records without an error.
        path, version = self._opened[shard]
        if not evidence.exists(path) or file_version(path) != version:
            self._check_shard(shard)
        return _unpack_record(data, self._keys, self._dtype)

    def _check_shard(self, number: int) -> None:
        """Of a shard that was written to: UserError unless its content is what it was."""
        path = self._opened[number][0]
        if not evidence.exists(path) or _checksum(path) != self._shards[number]["checksum"]:
            raise UserError(
                f"{path} has changed while it was in use; bring it back, and the same command "
                "continues the run, or make the cache again: t5x_lite data cache."
            )
        self._opened[number] = (path, file_version(path))


def _pack_record(fields: Mapping[str, np.ndarray], dtype: np.dtype) -> bytes:
    """Ids of one field; of several, their lengths (uint32) in front. A dropped record: nothing."""
    ids = b"".join(tokens.astype(dtype).tobytes() for tokens in fields.values())
    if len(fields) == 1:
        return ids
    return np.array([len(x) for x in fields.values()], "<u4").tobytes() + ids


def _unpack_record(data: bytes, keys: list[str], dtype: np.dtype) -> Record:
    if len(keys) == 1:
        return {keys[0]: np.frombuffer(data, dtype).astype(np.int32)}
    if not data:
        return {}
    ends = np.frombuffer(data, "<u4", len(keys)).cumsum()
    ids = np.frombuffer(data, dtype, offset=4 * len(keys)).astype(np.int32)
    return dict(zip(keys, np.split(ids, ends[:-1]), strict=True))


def _read_json(folder: str, name: str) -> Any:
    path = f"{folder}/{name}"
    try:
        with open(local_copy(path)) as f:
            return json.load(f)
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as e:
        raise UserError(f"{path} is damaged ({e}); delete it and run t5x_lite data cache.") from e


def _checksum(path: str) -> str:
    blake2b = functools.partial(hashlib.blake2b, digest_size=16)
    with open(path, "rb") as f:
        return hashlib.file_digest(f, blake2b).hexdigest()


# ---- writing


def write_cache(
    task: "Task",
    folder: str | os.PathLike,
    *,
    shards: int | None = None,
    num_workers: int = 0,
    say: Callable[[str], Any] = print,
) -> CachedTokens:
    """Writes all splits of a task; continues what an interrupted call left, shard by shard.

    shards: files for the training split; by default one for 256 MB of text.
    num_workers: processes; 0 works in this one.

    Raises UserError if the folder has the cache of another source, vocabulary or preprocessors
    (all fingerprints are named), or if it isn't local.
    """
    if is_url(os.fspath(folder)):
        raise UserError(f"a cache is written to a local folder, not {folder}; copy it there after.")
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(task, shards)
    found = _read_json(str(folder), "plan.json")
    if found is None:
        _write_json(folder / "plan.json", plan)
    else:
        _check_same(folder, found, plan)
        plan = found
    if (folder / "manifest.json").exists():
        cache = CachedTokens(str(folder))
        cache.verify()
        say(f"{folder}: whole already, checksums are right")
        return cache
    for temporary in folder.glob(".*.array_record.*"):  # of a process that was killed
        temporary.unlink()
    jobs = [
        (task, split, first, last, str(folder / name))
        for split, parts in plan["parts"].items()
        for name, first, last in parts
    ]
    left = [job for job in jobs if not os.path.exists(job[-1] + ".json")]
    if len(left) < len(jobs):
        say(f"{folder}: continuing, {len(jobs) - len(left)} of {len(jobs)} files are there")
    for path in _run(left, num_workers):
        entry = json.loads(Path(path + ".json").read_text())
        say(f"{path}: {entry['documents']:,} documents, {entry['tokens']:,} tokens")
    _write_json(folder / "manifest.json", _manifest(task, folder, plan))
    return CachedTokens(str(folder))


def _plan(task: "Task", shards: int | None) -> dict[str, Any]:
    parts = {}
    for name in task.source.splits:
        records = task.source.split(name)
        count = max(1, math.ceil(records.num_bytes / _SHARD_BYTES))
        if shards is not None and name == "train":
            count = shards
        ends = [len(records) * i // count for i in range(count + 1)]
        names = [f"{name}-{i:05}-of-{count:05}.array_record" for i in range(count)]
        parts[name] = [list(part) for part in zip(names, ends[:-1], ends[1:], strict=True)]
    return {
        "version": _VERSION,
        "source": task.source.fingerprint,
        "vocabulary": task.vocabulary.fingerprint,
        "preprocessors": task.steps,
        "keys": list(_keys(task) or ("text",)),
        "dtype": "<u2" if task.vocabulary.size <= 1 << 16 else "<i4",
        "parts": parts,
    }


def _keys(task: "Task") -> tuple[str, ...] | None:
    """Keys of a record that is an example; None: documents of running text."""
    objective = task.objective
    lengths = dict.fromkeys(objective.features, 4096)  # any: whether it is None is what counts
    if objective.segment_length(lengths) is not None:
        return None
    return getattr(objective, "reads", objective.features)


def _fields(task: "Task", records: Source, index: int, keys) -> dict[str, np.ndarray]:
    if keys is not None:
        return task.fields(records, index)
    tokens = task.document(records, index)
    return {"text": tokens[:-1] if task.objective.document_eos else tokens}


def _check_same(folder: Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    for name in ("version", "source", "vocabulary", "preprocessors", "keys"):
        if found[name] != plan[name]:
            kind = "fingerprint " if name in ("source", "vocabulary") else ""
            raise UserError(
                f"{folder} is the cache of another {name}: {kind}{found[name]}, this task's is "
                f"{plan[name]}; take another folder."
            )


def _run(jobs: list[tuple], num_workers: int):
    if num_workers < 1 or len(jobs) < 2:
        for job in jobs:
            yield _write_shard(*job)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        for done in concurrent.futures.as_completed([pool.submit(_write_shard, *j) for j in jobs]):
            yield done.result()


def _write_shard(task: "Task", split: str, first: int, last: int, path: str) -> str:
    from array_record.python import array_record_module

    dtype = np.dtype("<u2" if task.vocabulary.size <= 1 << 16 else "<i4")
    records, keys, tokens = task.source.split(split), _keys(task), 0
    with written_whole(path) as temporary:
        # One record a group: documents are read one by one, in any order.
        writer = array_record_module.ArrayRecordWriter(temporary, "group_size:1")
        for index in range(first, last):
            fields = _fields(task, records, index, keys)
            tokens += sum(len(ids) for ids in fields.values())
            writer.write(_pack_record(fields, dtype) if fields else b"")
        writer.close()
        entry = {
            "file": os.path.basename(path),
            "documents": last - first,
            "tokens": tokens,
            "size": os.path.getsize(temporary),
            "checksum": _checksum(temporary),
        }
    _write_json(Path(path + ".json"), entry)
    return path


def _manifest(task: "Task", folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    splits = {}
    for split, parts in plan["parts"].items():
        shards = [json.loads((folder / f"{name}.json").read_text()) for name, _, _ in parts]
        splits[split] = {
            "documents": sum(shard["documents"] for shard in shards),
            "tokens": sum(shard["tokens"] for shard in shards),
            "text_bytes": task.source.split(split).num_bytes,
            "shards": shards,
        }
    header = {k: v for k, v in plan.items() if k != "parts"}
    return header | {"task": task.name, "splits": splits}


def _write_json(path: Path, content: Any) -> None:
    with written_whole(path) as temporary, open(temporary, "w") as f:
        json.dump(content, f, indent=1)
        f.write("\n")
