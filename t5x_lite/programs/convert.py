"""`t5x_lite convert`: weights from one format to another, tensor by tensor."""

import argparse
import time
from pathlib import Path

import numpy as np

from t5x_lite import config
from t5x_lite.data.huggingface import HuggingFaceVocabulary
from t5x_lite.data.vocabulary import ByteVocabulary, SentencePieceVocabulary, Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.interop import huggingface, pretrained, tokenizer_files
from t5x_lite.interop.pretrained import Source
from t5x_lite.interop.swapped_rows import AS_THEY_ARE
from t5x_lite.interop.weight_maps import Shape
from t5x_lite.models.config import TransformerConfig

_MODEL = "train.model"


def main(args: argparse.Namespace) -> int:
    started = time.monotonic()
    given = read_vocabulary(args.vocabulary) if args.vocabulary else None
    model = read_model(args.config) if args.config else None
    source = pretrained.open_source(args.source, model, given)
    kind = args.format or ("t5x_lite" if source.kind == "huggingface" else "huggingface")
    vocabulary = source.vocabulary()
    if vocabulary is not None:
        tokenizer_files.check_size(vocabulary.size, source.config.vocab_size, "the vocabulary")
    shapes = huggingface.shapes_of(source.config)
    print(f"from {source.path} ({source.kind}): {described(source, shapes)}", flush=True)
    if not source.exact:
        print("  guessed from the shapes; --config=FILE says it for certain", flush=True)
    if vocabulary is None:
        print("  without a vocabulary: none was found; --vocabulary=FILE gives one", flush=True)
    dtype = pretrained.dtype_named(args.dtype) if args.dtype else None
    pretrained.convert(
        source, args.to, kind, dtype=dtype, vocabulary=vocabulary, as_causal=args.as_causal
    )
    size = sum(file.stat().st_size for file in Path(args.to).rglob("*") if file.is_file())
    seconds = time.monotonic() - started
    print(f"to {args.to} ({kind}): {size / 1e6:,.1f} MB in {seconds:.1f} s")
    return 0


def described(source: Source, shapes: dict[str, Shape]) -> str:
    """One line on a model: its architecture, size and dtype."""
    c = source.config
    layers = f"{c.num_decoder_layers or c.num_encoder_layers} layers"
    if c.architecture == "encoder_decoder":
        layers = f"{c.num_encoder_layers} + {layers}"
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    return f"{c.architecture}, {layers}, {count:,} parameters, {np.dtype(source.dtype).name}"


def read_model(file: str) -> TransformerConfig:
    """The model of a config.json, or of a gin file's MODEL. Raises UserError if there is none."""
    if file.endswith(".json"):
        return huggingface.read_config(file)
    with config.fresh():
        config.parse([file], [f"{_MODEL}=%MODEL"], root=_MODEL)
        return config.evaluate(_MODEL)


def read_vocabulary(file: str) -> Vocabulary | str:
    """The vocabulary in a file: a SentencePiece .model, a tokenizer.json, or "bytes"; or "none"."""
    if file == "bytes":
        return ByteVocabulary()
    if file == AS_THEY_ARE:
        return file
    if not Path(file).is_file():
        raise UserError(
            f"--vocabulary={file}: no such file; give a .model, a .json, 'bytes' or 'none'."
        )
    return HuggingFaceVocabulary(file) if file.endswith(".json") else SentencePieceVocabulary(file)
