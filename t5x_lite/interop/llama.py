"""The Llama shape: Llama 2 and 3, Mistral, Qwen2, Qwen3, our own decoder-only models; and those
with experts in the place of MLPs: Mixtral and Qwen3-MoE."""

from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.interop import rope
from t5x_lite.interop.family import ACTIVATIONS, Family, first_obstacle
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models.config import TransformerConfig

_ATTENTION = (
    ("self_attention/query", "self_attn.q_proj"),
    ("self_attention/key", "self_attn.k_proj"),
    ("self_attention/value", "self_attn.v_proj"),
    ("self_attention/out", "self_attn.o_proj"),
)
_MLP = (("wi_0", "gate_proj"), ("wi_1", "up_proj"), ("wo", "down_proj"))
_MIXTRAL = (("wi_0", "w1"), ("wi_1", "w3"), ("wo", "w2"))
NORMS = (
    ("pre_self_attention_layer_norm", "input_layernorm"),
    ("pre_mlp_layer_norm", "post_attention_layernorm"),
)
LOCAL, FULL = "sliding_attention", "full_attention"
_SEVERAL = tuple(range(2, 1024))
_NAMES = {"gelu": "gelu_pytorch_tanh", "gelu_exact": "gelu", "relu": "relu", "silu": "silu"}


