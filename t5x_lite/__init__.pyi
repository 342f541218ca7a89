# What __init__.py loads when it is first used, for type checkers and editors.
from t5x_lite.data.hub_source import HuggingFace as HuggingFace
from t5x_lite.data.loader import BatchLoader as BatchLoader, eval_batches as eval_batches
from t5x_lite.data.objectives.lm import (
    CausalLM as CausalLM,
    PrefixLM as PrefixLM,
    TextToText as TextToText,
)
from t5x_lite.data.objectives.span import SpanCorruption as SpanCorruption
from t5x_lite.data.open_files import open_files as open_files
from t5x_lite.data.parquet import Parquet as Parquet
from t5x_lite.data.record_files import ArrayRecords as ArrayRecords, TfRecords as TfRecords
from t5x_lite.data.sentencepiece_training import train_sentencepiece as train_sentencepiece
from t5x_lite.data.sources import (
    FromFunction as FromFunction,
    InMemory as InMemory,
    PythonLibrary as PythonLibrary,
)
from t5x_lite.data.tables import Delimited as Delimited, JsonLines as JsonLines
from t5x_lite.data.tasks import Mixture as Mixture, Task as Task
from t5x_lite.data.text_files import ParallelFiles as ParallelFiles, TextFiles as TextFiles
from t5x_lite.data.tfds_source import Tfds as Tfds
from t5x_lite.data.token_cache import CachedTokens as CachedTokens
from t5x_lite.data.trained_vocabulary import TrainedVocabulary as TrainedVocabulary
from t5x_lite.data.vocabulary import (
    ByteVocabulary as ByteVocabulary,
    SentencePieceVocabulary as SentencePieceVocabulary,
)
from t5x_lite.errors import UserError as UserError
from t5x_lite.inference.decoding import generate as generate
from t5x_lite.interop.pretrained import (
    from_pretrained as from_pretrained,
    save_pretrained as save_pretrained,
)
from t5x_lite.models.config import TransformerConfig as TransformerConfig
from t5x_lite.models.model import Model as Model
from t5x_lite.parallel.mesh import MeshConfig as MeshConfig, make_mesh as make_mesh
from t5x_lite.parallel.rules import use_mesh as use_mesh
from t5x_lite.registry import register as register
from t5x_lite.training.optimizers import (
    Adafactor as Adafactor,
    AdamW as AdamW,
    Lion as Lion,
    Muon as Muon,
)
from t5x_lite.training.schedules import cosine as cosine
from t5x_lite.training.setup import set_up as set_up
from t5x_lite.training.state import (
    TrainState as TrainState,
    abstract_state as abstract_state,
    init_state as init_state,
)
from t5x_lite.training.step import (
    Loss as Loss,
    make_eval_step as make_eval_step,
    make_train_step as make_train_step,
)

__version__: str
