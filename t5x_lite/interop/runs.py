"""This package's own checkpoints as named tensors, and checkpoints written tensor by tensor."""

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from t5x_lite import config, run_vocabulary
from t5x_lite.data.vocabulary import SentencePieceVocabulary
from t5x_lite.errors import UserError
from t5x_lite.interop import fusing, tokenizer_files
from t5x_lite.interop.tensors import Index, Tensor, cast
from t5x_lite.interop.weight_maps import Shape
from t5x_lite.models import adapters
from t5x_lite.models.config import TransformerConfig
from t5x_lite.training import checkpoint_layout as layout
from t5x_lite.training import verification

STEP = "0"  # of a checkpoint that no training step has made
_TASK = "train.task"
_CHUNK = 64 * 2**20  # bytes that are coded and decoded at a time
_STRETCH = 2**20  # elements


class Checkpoint:
    """A checkpoint of this package; what its model's LoRAs change is read as it is changed."""

    def __init__(self, path: epath.Path):
        self.path = path
        self.description = layout.read_description(path)

    @property
    def config(self) -> TransformerConfig:
        """The model, `recorded`, without LoRAs."""
        kept = tuple(a for a in self.recorded.adapters if not isinstance(a, adapters.LoRA))
        return dataclasses.replace(self.recorded, adapters=kept)

    @property
    def recorded(self) -> TransformerConfig:
        """The model, as it was recorded; UserError if it wasn't, or has settings unknown here."""
        found = self.description.get("run", {}).get("model")
        if not isinstance(found, dict):
            raise UserError(f"{self.path} doesn't say what model it is of: give --config.")
        known = {field.name for field in dataclasses.fields(TransformerConfig)}
        if unknown := sorted(found.keys() - known):
            raise UserError(f"{self.path} is of a model with {unknown[0]!r}, unknown here.")
        return TransformerConfig(**found)

    @property
    def dtype(self) -> np.dtype:
        """Of the token embedding."""
        spec = self.description["arrays"].get("params/token_embedder/embedding", "float32")
        return np.dtype(jnp.dtype(spec.partition("[")[0]))

    def parameters(
        self, shapes: Mapping[str, Shape], dtype: np.dtype | None = None
    ) -> dict[str, Tensor]:
        """The parameters by name. Reading a part of one reads it whole, and checks it."""
        specs = self.description["arrays"]
        saved = {n.removeprefix("params/"): s for n, s in specs.items() if n.startswith("params/")}
        wanted = {n: jax.ShapeDtypeStruct(shape, np.float32) for n, shape in shapes.items()}
        own = {n: spec for n, spec in saved.items() if not n.startswith(f"{adapters.LORA}/")}
        layout.require_same(own, layout.specs(wanted), self.path, dtypes=False)
        tensors = {name: self._tensor(name, spec) for name, spec in own.items()}
        for name, (a, b, scale) in self.lora().items():
            tensors[name] = _changed(tensors[name], a, b, scale)
        return {name: cast(tensor, dtype) for name, tensor in tensors.items()}

    def lora(self) -> dict[str, tuple[Tensor, Tensor, float]]:
        """(A, B, scale) of each parameter that the model's LoRAs change, by its name."""
        prefix = f"params/{adapters.LORA}/"
        specs = self.description["arrays"]
        names = [n for n in specs if n.startswith(prefix)]
        tree = layout.nested({
            n.removeprefix("params/"): self._tensor(n.removeprefix("params/"), specs[n])
            for n in names
        })  # fmt: skip
        if not tree:
            return {}
        return {name: (a, b, s) for name, a, b, s in adapters.pairs(self.recorded, tree)}

    def _tensor(self, name: str, spec: str) -> Tensor:
        dtype, _, sizes = spec.removesuffix("]").partition("[")
        shape = tuple(int(size) for size in sizes.split(",") if size)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        abstract = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=device)
        full = f"params/{name}"

        def read(index: Index) -> np.ndarray:
            with _partial_load():
                request = {"state": layout.nested({full: abstract})}
                found = layout.by_name(layout.load(self.path, request)["state"])
            value = np.asarray(found.pop(full))
            _let_go(value.nbytes)  # what has read it is in cycles, with copies of it
            wanted = self.description.get("checksums", {}).get(full)
            if wanted is not None and checksum(value)[0] != wanted:
                raise verification.Damaged(
                    f"The checkpoint {self.path} is damaged: {full} isn't what was saved: its "
                    f"checksum differs."
                )
            return value[index]

        return Tensor(shape, np.dtype(abstract.dtype), read)


