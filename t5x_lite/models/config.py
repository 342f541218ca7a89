"""One description for every Transformer in the house."""

import dataclasses

from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.models.adapters import Adapter, checked
from t5x_lite.models.functional.attention import IMPLEMENTATIONS
from t5x_lite.models.functional.mlp import ACTIVATIONS
from t5x_lite.ranges import AboveZero, Count, Fraction, NotNegative, Positive

ARCHITECTURES = ("encoder_decoder", "decoder_only", "encoder_only")
ENCODER_HEADS = ("masked_lm", "lm", "pooler", "next_sentence", "classes", "tags", "span")
# What the layers of xlnet.py are, whatever the other defaults.
TRANSFORMER_XL = {
    "norm_placement": "post",
    "norm": "layer",
    "use_bias": "mlp",
    "num_kv_heads": None,
    "qk_norm": False,
    "attention_soft_cap": None,
    "attention_window": None,
    "num_experts": 0,
    "embedding_norm": False,
    "token_types": 0,
    "fused_projections": False,
}
CHOICES = {
    "architecture": ARCHITECTURES,
    "positions": ("relative", "rope", "learned", "none", "transformer_xl"),
    "norm": ("rms", "layer"),
    "norm_placement": ("pre", "post", "both"),
    "dtype": ("auto", "float32", "bfloat16"),
    "remat": (
        "none",
        "full",
        "dots",
        "dots_no_batch",
        "save_qkv",
        "save_attention",
        "minimal",
        "offload",
    ),
    "attention": IMPLEMENTATIONS,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape and the flavour of a Transformer. Defaults are T5 1.1's.

    Raises UserError on construction for settings that contradict each other.
    """

    vocab_size: Positive  # rows of the embedding: the vocabulary's size, rounded up if you like
    embed_dim: Positive
    num_heads: Positive
    head_dim: Positive
    mlp_dim: Positive
    num_decoder_layers: Count
    num_encoder_layers: Count = 0
    architecture: str = "encoder_decoder"
    num_kv_heads: Positive | None = None  # None: as many as heads; fewer: grouped-query attention
    mlp_activations: tuple[str, ...] = ("gelu", "linear")  # two or more: gated
    norm: str = "rms"
    norm_epsilon: NotNegative = 1e-6
    norm_scale_from_one: bool = False  # norms multiply by 1 + what they learn (Gemma)
    norm_placement: str = "pre"  # "post": after each residual sum, and none at the end (BERT);
    # "both": before and after each sublayer (Gemma 2)
    positions: str = "relative"  # "transformer_xl": the two-stream model of xlnet.py
    relative_buckets: Positive = 32
    relative_max_distance: Positive = 128
    relative_bias_per_layer: bool = False  # a table for each layer, not for each stack (umT5)
    rope_theta: AboveZero = 10_000.0
    rope_scaling: tuple | None = None  # such as ("linear", 4.0); see functional/positions.py
    local_rope_theta: AboveZero | None = None  # of layers with a window, unscaled (Gemma 3)
    max_positions: Positive = 2048  # rows of the table of positions="learned"; others need none
    scale_attention: bool = False  # logits / sqrt(head_dim); T5 divides its initialiser instead
    attention_scalar: float | None = None  # whose root it is, rather than head_dim's (Gemma)
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    attention_soft_cap: AboveZero | None = None
    logits_soft_cap: AboveZero | None = None
    tied_embeddings: bool = False
    scale_tied_logits: bool = True  # T5 1.0: logits / sqrt(embed_dim) when tied
    scale_embeddings: bool = False  # times sqrt(embed_dim), in the activations' dtype (Gemma)
    attention_window: Positive | None = None  # a decoder's tokens see so many, themselves included
    full_attention_every: Positive | None = None  # every N-th layer has no window (Gemma 3: 6)
    use_bias: bool | str = False  # on projections; or only on those of "qkv" or the "mlp"
    dropout_rate: Fraction = 0.0
    init_std: NotNegative | None = None  # None: T5's initialisers; a number: GPT-2's normal(std)
    dtype: str = "auto"  # of activations; auto: bfloat16 on TPU and GPU, float32 on CPU
    attention: str = "auto"  # how it is computed; see functional/attention.py, `choose`
    fused_projections: bool = False  # queries, keys and values in one product, and gate and up
    scan_layers: bool = True  # one compiled layer, parameters stacked [layers, ...]
    num_experts: Count = 0  # 0: all tokens share one MLP; see models/moe.py
    experts_per_token: Positive = 2
    capacity_factor: AboveZero | None = None  # times a row's even share; None: no token is dropped
    normalize_expert_weights: bool = True  # several chosen experts' weights sum to 1 (Mixtral)
    load_balance_loss: NotNegative = 0.01  # weights of what is added to a target token's loss
    router_z_loss: NotNegative = 0.001
    moe_every: Positive = 1  # experts in every so-manieth layer (2: in the second, fourth, ...)
    remat: str = "none"  # what is recomputed in the backward pass; see transformer.py
    embedding_norm: bool = False  # a norm of the embeddings' sum (BERT)
    token_types: Count = 0  # rows of an encoder's table of token types; 0: it has none
    encoder_heads: tuple[str, ...] = ()  # what an encoder_only model ends with; see heads.py
    num_labels: Count = 0  # of the heads "classes" (1: a number is predicted) and "tags"
    adapters: tuple[Adapter, ...] = ()  # LoRA, SoftPrompt: see adapters.py

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        object.__setattr__(self, "encoder_heads", tuple(self.encoder_heads))
        found = checked(self.adapters, self.architecture, self.positions)
        object.__setattr__(self, "adapters", found)
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", tuple(self.rope_scaling))
            self._check_rope_scaling(*self.rope_scaling)
        if self.use_bias not in (True, False, "qkv", "mlp"):
            raise UserError(f"use_bias = {self.use_bias!r}: expected True, False, 'qkv' or 'mlp'.")
        if self.attention_window is not None and self.attention_window < 1:
            raise UserError(f"attention_window = {self.attention_window}: expected 1 or more.")
        self._check_alternation()
        for field, choices in CHOICES.items():
            self._check_choice(field, getattr(self, field), choices)
        for activation in self.mlp_activations:
            self._check_choice("mlp_activations", activation, tuple(ACTIVATIONS))
        sizes = ("vocab_size", "embed_dim", "num_heads", "head_dim", "mlp_dim")
        if self.architecture == "encoder_only":
            self._check_encoder()
        else:
            sizes += ("num_decoder_layers",)
            self._check_no_encoder_settings()
        for field in sizes:
            if getattr(self, field) < 1:
                raise UserError(f"{field} = {getattr(self, field)}: it must be at least 1.")
        if (self.architecture != "decoder_only") != (self.num_encoder_layers > 0):
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
        if self.num_experts:
            self._check_experts()
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(f"dropout_rate = {self.dropout_rate}: it must be in [0, 1).")

    def _check_rope_scaling(self, kind: str = "", *numbers: float) -> None:
        wanted = {"linear": 1, "llama3": 4}.get(kind)
        if len(numbers) != wanted or any(isinstance(n, str) or n <= 0 for n in numbers):
            raise UserError(
                f"rope_scaling = {self.rope_scaling!r}: expected ('linear', factor) or ('llama3', "
                f"factor, low, high, length)."
            )

    def _check_alternation(self) -> None:
        every, local = self.full_attention_every, self.local_rope_theta
        if every is not None and (every < 1 or self.attention_window is None):
            raise UserError(
                f"full_attention_every = {every} with attention_window = {self.attention_window}: "
                f"expected 1 or more, and a window for the other layers."
            )
        if local is not None and (local <= 0 or every is None or self.positions != "rope"):
            raise UserError(
                f"local_rope_theta = {local}: it must be above 0, and is for positions = 'rope' "
                f"with full_attention_every."
            )
        if self.relative_bias_per_layer and self.positions != "relative":
            raise UserError(
                f"relative_bias_per_layer with positions = {self.positions!r}: expected 'relative'."
            )
        if self.positions == "relative":
            self._check_buckets()
        if self.attention_scalar is not None and not self.attention_scalar > 0:
            raise UserError(f"attention_scalar = {self.attention_scalar}: it must be above 0.")

    def _check_buckets(self) -> None:
        """Half of a decoder's buckets are exact distances; of an encoder's, half of each side's."""
        shares = {4} if self.num_encoder_layers else set()
        shares |= {2} if self.num_decoder_layers else set()
        for exact in (self.relative_buckets // share for share in shares):
            if exact < 1 or self.relative_max_distance in (0, exact):
                raise UserError(
                    f"relative_buckets = {self.relative_buckets} with relative_max_distance = "
                    f"{self.relative_max_distance}: expected 4 or more (a decoder alone: 2), and a "
                    f"distance above half of them."
                )

    def has_window(self, layer: int) -> bool:
        """Whether the decoder's layer (from 0) sees `attention_window` tokens only."""
        every = self.full_attention_every
        return self.attention_window is not None and (every is None or (layer + 1) % every > 0)

    def _check_encoder(self) -> None:
        if self.num_decoder_layers:
            raise UserError(
                f"architecture 'encoder_only' with num_decoder_layers = "
                f"{self.num_decoder_layers}: set it to 0."
            )
        for head in self.encoder_heads:
            self._check_choice("encoder_heads", head, ENCODER_HEADS)
        heads = set(self.encoder_heads)
        if {"masked_lm", "lm"} <= heads or ("next_sentence" in heads and "pooler" not in heads):
            raise UserError(
                f"encoder_heads = {self.encoder_heads!r}: expected one of 'masked_lm' and 'lm', "
                f"and 'pooler' where there is 'next_sentence'."
            )
        if len(heads & {"classes", "tags", "span"}) > 1:
            raise UserError(
                f"encoder_heads = {self.encoder_heads!r}: expected only one of 'classes', 'tags' "
                f"and 'span'."
            )
        if (self.num_labels > 0) != bool(heads & {"classes", "tags"}) or self.num_labels < 0:
            raise UserError(
                f"num_labels = {self.num_labels} with encoder_heads = {self.encoder_heads!r}: "
                f"'classes' and 'tags' have 1 or more, others 0."
            )
        if heads & {"masked_lm", "lm"} and not self.tied_embeddings:
            raise UserError(
                f"encoder_heads = {self.encoder_heads!r} with tied_embeddings = False: an "
                f"encoder's output layer is its embedding; set tied_embeddings = True."
            )
        if self.positions == "transformer_xl":
            for field, wanted in TRANSFORMER_XL.items():
                if getattr(self, field) != wanted:
                    raise UserError(
                        f"{field} = {getattr(self, field)!r} with positions = 'transformer_xl': "
                        f"XLNet's layers have {wanted!r}."
                    )

    def _check_no_encoder_settings(self) -> None:
        encoders = (self.encoder_heads, self.token_types, self.num_labels)
        if self.positions == "transformer_xl" or any(encoders):
            raise UserError(
                f"positions = 'transformer_xl', encoder_heads, num_labels and token_types are for "
                f"the architecture 'encoder_only', found {self.architecture!r}."
            )

    def _check_experts(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise UserError(
                f"experts_per_token = {self.experts_per_token} with num_experts = "
                f"{self.num_experts}: expected 1 to {max(self.num_experts, 1)}."
            )
        if self.capacity_factor is not None and not self.capacity_factor > 0.0:
            raise UserError(
                f"capacity_factor = {self.capacity_factor}: it must be above 0, such as 1.25, or "
                f"None to drop no token."
            )
        if self.moe_every != 1 and self.scan_layers:
            raise UserError(
                f"moe_every = {self.moe_every} with scan_layers: scanned layers are all alike; "
                f"set scan_layers = False, or moe_every = 1."
            )
        if self.moe_every < 1:
            raise UserError(f"moe_every = {self.moe_every}: it must be at least 1.")

    def has_experts(self, layer: int) -> bool:
        """Whether the layer (from 0) has a mixture of experts in the place of its MLP."""
        return self.num_experts > 0 and layer % self.moe_every == self.moe_every - 1

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
