"""The door: weights from wherever they are, as a model, a run's parameters, or another format."""

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from t5x_lite.data.chat import ChatTemplate
from t5x_lite.data.tokenizer_settings import IDS
from t5x_lite.errors import UserError
from t5x_lite.interop import (
    fusing,
    huggingface,
    origin,
    peft,
    runs,
    swapped_rows,
    t5x,
    tokenizer_files,
)
from t5x_lite.interop.tensors import Tensor, cast, finite, whole
from t5x_lite.interop.weight_maps import Shape
from t5x_lite.models import adapters
from t5x_lite.models.config import TransformerConfig
from t5x_lite.models.model import Model
from t5x_lite.parallel.rules import MeshAxes
from t5x_lite.training import checkpoint_layout as layout
from t5x_lite.training import checkpoints
from t5x_lite.training.state import abstract_params

# The settings that make two models with the same weights compute different things.
_MEANING = (
    "architecture",
    "mlp_activations",
    "norm",
    "norm_epsilon",
    "norm_placement",
    "norm_scale_from_one",
    "embedding_norm",
    "token_types",
    "encoder_heads",
    "positions",
    "scale_attention",
    "qk_norm",
    "attention_soft_cap",
    "logits_soft_cap",
    "tied_embeddings",
    "scale_embeddings",
    "attention_window",
    "full_attention_every",
    "relative_bias_per_layer",
    "num_experts",
    "use_bias",
    "num_heads",
    "head_dim",
    "kv_heads",
)
_MEANING_IF = {  # of those that matter to some models only
    "relative_buckets": lambda c: c.positions == "relative",
    "relative_max_distance": lambda c: c.positions == "relative",
    "rope_theta": lambda c: c.positions == "rope",
    "rope_scaling": lambda c: c.positions == "rope",
    "local_rope_theta": lambda c: c.positions == "rope",
    "attention_scalar": lambda c: c.scale_attention,
    "experts_per_token": lambda c: c.num_experts > 0,
    "normalize_expert_weights": lambda c: c.num_experts > 0,
    "scale_tied_logits": lambda c: c.tied_embeddings,
}


class Source(NamedTuple):
    """Weights that aren't in memory yet.

    kind: "huggingface", "t5x" or "t5x_lite". exact: whether `config` was written down beside the
    weights, not guessed from their shapes. dtype: of the largest parameter. given: the vocabulary
    that they were opened with, if one was.
    """

    kind: str
    path: str
    config: TransformerConfig
    exact: bool
    dtype: np.dtype
    reader: Any
    given: Any = None

    def parameters(
        self, shapes: Mapping[str, Shape], dtype: np.dtype | None = None
    ) -> dict[str, Tensor]:
        """The parameters of a model with these shapes by name; UserError if there are others."""
        fused = self.kind == "t5x_lite" and self.config.fused_projections
        if fusing.is_fused(shapes) == fused:
            found = self.reader(shapes, dtype)
        elif fused:
            stored = fusing.fused_shapes(shapes, self.config)
            found = fusing.unfuse_tensors(self.reader(stored, dtype), self.config)
        else:
            stored = fusing.plain_shapes(shapes, self.config)
            found = fusing.fuse_tensors(self.reader(stored, dtype), self.config)
        if self.kind == "huggingface" and dtype is None:
            return found  # whose files' tensors are looked at, by their names
        return {name: finite(tensor, f"{name} of {self.path}") for name, tensor in found.items()}

    def vocabulary(self):
        """What the weights were trained with, or None if no file says it."""
        if self.given is not None:
            return None if self.given == swapped_rows.AS_THEY_ARE else self.given
        if self.kind == "t5x":
            return None
        if self.kind == "huggingface":
            return tokenizer_files.read(Path(self.path), self.config.vocab_size)
        return runs.vocabulary(layout.absolute(self.path), self.config.vocab_size)


