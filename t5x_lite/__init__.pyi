# What __init__.py loads when it is first used, for type checkers and editors.
from t5x_lite.data.loader import BatchLoader as BatchLoader, eval_batches as eval_batches
from t5x_lite.data.objectives import (
    CausalLM as CausalLM,
    PrefixLM as PrefixLM,
    SpanCorruption as SpanCorruption,
    TextToText as TextToText,
)
from t5x_lite.data.sources import (
    ArrayRecords as ArrayRecords,
    CachedTokens as CachedTokens,
    Delimited as Delimited,
    FromFunction as FromFunction,
    HuggingFace as HuggingFace,
    InMemory as InMemory,
    JsonLines as JsonLines,
    ParallelFiles as ParallelFiles,
    Parquet as Parquet,
    PythonLibrary as PythonLibrary,
    TextFiles as TextFiles,
    Tfds as Tfds,
    TfRecords as TfRecords,
    open_files as open_files,
)
from t5x_lite.data.tasks import Mixture as Mixture, Task as Task
from t5x_lite.data.sentencepiece_training import train_sentencepiece as train_sentencepiece
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
from t5x_lite.models import Model as Model, TransformerConfig as TransformerConfig
from t5x_lite.parallel.mesh import MeshConfig as MeshConfig, make_mesh as make_mesh
from t5x_lite.parallel.rules import use_mesh as use_mesh
from t5x_lite.registry import register as register
from t5x_lite.training.setup import set_up as set_up
from t5x_lite.training.optimizers import (
    Adafactor as Adafactor,
    AdamW as AdamW,
    Lion as Lion,
    Muon as Muon,
)
from t5x_lite.training.schedules import cosine as cosine
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
