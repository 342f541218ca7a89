"""What a family of models on Hugging Face has to say about itself."""

import abc
from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.interop.fields import Fields
from t5x_lite.interop.tensors import Tensors
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models.config import TransformerConfig

# Their names of activations (transformers.activations.ACT2FN) -> ours. "gelu" is the error
# function's there, the tanh form here. All others there are other functions: none may be taken for
# one of these.
ACTIVATIONS = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu_exact"),
    **dict.fromkeys(
        ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu"
    ),
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "linear": "linear",
}
# ... and ours -> theirs.
ACTIVATION_NAMES = {"gelu": "gelu_new", "gelu_exact": "gelu", "relu": "relu", "silu": "silu"}


class Family(abc.ABC):
    """Configuration and weights of some model types, both ways."""

    model_types: tuple[str, ...]

    @abc.abstractmethod
    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        """config.json -> arguments of TransformerConfig.

        ``tensors``: the names of the weights, as transformers 5 ties by what a file holds.
        Raises UserError for what can't be expressed here.
        """

    @abc.abstractmethod
    def obstacle(self, config: TransformerConfig) -> str | None:
        """Why a model can't be one of this family, as "positions = 'rope'"; None if it can."""

    @abc.abstractmethod
    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """The config.json of a model without an obstacle, "architectures" among it."""

    @abc.abstractmethod
    def rules(self, config: TransformerConfig) -> list[Rule]:
        """The weights' table for this model."""

    def repeated(self, config: TransformerConfig) -> list[Rule]:
        """Tensors that are written, though others hold the same, for readers that want them."""
        return []

    def renamed(self, tensors: Tensors) -> Tensors:
        """A file's tensors under the names that the rules use, where files differ in that."""
        return tensors

    def ignored(self, config: TransformerConfig) -> Sequence[str]:
        """Regular expressions of tensors that hold nothing of their own."""
        return ()

    def copies(self, config: TransformerConfig) -> dict[str, str]:
        """{tensor: the one it must equal if it is there}."""
        return {}


# What most families have no setting for.
_USUAL = dict(
    norm_placement="pre",
    norm_scale_from_one=False,
    scale_embeddings=False,
    attention_scalar=None,
    full_attention_every=None,
    relative_bias_per_layer=False,
    embedding_norm=False,
    token_types=0,
    encoder_heads=((),),
    adapters=((),),
)


def first_obstacle(config: TransformerConfig, **wanted: Any) -> str | None:
    """The first setting that isn't as wanted (a value, or a tuple of values that do)."""
    for name, value in (wanted | {k: v for k, v in _USUAL.items() if k not in wanted}).items():
        found = getattr(config, name)
        if not (found in value if isinstance(value, tuple) else found == value):
            return f"{name} = {found!r}"
    return None