def open_source(
    path: str | os.PathLike, config: TransformerConfig | None = None, vocabulary: Any = None
) -> Source:
    """Finds out what a path is, and reads the headers there.

    Args:
      path: a folder of Hugging Face, a checkpoint of T5X (or a folder of some), or a run of this
        package or one of its checkpoints.
      config: the model, where the folder doesn't say it: T5X's.
      vocabulary: what the weights were trained with, where the folder doesn't say it; "none": their
        ids are taken as they are (see `swapped_rows.row_of`).

    Raises:
      UserError: it is none of these, or damaged, or a model that can't be expressed here.
    """
    path = os.fspath(path)
    if "://" not in path and huggingface.is_folder(Path(path).expanduser()):
        if config is not None:
            raise UserError(f"{path} has a config.json, which says what model it is: no --config.")
        folder = huggingface.read(Path(path).expanduser())
        dtype = max(folder.tensors.values(), key=lambda t: np.prod(t.shape)).dtype
        read = folder.parameters
        if row := swapped_rows.row_of(folder.path, folder.config, vocabulary):
            read = lambda s, d=None: swapped_rows.swapped(  # noqa: E731
                folder.parameters(s, d), folder.config, row
            )
        return Source("huggingface", str(folder.path), folder.config, True, dtype, read, vocabulary)
    if "://" not in path and (found := t5x.find(Path(path).expanduser())) is not None:
        tensors = t5x.read(found)
        chosen = config or t5x.guess_config(tensors, found)
        dtype = max(tensors.values(), key=lambda t: np.prod(t.shape)).dtype
        read = lambda s, d=None: t5x.parameters(tensors, s, chosen, found, d)  # noqa: E731
        return Source("t5x", str(found), chosen, config is not None, dtype, read, vocabulary)
    found = layout.find_checkpoint(layout.absolute(path))
    source = runs.Checkpoint(found)
    chosen = config or source.config
    return Source("t5x_lite", str(path), chosen, True, source.dtype, source.parameters, vocabulary)


def is_foreign(path: str | os.PathLike) -> bool:
    """Whether there are weights of another program at a path."""
    if "://" in os.fspath(path):
        return False
    path = Path(path).expanduser()
    return huggingface.is_folder(path) or t5x.find(path) is not None


def restore_params(
    path: str | os.PathLike,
    abstract: Any,
    include: str | None = None,
    *,
    model: TransformerConfig,
    start: bool = False,
    vocabulary: Any = None,
    values: bool = True,
) -> dict[str, Any]:
    """`checkpoints.restore_params`, from folders of Hugging Face and checkpoints of T5X, too.

    With ``include``, a folder of Hugging Face may be another model, as long as it has these
    parameters: an encoder-decoder's encoder, or BERT without its heads. Each device reads its own
    part. With ``start``, weights needn't have the model's adapters: these are left out then, and
    LoRAs that the weights have are merged into them. ``vocabulary`` is what the model reads:
    weights that come without one are taken to be for it. Raises UserError also if ``model`` has
    settings with which those weights would compute something else (of T5X's only the shapes can be
    checked).
    """
    there = () if is_foreign(path) else runs.adapters_of(path)
    if start and there != model.adapters:
        abstract = adapters.base_of(abstract)
        model = dataclasses.replace(model, adapters=())
    if is_foreign(path) and model.adapters:
        raise UserError(f"{path} has no adapters, and this model has: train it, or leave them out.")
    wanted, stored = layout.by_name(abstract), model
    if not is_foreign(path):
        merged = bool(there) and not model.adapters
        if not merged and runs.is_fused(path) == model.fused_projections:
            return checkpoints.restore_params(path, abstract, include, values=values)
        stored = dataclasses.replace(model, fused_projections=runs.is_fused(path))
    folder = Path(path).expanduser()
    foreign = huggingface.is_folder(folder)
    if not foreign or tokenizer_files.swapped_row_of(folder) is not None:
        vocabulary = None
    source = open_source(path, None if foreign else stored, vocabulary)
    try:
        pattern = re.compile(include or "")
    except re.error as error:
        raise UserError(f"include={include!r} isn't a regular expression: {error}.") from None
    if source.kind == "huggingface" and include is None:
        require_same_meaning(source.config, model, path)
        require_padding(source.path)
    shapes = {name: leaf.shape for name, leaf in wanted.items()}
    if source.kind == "huggingface" and include is not None:
        theirs = dataclasses.replace(
            source.config,
            scan_layers=model.scan_layers,
            fused_projections=model.fused_projections,
        )
        shapes = huggingface.shapes_of(theirs)
    tensors = source.parameters(shapes)
    chosen = {name: leaf for name, leaf in wanted.items() if pattern.search(name)}
    if not chosen:
        raise UserError(f"include={include!r} matches none of the parameters of {path}.")
    for name, leaf in chosen.items():
        if shapes.get(name) != leaf.shape:
            raise UserError(
                f"{name} is {list(leaf.shape)} here and {list(shapes.get(name, ()))} in {path}: "
                f"make include={include!r} leave it out, or the models alike."
            )
    if not values:
        return {}
    return layout.nested({name: place(tensors[name], leaf) for name, leaf in chosen.items()})


