"""t5x_lite: raw text to a trained, evaluated Transformer language model, in JAX.

Importing the package imports nothing heavy: each name below loads its module when first used.
"""

import importlib

__version__ = "0.1.0"

# name -> the module that defines it
_NAMES = {
    "UserError": "errors",
    "register": "registry",
    "Model": "models.model",
    "TransformerConfig": "models.config",
    "Task": "data.tasks",
    "Mixture": "data.tasks",
    "SentencePieceVocabulary": "data.vocabulary",
    "ByteVocabulary": "data.vocabulary",
    "train_sentencepiece": "data.sentencepiece_training",
    "SpanCorruption": "data.objectives.span",
    "CausalLM": "data.objectives.lm",
    "PrefixLM": "data.objectives.lm",
    "TextToText": "data.objectives.lm",
    "PythonLibrary": "data.sources",
    "TextFiles": "data.text_files",
    "Tfds": "data.tfds_source",
    "InMemory": "data.sources",
    "ArrayRecords": "data.record_files",
    "CachedTokens": "data.token_cache",
    "Delimited": "data.tables",
    "FromFunction": "data.sources",
    "HuggingFace": "data.hub_source",
    "JsonLines": "data.tables",
    "ParallelFiles": "data.text_files",
    "Parquet": "data.parquet",
    "TfRecords": "data.record_files",
    "open_files": "data.open_files",
    "TrainedVocabulary": "data.trained_vocabulary",
    "BatchLoader": "data.loader",
    "eval_batches": "data.loader",
    "make_mesh": "parallel.mesh",
    "MeshConfig": "parallel.mesh",
    "use_mesh": "parallel.rules",
    "cosine": "training.schedules",
    "abstract_state": "training.state",
    "init_state": "training.state",
    "set_up": "training.setup",
    "from_pretrained": "interop.pretrained",
    "save_pretrained": "interop.pretrained",
    "generate": "inference.decoding",
    "Adafactor": "training.optimizers",
    "AdamW": "training.optimizers",
    "Lion": "training.optimizers",
    "Muon": "training.optimizers",
    "Loss": "training.step",
    "TrainState": "training.state",
    "make_train_step": "training.step",
    "make_eval_step": "training.step",
}
_MODULES = (
    "config",
    "data",
    "errors",
    "evaluation",
    "inference",
    "interop",
    "models",
    "parallel",
    "training",
)

__all__ = ["__version__", *_NAMES]


def __getattr__(name: str):
    if name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_NAMES, *_MODULES})
