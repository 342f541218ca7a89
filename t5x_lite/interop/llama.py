"""The Llama shape: Llama 2 and 3, Mistral, Qwen2, Qwen3, and our own decoder-only models."""

from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.interop.family import ACTIVATIONS, Family, first_obstacle
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models import TransformerConfig

_PROJECTIONS = (
    ("self_attention/query", "self_attn.q_proj"),
    ("self_attention/key", "self_attn.k_proj"),
    ("self_attention/value", "self_attn.v_proj"),
    ("self_attention/out", "self_attn.o_proj"),
    ("mlp/wi_0", "mlp.gate_proj"),
    ("mlp/wi_1", "mlp.up_proj"),
    ("mlp/wo", "mlp.down_proj"),
)
_LLAMA3 = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
_NAMES = {"gelu": "gelu_pytorch_tanh", "gelu_exact": "gelu", "relu": "relu", "silu": "silu"}


class Llama(Family):
    model_types = ("llama", "mistral", "qwen2", "qwen3")

    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        kind = fields.get("model_type")
        embed_dim, heads = fields.number("hidden_size"), fields.number("num_attention_heads")
        layers = fields.number("num_hidden_layers")
        # A file without a field means what its class has as the default.
        kv_heads, head_dim = heads, embed_dim // heads
        if "num_key_value_heads" not in fields:
            kv_heads = {"mistral": 8, "qwen2": 32, "qwen3": 32}.get(kind, heads)
        if "head_dim" not in fields and kind == "qwen3":
            head_dim = 128
        activation = fields.choice("hidden_act", ACTIVATIONS, "silu")
        theta, scaling = _rope(fields)
        arguments = dict(
            architecture="decoder_only",
            vocab_size=fields.number("vocab_size"),
            embed_dim=embed_dim,
            num_heads=heads,
            num_kv_heads=fields.number("num_key_value_heads", kv_heads),
            head_dim=fields.number("head_dim", head_dim),
            mlp_dim=fields.number("intermediate_size"),
            num_decoder_layers=layers,
            mlp_activations=(activation, "linear"),
            norm_epsilon=fields.number("rms_norm_eps", 1e-6, float),
            positions="rope",
            rope_theta=theta,
            rope_scaling=scaling,
            max_positions=fields.number("max_position_embeddings", 2048),
            scale_attention=True,
            qk_norm=kind == "qwen3",
            tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
            scale_tied_logits=False,
            attention_window=_window(fields, kind, layers),
            use_bias=_biases(fields, kind),
            init_std=fields.number("initializer_range", 0.02, float),
        )
        fields.done()
        return arguments

    def obstacle(self, config: TransformerConfig) -> str | None:
        biases: tuple = (True, False, "qkv")
        if config.qk_norm:
            biases = (False,)
        elif config.attention_window is not None:
            biases = (False, "qkv")
        return first_obstacle(
            config,
            architecture="decoder_only",
            positions="rope",
            norm="rms",
            scale_attention=True,
            attention_soft_cap=None,
            logits_soft_cap=None,
            num_experts=0,
            mlp_activations=tuple((name, "linear") for name in _NAMES),
            scale_tied_logits=(True, False) if not config.tied_embeddings else False,
            use_bias=biases,
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        c = config
        kind, name = "llama", "LlamaForCausalLM"
        if c.qk_norm:
            kind, name = "qwen3", "Qwen3ForCausalLM"
        elif c.use_bias == "qkv":
            kind, name = "qwen2", "Qwen2ForCausalLM"
        elif c.attention_window is not None:
            kind, name = "mistral", "MistralForCausalLM"
        values = {
            "model_type": kind,
            "architectures": [name],
            "vocab_size": c.vocab_size,
            "hidden_size": c.embed_dim,
            "intermediate_size": c.mlp_dim,
            "num_hidden_layers": c.num_decoder_layers,
            "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.kv_heads,
            "head_dim": c.head_dim,
            "hidden_act": _NAMES[c.mlp_activations[0]],
            "max_position_embeddings": c.max_positions,
            "rms_norm_eps": c.norm_epsilon,
            "rope_theta": c.rope_theta,
            "rope_scaling": _rope_fields(c),
            "attention_dropout": 0.0,
            "initializer_range": 0.02 if c.init_std is None else c.init_std,
            "tie_word_embeddings": c.tied_embeddings,
            "bos_token_id": None,  # else Llama's own
            "eos_token_id": None,
        }
        if kind == "llama":
            values |= {"attention_bias": c.use_bias, "mlp_bias": c.use_bias}
        elif kind == "mistral":
            values |= {"sliding_window": c.attention_window}
        else:
            windowed = c.attention_window is not None
            values |= {"use_sliding_window": windowed, "sliding_window": c.attention_window}
            values |= {"max_window_layers": 0 if windowed else c.num_decoder_layers}
        return values

    def rules(self, config: TransformerConfig) -> list[Rule]:
        block, theirs = "decoder/layers_{i}", "model.layers.{i}"
        rules = [
            Rule("token_embedder/embedding", "model.embed_tokens.weight"),
            Rule("decoder/decoder_norm/scale", "model.norm.weight"),
            Rule(
                f"{block}/pre_self_attention_layer_norm/scale", f"{theirs}.input_layernorm.weight"
            ),
            Rule(f"{block}/pre_mlp_layer_norm/scale", f"{theirs}.post_attention_layernorm.weight"),
        ]
        for ours, name in _PROJECTIONS:
            rules.append(Rule(f"{block}/{ours}/kernel", f"{theirs}.{name}.weight", True))
            qkv = ours.endswith(("query", "key", "value"))
            if config.use_bias is True or (config.use_bias and qkv):
                rules.append(Rule(f"{block}/{ours}/bias", f"{theirs}.{name}.bias"))
        if config.qk_norm:
            rules += [
                Rule(
                    f"{block}/self_attention/{a}_norm/scale", f"{theirs}.self_attn.{b}_norm.weight"
                )
                for a, b in (("query", "q"), ("key", "k"))
            ]
        if not config.tied_embeddings:
            rules.append(Rule("decoder/logits_dense/kernel", "lm_head.weight", transpose=True))
        return rules

    def ignored(self, config: TransformerConfig) -> Sequence[str]:
        return [r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"]

    def copies(self, config: TransformerConfig) -> dict[str, str]:
        return {"lm_head.weight": "model.embed_tokens.weight"} if config.tied_embeddings else {}


def _biases(fields: Fields, kind: str) -> bool | str:
    """Qwen2 always has some; Llama's attention and MLP may, and here it is both or neither."""
    bias = bool(fields.get("attention_bias", False))
    if kind == "qwen2":
        return "qkv"
    if bool(fields.get("mlp_bias", False) if kind == "llama" else False) != bias:
        raise UserError(
            f"{fields.where}: attention_bias = {bias} alone isn't supported; expected mlp_bias to "
            f"be the same (TransformerConfig.use_bias is for all projections)."
        )
    return bias


def _window(fields: Fields, kind: str, layers: int) -> int | None:
    """The window of all layers; UserError if only some have one."""
    window = fields.get("sliding_window")
    if "sliding_window" not in fields and kind in ("mistral", "qwen2", "qwen3"):
        window = 4096
    full_below = fields.number("max_window_layers", 28)
    kinds = fields.get("layer_types")
    if not fields.get("use_sliding_window", kind == "mistral"):
        window = None
    if kinds is None:
        first = 0 if kind == "mistral" else full_below
        kinds = ["sliding_attention" if i >= first and window else "full_attention"
                 for i in range(layers)]  # fmt: skip
    if len(found := set(kinds)) > 1 or not found <= {"sliding_attention", "full_attention"}:
        raise UserError(
            f"{fields.where}: layers of several kinds ({', '.join(sorted(found))}) aren't "
            f"supported: a window is of all layers or of none."
        )
    if found == {"sliding_attention"}:
        if not isinstance(window, int) or window < 1:
            raise UserError(f"{fields.where}: sliding_window is {window!r}, expected a number.")
        return window
    return None


def _rope(fields: Fields) -> tuple[float, tuple | None]:
    """Base and scaling of the rotation: fields in files of transformers 4, one dict in 5's."""
    theta = fields.number("rope_theta", 10_000.0, float)
    scaling: tuple | None = None
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name, {})
        if not isinstance(rope, dict):
            raise UserError(f"{fields.where}: {name} is {rope!r}, expected an object.")
        rope = dict(rope)
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        rope.pop("type", None)
        theta = float(rope.pop("rope_theta", theta))
        known = {"default": (), "linear": ("factor",), "llama3": _LLAMA3}
        wanted = known.get(kind if isinstance(kind, str) else "")
        if wanted is None or set(rope) != set(wanted):
            held = ", ".join(sorted(rope)) or "nothing"
            raise UserError(
                f"{fields.where}: {name} of type {kind!r} with {held} isn't supported; expected "
                f"linear with factor, or llama3 with {', '.join(_LLAMA3)}."
            )
        if wanted:
            scaling = (kind, *(rope[key] for key in wanted))
    return theta, scaling


def _rope_fields(config: TransformerConfig) -> dict[str, Any] | None:
    if config.rope_scaling is None:
        return None
    kind, *numbers = config.rope_scaling
    names = ("factor",) if kind == "linear" else _LLAMA3
    return {"rope_type": kind, **dict(zip(names, numbers, strict=True))}