def require_padding(folder: str) -> None:
    """UserError if the weights know id 0, which is padding here, as ordinary text.

    A vocabulary here gives that text another id, of which these weights know nothing, and a model
    puts probability on id 0: training and decoding would go on, and be wrong.
    """
    if (text := tokenizer_files.text_at_zero(Path(folder))) is not None:
        raise UserError(
            f"the tokenizer in {folder} has text ({text!r}) at id 0, which is padding here: these "
            f"weights can be converted and read from Python, not trained or run. What isn't bound "
            f"to ids can be taken: train.initial_params = 'layers|decoder_norm'."
        )


def require_same_meaning(found: TransformerConfig, wanted: TransformerConfig, path: Any) -> None:
    """UserError naming the first settings in which two models would compute different things."""
    names = [*_MEANING, *(name for name, matters in _MEANING_IF.items() if matters(wanted))]
    said = [
        f"{name} is {getattr(wanted, name)!r} here and {getattr(found, name)!r} there"
        for name in names
        if getattr(found, name) != getattr(wanted, name)
    ]
    if said:
        raise UserError(f"the model of {path} is another: {'; '.join(said[:3])}.")


def place(tensor: Tensor, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads a tensor into a leaf's sharding and dtype, every device its own part, once."""
    sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
    read: dict[Any, np.ndarray] = {}

    def part(index) -> np.ndarray:
        index = whole(leaf.shape, index)
        key = tuple((s.start, s.stop) for s in index)
        if key not in read:
            read[key] = np.ascontiguousarray(tensor.read(index).astype(leaf.dtype, copy=False))
        return read[key]

    return jax.make_array_from_callback(leaf.shape, sharding, part)


def from_pretrained(
    path: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    rules: Mapping[str, MeshAxes] | None = None,
    param_dtype: Any = "float32",
    config: TransformerConfig | None = None,
    vocabulary: Any = None,
    **settings: Any,
) -> tuple[Model, dict[str, Any], Any]:
    """Returns (model, parameters, vocabulary) of a folder of weights.

    Args:
      path: see `open_source`.
      mesh, rules: where the parameters go (see `make_mesh`); None: to the first device.
      param_dtype: of the parameters.
      config: the model, where the folder doesn't say it (T5X).
      vocabulary: what the weights were trained with, where the folder doesn't say it; "none" takes
        their ids as they are.
      settings: of TransformerConfig that change no number, such as remat="full", dtype="float32" or
        scan_layers=False.

    Returns:
      The model; its parameters, a nested dict; and the vocabulary, None if the folder has none.

    Raises:
      UserError: see `open_source`.
    """
    source = open_source(path, config, vocabulary)
    changed = [name for name in settings if name in (*_MEANING, *_MEANING_IF, "adapters")]
    if changed:
        raise UserError(f"{changed[0]} is what the weights in {path} make it; it can't be chosen.")
    chosen = dataclasses.replace(source.config, **settings)
    model = Model(chosen, _attention(source))
    if mesh is None:
        abstract = model.abstract_params()
    else:
        abstract = abstract_params(model, mesh, rules or {})
    wanted = layout.by_name(abstract)
    tensors = source.parameters({name: leaf.shape for name, leaf in wanted.items()})
    dtype = dtype_named(np.dtype(param_dtype).name)

    def placed(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        tensor = tensors[name]
        if dtype.itemsize < tensor.dtype.itemsize:  # what may be too large for it
            tensor = finite(cast(tensor, dtype), f"{name} of {path} as {dtype.name}")
        return place(tensor, jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding))

    params = {name: placed(name, leaf) for name, leaf in wanted.items()}
    return model, layout.nested(params), source.vocabulary()


def _attention(source: Source) -> str | None:
    found = origin.origin_of(source.path, source.config.architecture, source.config.vocab_size)
    return found.reading.attention if found.reading is not None else None


def save_pretrained(
    path: str | os.PathLike,
    model: Model,
    params: Mapping[str, Any],
    vocabulary: Any = None,
    *,
    dtype: Any = "float32",
    as_causal: bool = False,
    template: ChatTemplate | None = None,
) -> None:
    """Writes a model as a new folder that `AutoModel*.from_pretrained` and `AutoTokenizer` open.

    LoRAs are merged into its matrices.

    The class is T5ForConditionalGeneration, LlamaForCausalLM, Qwen3ForCausalLM,
    GPT2LMHeadModel, Gemma3ForCausalLM, MixtralForCausalLM, BertForPreTraining, ..., by the model's
    settings. ``vocabulary`` None: no tokenizer files are written. ``as_causal``: as of `convert`.
    ``template``: of the conversations that it was trained on; None: the vocabulary's own.

    Raises:
      UserError: the folder exists, or no class of Hugging Face computes what the model does.
    """
    origin.require_exportable(model.prompts, "the model", as_causal)
    model, params = model.merged(dict(params))
    named = layout.by_name(params)
    huggingface.write(
        path,
        model.config,
        lambda name: np.asarray(named[name]),
        {name: leaf.shape for name, leaf in named.items()},
        vocabulary=vocabulary,
        template=template,
        dtype=dtype,
    )


def dtype_named(name: str) -> np.dtype:
    """A dtype that weights may be written in; UserError for others."""
    names = ("float32", "bfloat16", "float16")
    if name not in names:
        raise UserError(f"dtype {name!r}: expected one of {', '.join(names)}.")
    return np.dtype(jnp.dtype(name))


def convert(
    source: Source,
    to: str | os.PathLike,
    kind: str,
    *,
    dtype: Any = None,
    vocabulary: Any = None,
    as_causal: bool = False,
) -> None:
    """Writes a source's weights in another format, holding about one parameter at a time.

    Args:
      to: a new folder.
      kind: "huggingface"; "t5x_lite": a run's folder with checkpoints/0 in it; or "peft": the
        LoRAs of a run alone.
      dtype: of what is written; None: the source's.
      vocabulary: to be written with it; None: the source's for Hugging Face, if it has one.
      as_causal: write a prefix LM for transformers, too, whose decoders have another mask.

    Raises UserError for such a model without it, before anything is written.
    """
    dtype = np.dtype(dtype or source.dtype)
    rows = source.config.vocab_size
    reading = origin.origin_of(source.path, source.config.architecture, rows).reading
    if kind != "t5x_lite" and reading is not None:
        origin.require_exportable(reading.attention, source.path, as_causal)
    if kind == "peft":
        if source.kind != "t5x_lite":
            raise UserError(f"--format=peft: {source.path} isn't a run with LoRA.")
        peft.write(to, source.path, dtype)
        return
    shapes = huggingface.shapes_of(source.config)
    if kind == "huggingface":
        if vocabulary is None and source.kind == "huggingface":
            vocabulary = source.vocabulary()  # whose places of ids the parameters have
        tensors = source.parameters(shapes)  # cast as they are written, layer by layer
        read = lambda name: tensors[name].all()  # noqa: E731
        huggingface.write(
            to, source.config, read, shapes, vocabulary=vocabulary, dtype=dtype,
            template=reading.template if reading is not None and reading.marks else None,
        )  # fmt: skip
        return
    tensors = source.parameters(shapes, dtype)
    with huggingface.new_folder(to) as folder:
        note: dict[str, Any] = {"converted_from": source.path}
        if reading is not None:
            note["reading"] = reading.record()
        if vocabulary is not None:
            ids = tokenizer_files.write(vocabulary, folder, source.config)
            huggingface.write_json(folder / IDS, ids)
            written = tokenizer_files.read(folder, rows)  # perhaps with another post-processor
            note["vocabulary"] = (written or vocabulary).fingerprint
        runs.write(folder, tensors, source.config, note)
        (folder / "model.gin").write_text(runs.gin_text(source.config, source.path))
        if vocabulary is None and source.kind == "huggingface" and source.given is None:
            for name in tokenizer_files.FILES:
                if (Path(source.path) / name).is_file():
                    shutil.copyfile(Path(source.path) / name, folder / name)
