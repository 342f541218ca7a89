"""One description for every Transformer in the house."""

import dataclasses

import gin

from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.models.functional.mlp import ACTIVATIONS

ARCHITECTURES = ("encoder_decoder", "decoder_only")
CHOICES = {
    "architecture": ARCHITECTURES,
    "positions": ("relative", "rope", "learned", "none"),
    "norm": ("rms", "layer"),
    "dtype": ("auto", "float32", "bfloat16"),
    "remat": ("none", "full", "dots", "dots_no_batch"),
}


@gin.configurable(module="t5x_lite")
@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape and the flavour of a Transformer. Defaults are T5 1.1's.

    Raises UserError on construction for settings that contradict each other.
    """

    vocab_size: int  # rows of the embedding: the vocabulary's size, rounded up if you like
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_decoder_layers: int
    num_encoder_layers: int = 0
    architecture: str = "encoder_decoder"
    num_kv_heads: int | None = None  # None: as many as heads; fewer: grouped-query attention
    mlp_activations: tuple[str, ...] = ("gelu", "linear")  # two or more: gated
    norm: str = "rms"
    norm_epsilon: float = 1e-6
    positions: str = "relative"
    relative_buckets: int = 32
    relative_max_distance: int = 128
    rope_theta: float = 10_000.0
    max_positions: int = 2048  # rows of the table of positions="learned"; others need none
    scale_attention: bool = False  # logits / sqrt(head_dim); T5 divides its initialiser instead
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    attention_soft_cap: float | None = None
    logits_soft_cap: float | None = None
    tied_embeddings: bool = False
    scale_tied_logits: bool = True  # T5 1.0: logits / sqrt(embed_dim) when tied
    use_bias: bool = False  # on projections
    dropout_rate: float = 0.0
    init_std: float | None = None  # None: T5's initialisers; a number: GPT-2's normal(std)
    dtype: str = "auto"  # of activations; auto: bfloat16 on TPU and GPU, float32 on CPU
    scan_layers: bool = True  # one compiled layer, parameters stacked [layers, ...]
    remat: str = "none"  # what is recomputed in the backward pass; see transformer.py

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for field, choices in CHOICES.items():
            self._check_choice(field, getattr(self, field), choices)
        for activation in self.mlp_activations:
            self._check_choice("mlp_activations", activation, tuple(ACTIVATIONS))
        sizes = ("vocab_size", "embed_dim", "num_heads", "head_dim", "mlp_dim")
        for field in (*sizes, "num_decoder_layers"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} = {getattr(self, field)}: it must be at least 1.")
        if (self.architecture == "encoder_decoder") != (self.num_encoder_layers > 0):
            raise UserError(
                f"architecture {self.architecture!r} with num_encoder_layers = "
                f"{self.num_encoder_layers}: encoder_decoder needs some, decoder_only none."
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"num_heads = {self.num_heads} is not a multiple of num_kv_heads = "
                f"{self.num_kv_heads}: every key/value head serves the same number of heads."
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise UserError(f"head_dim = {self.head_dim} is odd: rope rotates pairs; make it even.")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(f"dropout_rate = {self.dropout_rate}: it must be in [0, 1).")

    @staticmethod
    def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            hint = did_you_mean(str(value), choices)
            raise UserError(f"{field} = {value!r}: expected one of {', '.join(choices)}.{hint}")

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def has_encoder(self) -> bool:
        return self.num_encoder_layers > 0