def _changed(tensor: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    def read(index: Index) -> np.ndarray:
        value = tensor.read(index)
        return value + adapters.change(a.all(), b.all(), scale)[index].astype(value.dtype)

    return Tensor(tensor.shape, tensor.dtype, read)


def _let_go(size: int) -> None:
    """Gives back what nobody uses: to Python, and from the C library (glibc) to the system.

    It takes a while, and isn't worth it after an array of a few bytes.
    """
    if size < _CHUNK // 4:
        return
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def checksum(value: np.ndarray) -> tuple[int, bool]:
    """What `verification.checksums` makes of an array, and whether all of it is finite.

    Stretch by stretch: on a device it takes as much memory again as the array.
    """
    flat, total, finite = value.reshape(-1), 0, True
    unsigned = {2: np.uint16, 4: np.uint32}[value.dtype.itemsize]
    for start in range(0, flat.size, _STRETCH):
        part = flat[start : start + _STRETCH]
        finite = finite and bool(np.isfinite(part).all())
        place = np.arange(start, start + part.size).astype(np.uint32)
        place *= np.uint32(0x9E3779B1)
        place ^= place >> 15
        place *= np.uint32(0x85EBCA6B)
        place |= np.uint32(1)
        place *= part.view(unsigned)
        total += int(np.sum(place, dtype=np.uint32))
    return total % 2**32, finite


def adapters_of(path: str | os.PathLike) -> tuple[adapters.Adapter, ...]:
    """Those of the model of a run or a checkpoint; none if it isn't known what model it is of."""
    found = Checkpoint(layout.find_checkpoint(layout.absolute(os.fspath(path))))
    return found.recorded.adapters if found.description.get("run", {}).get("model") else ()


def is_fused(path: str | os.PathLike) -> bool:
    """Whether a run's checkpoint is of a model with fused projections."""
    found = layout.find_checkpoint(layout.absolute(os.fspath(path)))
    names = layout.read_description(found)["arrays"]
    return fusing.is_fused([name.removeprefix("params/") for name in names])


def _partial_load() -> ocp.Context:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    return context


def write(
    folder: Path, tensors: Mapping[str, Tensor], model: TransformerConfig, note: Mapping[str, Any]
) -> None:
    """Writes ``folder``/checkpoints/0 with these parameters, holding one of them at a time.

    It can start a run (train.initial_checkpoint), not continue one: there is no optimizer state.
    """
    path = layout.absolute(folder) / "checkpoints" / STEP
    path.parent.mkdir(parents=True)
    arrays, sums = {}, {}
    context = ocp.Context()
    context.array.saving.storage_options.chunk_byte_size = _CHUNK
    for name, tensor in tensors.items():
        name, value = f"params/{name}", tensor.all()
        sums[name], finite = checksum(value)
        if not finite:
            raise UserError(f"{name} isn't finite: these weights are of no use.")
        value = jax.device_put(value, jax.local_devices(backend="cpu")[0])
        arrays |= layout.specs({name: value})
        with context:
            ocp.partial.save(path, layout.nested({name: value}))
        size = value.nbytes
        del value
        _let_go(size)  # what has saved it is in cycles that would keep it for a while
    with context:
        ocp.partial.finalize(path)
    record = {
        "step": 0,
        "versions": {},
        "arrays": arrays,
        "checksums": sums,
        "data": False,
        "run": {"model": dataclasses.asdict(model), **note},
    }
    (path / "description").mkdir()
    text = json.dumps(verification.seal(json.loads(json.dumps(record))))
    (path / "description" / layout.DESCRIPTION).write_text(text)
    assert layout.is_whole(path), os.listdir(path)


def vocabulary(path: epath.Path, rows: int) -> Any:
    """The vocabulary of a run: from files in its folder, or else its configuration's.

    None if there is neither. Raises UserError if the configuration's can't be made, or if what is
    there isn't what the weights were trained with. The task's data isn't looked at: it needn't be
    on this machine.
    """
    found = layout.find_checkpoint(path)
    run = layout.read_description(found).get("run", {})
    wanted, other = run.get("vocabulary"), None
    for where, vocabulary in _vocabularies(path, found.parent.parent, rows, run.get("config")):
        if wanted is None or vocabulary.fingerprint == wanted:
            return vocabulary
        other = other or where
    if other is None:
        return None
    raise UserError(
        f"the weights in {found} were trained with another vocabulary than {other} holds now: put "
        f"the run's own file there."
    )


def _vocabularies(
    path: epath.Path, folder: epath.Path, rows: int, text: str | None
) -> Iterator[tuple[Any, Any]]:
    """(where, vocabulary) of all places that may hold a run's, the likeliest first."""
    for place in dict.fromkeys((path, folder)):
        if "://" in str(place):
            continue
        if (file := place / run_vocabulary.MODEL).exists():
            yield file, SentencePieceVocabulary(str(file))
        if known := tokenizer_files.read(Path(place), rows):
            yield place, known
    made = configured(text, "vocabulary", folder) if text else None
    if made is not None:
        yield "its configuration", made


def configured(text: str, parameter: str, folder: epath.Path | None = None) -> Any:
    """What the configuration of the run in a folder binds to a parameter of its (first) task."""
    with config.fresh(), tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "config.gin"
        file.write_text(text)
        (Path(temporary) / "run.json").touch()  # somebody else's, perhaps: it may import nothing
        if folder is not None and "://" not in str(folder):
            run_vocabulary.refer(folder, temporary)
        config.parse([str(file)], root=_TASK)
        for key in config.bound(parameter):  # all tasks of a mixture have the same
            return config.evaluate(key)
    return None


def gin_text(model: TransformerConfig, source: str) -> str:
    """A gin file that makes a model's configuration; defaults are left out."""
    lines = [f"# The model of {source}.", "MODEL = @TransformerConfig()"]
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name == "adapters" and value:  # a soft prompt
            lines += ["TransformerConfig.adapters = [@SoftPrompt()]"]
            lines += [f"SoftPrompt.length = {adapters.prompt_length(model)}"]
        elif value != field.default:
            lines.append(f"TransformerConfig.{field.name} = {value!r}")
    return "\n".join(lines) + "\n"