def sizes(config: TransformerConfig) -> dict[str, int]:
    """What a config.json of a decoder-only model says of its sizes."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_decoder_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
    }


class Llama(Family):
    model_types = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")

    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        embed_dim, heads = fields.number("hidden_size"), fields.number("num_attention_heads")
        layers, moe = fields.number("num_hidden_layers"), fields.kind in ("mixtral", "qwen3_moe")
        width = fields.number("intermediate_size")
        if fields.kind == "qwen3_moe":
            width = fields.number("moe_intermediate_size")
        theta, scaling = rope.read(fields)
        arguments = dict(
            architecture="decoder_only",
            vocab_size=fields.number("vocab_size"),
            embed_dim=embed_dim,
            num_heads=heads,
            num_kv_heads=fields.number("num_key_value_heads", heads),
            head_dim=fields.number("head_dim", embed_dim // max(heads, 1)),
            mlp_dim=width,
            num_decoder_layers=layers,
            mlp_activations=(fields.choice("hidden_act", ACTIVATIONS), "linear"),
            norm_epsilon=fields.number("rms_norm_eps", kind=float),
            positions="rope",
            rope_theta=theta,
            rope_scaling=scaling,
            max_positions=fields.number("max_position_embeddings"),
            scale_attention=True,
            qk_norm=fields.kind in ("qwen3", "qwen3_moe"),
            tied_embeddings=fields.flag("tie_word_embeddings"),
            scale_tied_logits=False,
            attention_window=_window(fields, layers),
            use_bias=_biases(fields),
            init_std=fields.number("initializer_range", kind=float),
            **(_experts(fields) if moe else {}),
        )
        fields.done()
        return arguments

    def obstacle(self, config: TransformerConfig) -> str | None:
        biases: tuple = (True, False, "qkv")
        if config.qk_norm:
            biases = (False,)
        elif config.attention_window is not None:
            biases = (False, "qkv")
        experts: dict[str, Any] = dict(num_experts=0)
        if config.num_experts:
            biases, experts = (False,), dict(num_experts=config.num_experts, moe_every=1)
            if not config.qk_norm:  # Mixtral's weights are normalised
                experts |= dict(normalize_expert_weights=True, experts_per_token=_SEVERAL)
        if config.embed_dim % config.num_heads and config.use_bias is True:
            # Only Llama has all the biases, and its width is that of whole heads.
            whole = config.embed_dim // config.num_heads * config.num_heads
            experts |= dict(embed_dim=whole)
        return first_obstacle(
            config,
            architecture="decoder_only",
            positions="rope",
            norm="rms",
            scale_attention=True,
            attention_soft_cap=None,
            logits_soft_cap=None,
            **experts,
            mlp_activations=tuple((name, "linear") for name in _NAMES),
            scale_tied_logits=(True, False) if not config.tied_embeddings else False,
            use_bias=biases,
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        c = config
        kind, name = "llama", "LlamaForCausalLM"
        if c.num_experts:
            kind, name = "mixtral", "MixtralForCausalLM"
            if c.qk_norm:
                kind, name = "qwen3_moe", "Qwen3MoeForCausalLM"
        elif c.qk_norm:
            kind, name = "qwen3", "Qwen3ForCausalLM"
        elif c.use_bias == "qkv":
            kind, name = "qwen2", "Qwen2ForCausalLM"
        elif c.attention_window is not None or c.embed_dim % c.num_heads:
            kind, name = "mistral", "MistralForCausalLM"
        values = {
            "model_type": kind,
            "architectures": [name],
            **sizes(c),
            "hidden_act": _NAMES[c.mlp_activations[0]],
            "max_position_embeddings": c.max_positions,
            "rms_norm_eps": c.norm_epsilon,
            **rope.written(c),
            "attention_dropout": 0.0,
            "initializer_range": 0.02 if c.init_std is None else c.init_std,
            "tie_word_embeddings": c.tied_embeddings,
            "bos_token_id": None,  # else Llama's own
            "eos_token_id": None,
        }
        if kind == "llama":
            values |= {"attention_bias": c.use_bias, "mlp_bias": c.use_bias}
        elif kind in ("mistral", "mixtral"):
            values |= {"sliding_window": c.attention_window}
        else:
            windowed = c.attention_window is not None
            values |= {"use_sliding_window": windowed, "sliding_window": c.attention_window}
            values |= {"max_window_layers": 0 if windowed else c.num_decoder_layers}
        if c.num_experts:
            count = "num_local_experts" if kind == "mixtral" else "num_experts"
            values |= {count: c.num_experts, "num_experts_per_tok": c.experts_per_token}
            values |= {"router_aux_loss_coef": c.load_balance_loss}
        if kind == "qwen3_moe":
            normalized = c.normalize_expert_weights and c.experts_per_token > 1
            values |= {"norm_topk_prob": normalized, "moe_intermediate_size": c.mlp_dim}
            values |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
        return values

    def rules(self, config: TransformerConfig) -> list[Rule]:
        return rules(config, NORMS)

    def ignored(self, config: TransformerConfig) -> Sequence[str]:
        return [r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"]

    def copies(self, config: TransformerConfig) -> dict[str, str]:
        return {"lm_head.weight": "model.embed_tokens.weight"} if config.tied_embeddings else {}


def rules(config: TransformerConfig, norms: Sequence[tuple[str, str]]) -> list[Rule]:
    """The table of a decoder whose layers have ``norms``, pairs of our names and theirs."""
    block, theirs = "decoder/layers_{i}", "model.layers.{i}"
    found = [
        Rule("token_embedder/embedding", "model.embed_tokens.weight"),
        Rule("decoder/decoder_norm/scale", "model.norm.weight"),
    ]
    found += [Rule(f"{block}/{ours}/scale", f"{theirs}.{name}.weight") for ours, name in norms]
    projections = list(_ATTENTION)
    if not config.num_experts:
        projections += [(f"mlp/{ours}", f"mlp.{name}") for ours, name in _MLP]
    for ours, name in projections:
        found.append(Rule(f"{block}/{ours}/kernel", f"{theirs}.{name}.weight", True))
        qkv = ours.endswith(("query", "key", "value"))
        if config.use_bias is True or (config.use_bias and qkv):
            found.append(Rule(f"{block}/{ours}/bias", f"{theirs}.{name}.bias"))
    if config.num_experts:
        found += _expert_rules(f"{block}/moe", theirs, mixtral=not config.qk_norm)
    if config.qk_norm:
        found += [
            Rule(f"{block}/self_attention/{a}_norm/scale", f"{theirs}.self_attn.{b}_norm.weight")
            for a, b in (("query", "q"), ("key", "k"))
        ]
    if not config.tied_embeddings:
        found.append(Rule("decoder/logits_dense/kernel", "lm_head.weight", transpose=True))
    return found


def _expert_rules(ours: str, theirs: str, mixtral: bool) -> list[Rule]:
    body, names = f"{theirs}.mlp", _MLP
    if mixtral:
        body, names = f"{theirs}.block_sparse_moe", _MIXTRAL
    return [Rule(f"{ours}/router/kernel", f"{body}.gate.weight", True)] + [
        Rule(f"{ours}/{a}/kernel[{{e}}]", f"{body}.experts.{{e}}.{b}.weight", True)
        for a, b in names
    ]


def _experts(fields: Fields) -> dict[str, Any]:
    """The settings of a mixture of experts."""
    mixtral = fields.kind == "mixtral"
    chosen = fields.number("num_experts_per_tok")
    normalized = mixtral or fields.flag("norm_topk_prob")
    if normalized and chosen == 1:
        raise UserError(
            f"{fields.where}: num_experts_per_tok = 1 with normalised weights isn't supported: "
            f"one expert's weight is its probability here, not 1."
        )
    fields.refuse("router_jitter_noise", (0,), "there is no such noise")
    fields.refuse("decoder_sparse_step", (1,), "all layers have experts, or none has")
    fields.refuse("mlp_only_layers", ([],), "all layers have experts, or none has")
    fields.get("output_router_logits")  # of the training loss
    return dict(
        num_experts=fields.number("num_local_experts" if mixtral else "num_experts"),
        experts_per_token=chosen,
        normalize_expert_weights=normalized,
        load_balance_loss=fields.number("router_aux_loss_coef", kind=float),
    )


def _biases(fields: Fields) -> bool | str:
    """Qwen2 always has some; Llama's attention and MLP may, and here it is both or neither."""
    if fields.kind == "qwen2":
        return "qkv"
    bias = fields.has("attention_bias") and fields.flag("attention_bias")
    if (fields.has("mlp_bias") and fields.flag("mlp_bias")) != bias:
        raise UserError(
            f"{fields.where}: attention_bias = {bias} alone isn't supported; expected mlp_bias to "
            f"be the same (TransformerConfig.use_bias is for all projections)."
        )
    return bias


