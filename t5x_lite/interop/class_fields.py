"""What each class of transformers reads in a config.json: field -> what its absence means.

Taken from the classes' sources (transformers 5.24; 4 reads the same unless a comment says so). A
field that a class doesn't have is never asked for in its files: sibling classes give the same name
to other things, or read it where this one doesn't.
"""

from typing import Any, NamedTuple

NEEDED = object()  # a size: without it there is no model


class Null(NamedTuple):
    """A field that may be null, which means "none"; others may not."""

    absent: Any = None


class Derived(NamedTuple):
    """A field that overrides what follows from others, which `read` knows."""


_ROPE = dict(rope_theta=10_000.0, rope_scaling=Null(), rope_parameters=Null())
_DECODER = dict(
    vocab_size=NEEDED, hidden_size=NEEDED, intermediate_size=NEEDED, num_hidden_layers=NEEDED,
    num_attention_heads=NEEDED, rms_norm_eps=1e-6, initializer_range=0.02, **_ROPE,
)  # fmt: skip
_LLAMA = _DECODER | dict(hidden_act="silu", tie_word_embeddings=False, head_dim=Null())
_EXPERTS = dict(output_router_logits=False, router_aux_loss_coef=0.001)
_QWEN = _LLAMA | dict(
    max_position_embeddings=32768, num_key_value_heads=Null(32), use_sliding_window=False,
    sliding_window=Null(4096), max_window_layers=28, layer_types=Null(),
)  # fmt: skip
_GEMMA = _DECODER | dict(
    num_key_value_heads=4, head_dim=256, max_position_embeddings=8192, tie_word_embeddings=True,
    attention_bias=False, use_bidirectional_attention=Null(),
)  # fmt: skip
_GEMMA_2 = _GEMMA | dict(
    hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, sliding_window=Null(4096),
    layer_types=Null(), final_logit_softcapping=Null(30.0), attn_logit_softcapping=Null(50.0),
)  # fmt: skip
_T5 = dict(
    vocab_size=NEEDED, d_model=NEEDED, d_kv=NEEDED, d_ff=NEEDED, num_layers=NEEDED,
    num_decoder_layers=Null(), num_heads=NEEDED, relative_attention_num_buckets=32,
    relative_attention_max_distance=128, layer_norm_epsilon=1e-6, feed_forward_proj="relu",
    dense_act_fn=Derived(), is_gated_act=Derived(), scale_decoder_outputs=Derived(),
    tie_word_embeddings=Null(),
)  # fmt: skip
_MT5 = _T5 | dict(feed_forward_proj="gated-gelu")

CLASS_FIELDS: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "mt5": _MT5,
    "umt5": _MT5,
    "llama": _LLAMA
    | dict(
        max_position_embeddings=2048, num_key_value_heads=Null(), attention_bias=False,
        mlp_bias=False,
    ),  # fmt: skip
    "mistral": _LLAMA
    | dict(
        max_position_embeddings=131_072, num_key_value_heads=Null(8), sliding_window=Null(4096)
    ),
    "mixtral": _LLAMA
    | _EXPERTS
    | dict(
        max_position_embeddings=131_072, num_key_value_heads=Null(8), sliding_window=Null(),
        rms_norm_eps=1e-5, rope_theta=1e6, num_local_experts=8, num_experts_per_tok=2,
        router_jitter_noise=0.0,
    ),  # fmt: skip
    "qwen2": _QWEN,
    "qwen3": _QWEN | dict(head_dim=128, attention_bias=False),
    "qwen3_moe": {k: v for k, v in _QWEN.items() if k not in ("max_window_layers", "layer_types")}
    | _EXPERTS
    | dict(
        intermediate_size=6144, num_key_value_heads=4, attention_bias=False,
        decoder_sparse_step=1, mlp_only_layers=Null(), moe_intermediate_size=768, num_experts=128,
        num_experts_per_tok=8, norm_topk_prob=False,
    ),  # fmt: skip
    "gemma": _GEMMA | dict(num_key_value_heads=16, hidden_act="gelu_pytorch_tanh"),
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_2
    | dict(
        max_position_embeddings=131_072, rope_theta=1e6, rope_local_base_freq=1e4,
        final_logit_softcapping=Null(), attn_logit_softcapping=Null(), sliding_window_pattern=6,
        use_bidirectional_attention=Null(False),
    ),  # fmt: skip
    "gpt2": dict(
        vocab_size=NEEDED, n_positions=1024, n_embd=NEEDED, n_layer=NEEDED, n_head=NEEDED,
        n_inner=Null(), activation_function="gelu_new", layer_norm_epsilon=1e-5,
        initializer_range=0.02, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False, tie_word_embeddings=True,
    ),  # fmt: skip
    "bert": dict(
        vocab_size=NEEDED, hidden_size=NEEDED, num_hidden_layers=NEEDED,
        num_attention_heads=NEEDED, intermediate_size=NEEDED, hidden_act="gelu",
        hidden_dropout_prob=0.1, max_position_embeddings=512, type_vocab_size=2,
        initializer_range=0.02, layer_norm_eps=1e-12, is_decoder=False, add_cross_attention=False,
        tie_word_embeddings=True, id2label=Null(), num_labels=Null(), architectures=Null(),
        position_embedding_type=Null(),  # of transformers 4
    ),  # fmt: skip
    "xlnet": dict(
        vocab_size=NEEDED, d_model=NEEDED, n_layer=NEEDED, n_head=NEEDED, d_inner=NEEDED,
        d_head=Null(), ff_activation="gelu", attn_type="bi", initializer_range=0.02,
        layer_norm_eps=1e-12, dropout=0.1, untie_r=True, bi_data=False, clamp_len=-1,
        same_length=False, tie_word_embeddings=True,
    ),  # fmt: skip
}  # fmt: skip

# Other spellings of a class's fields (transformers calls it the attribute_map).
_SIZES = dict(hidden_size="d_model", num_attention_heads="num_heads", head_dim="d_kv")
SPELLINGS: dict[str, dict[str, str]] = {
    # T5's num_hidden_layers isn't among them: alone, it changes the encoder's depth only.
    **dict.fromkeys(("t5", "mt5", "umt5"), _SIZES),
    "mixtral": dict(num_experts="num_local_experts"),
    "qwen3_moe": dict(num_local_experts="num_experts"),  # which transformers 5 writes
    "gpt2": dict(
        hidden_size="n_embd",
        max_position_embeddings="n_positions",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
    ),  # fmt: skip
    "xlnet": dict(
        n_token="vocab_size",
        hidden_size="d_model",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
    ),  # fmt: skip
}

# Fields of siblings with the values that ask for nothing, as published files carry them.
IDLE: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_mrope": (False,),
    "partial_rotary_factor": (1,),
    "router_jitter_noise": (0,),
    "scalable_attention": (True,),
    "n_positions": (512, 1024),
}