def _window(fields: Fields, layers: int) -> int | None:
    """The window of all layers; UserError if only some have one.

    Mistral and Mixtral have it unless sliding_window is null; Qwen's have it if use_sliding_window
    says so, in the layers that layer_types or max_window_layers names; Llama has none.
    """
    window = fields.get("sliding_window")
    if fields.has("use_sliding_window") and not fields.flag("use_sliding_window"):
        window = None
    first = fields.number("max_window_layers") if fields.has("max_window_layers") else 0
    kinds = fields.get("layer_types")
    if kinds is None:
        kinds = [LOCAL if i >= first and window is not None else FULL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not {*kinds} <= {LOCAL, FULL}:
        raise UserError(
            f"{fields.where}: layer_types is {kinds!r:.90}, expected {layers} of {LOCAL!r} and "
            f"{FULL!r}."
        )
    if len({*kinds}) > 1:
        raise UserError(
            f"{fields.where}: layers of several kinds ({', '.join(sorted({*kinds}))}) aren't "
            f"supported: a window is of all layers or of none."
        )
    window = window if LOCAL in kinds else None
    if LOCAL in kinds and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise UserError(
            f"{fields.where}: sliding_window is {window!r}, expected a number from 1 on."
        )
    # What siblings read is idle if it says what this class does anyway.
    for name, fine in (("use_sliding_window", window is not None), ("layer_types", kinds)):
        if not fields.has(name):
            why = f"a {fields.kind} doesn't read it, and has {'a' if window else 'no'} window"
            fields.refuse(name, (fine,), why)
    fields.ignore("max_window_layers")
    return window
