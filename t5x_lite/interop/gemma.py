"""Gemma: scaled embeddings, norms of 1 + w; from 2 on norms around each sublayer, soft caps and
windows in most layers; in 3 another rotation in these."""

from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.interop import rope
from t5x_lite.interop.family import ACTIVATIONS, Family, first_obstacle
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.llama import NORMS, rules, sizes
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models import TransformerConfig

_NORMS = (
    ("pre_self_attention_layer_norm", "input_layernorm"),
    ("post_self_attention_layer_norm", "post_attention_layernorm"),
    ("pre_mlp_layer_norm", "pre_feedforward_layernorm"),
    ("post_mlp_layer_norm", "post_feedforward_layernorm"),
)
_ACTIVATIONS = {name: ours for name, ours in ACTIVATIONS.items() if name != "gelu"}
_NAMES = {"gelu": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}
_LOCAL, _FULL = "sliding_attention", "full_attention"


class Gemma(Family):
    model_types = ("gemma", "gemma2", "gemma3_text")

    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        kind = fields.get("model_type")
        first, third = kind == "gemma", kind == "gemma3_text"
        fields.refuse("use_bidirectional_attention", (False,), "a decoder looks back only")
        fields.refuse("attention_bias", (False,), "its projections have no biases")
        layers = fields.number("num_hidden_layers")
        # The first files say "gelu", and mean its tanh form.
        activation = fields.get("hidden_act", "gelu_pytorch_tanh")
        activation = "gelu" if activation == "gelu" else _ACTIVATIONS.get(activation)
        if "hidden_activation" in fields or activation is None or not first:
            activation = fields.choice("hidden_activation", _ACTIVATIONS, "gelu_pytorch_tanh")
        arguments = dict(
            architecture="decoder_only",
            vocab_size=fields.number("vocab_size"),
            embed_dim=fields.number("hidden_size"),
            num_heads=fields.number("num_attention_heads"),
            num_kv_heads=fields.number("num_key_value_heads", 16 if first else 4),
            head_dim=fields.number("head_dim", 256),
            mlp_dim=fields.number("intermediate_size"),
            num_decoder_layers=layers,
            mlp_activations=(activation, "linear"),
            norm_epsilon=fields.number("rms_norm_eps", 1e-6, float),
            norm_scale_from_one=True,
            norm_placement="pre" if first else "both",
            positions="rope",
            max_positions=fields.number("max_position_embeddings", 8192),
            scale_attention=True,
            qk_norm=third,
            scale_embeddings=True,
            tied_embeddings=bool(fields.get("tie_word_embeddings", True)),
            scale_tied_logits=False,
            init_std=fields.number("initializer_range", 0.02, float),
        )
        if not first:
            arguments |= dict(
                attention_scalar=fields.number("query_pre_attn_scalar", 256, float),
                logits_soft_cap=_cap(fields, "final_logit_softcapping", None if third else 30.0),
                **_windows(fields, layers, 6 if third else 2),
            )
        if third:
            fields.refuse("attn_logit_softcapping", (), "transformers leaves it out of Gemma 3")
            arguments |= _ropes(fields, arguments["full_attention_every"] is not None)
        else:
            theta, scaling = rope.read(fields)
            arguments |= dict(rope_theta=theta, rope_scaling=scaling)
        if kind == "gemma2":
            arguments["attention_soft_cap"] = _cap(fields, "attn_logit_softcapping", 50.0)
        fields.done(("cache_implementation",))
        return arguments

    def obstacle(self, config: TransformerConfig) -> str | None:
        c = config
        first = c.norm_placement == "pre"
        wanted: dict[str, Any] = dict(
            architecture="decoder_only",
            positions="rope",
            norm="rms",
            norm_scale_from_one=True,
            scale_embeddings=True,
            norm_placement=("pre", "both"),
            scale_attention=True,
            attention_scalar=None if first else (c.attention_scalar,),
            full_attention_every=None if first else (c.full_attention_every,),
            embed_dim=c.embed_dim // c.num_heads * c.num_heads,
            num_experts=0,
            use_bias=False,
            mlp_activations=tuple((name, "linear") for name in _NAMES),
            scale_tied_logits=(True, False) if not c.tied_embeddings else False,
        )
        if first:
            wanted |= dict(qk_norm=False, attention_window=None, logits_soft_cap=None)
        if first or c.qk_norm:
            wanted |= dict(attention_soft_cap=None)
        if not first and (c.attention_scalar or c.head_dim) % 1:
            return f"attention_scalar = {c.attention_scalar}"
        if not c.qk_norm:
            wanted |= dict(local_rope_theta=None)
        elif c.attention_window is not None and c.full_attention_every is None:
            return "attention_window in all layers with qk_norm"
        return first_obstacle(c, **wanted)

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        c = config
        kind, name = "gemma", "GemmaForCausalLM"
        if c.norm_placement == "both":
            kind, name = "gemma2", "Gemma2ForCausalLM"
            if c.qk_norm:
                kind, name = "gemma3_text", "Gemma3ForCausalLM"
        values = {
            "model_type": kind,
            "architectures": [name],
            **sizes(c),
            "hidden_act": _NAMES[c.mlp_activations[0]],
            "hidden_activation": _NAMES[c.mlp_activations[0]],
            "max_position_embeddings": c.max_positions,
            "rms_norm_eps": c.norm_epsilon,
            **rope.written(c),
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02 if c.init_std is None else c.init_std,
            "tie_word_embeddings": c.tied_embeddings,
            "bos_token_id": None,  # else Gemma's own
            "eos_token_id": None,
        }
        if kind != "gemma":
            kinds = [_LOCAL if c.has_window(i) else _FULL for i in range(c.num_decoder_layers)]
            values |= {
                "query_pre_attn_scalar": int(c.attention_scalar or c.head_dim),
                "final_logit_softcapping": c.logits_soft_cap,
                "attn_logit_softcapping": c.attention_soft_cap,
                "sliding_window": c.attention_window,
                "layer_types": kinds,
            }
        if kind == "gemma3_text":
            values["rope_local_base_freq"] = c.local_rope_theta or c.rope_theta
            if c.full_attention_every is not None:
                values["sliding_window_pattern"] = c.full_attention_every
        return values

    def rules(self, config: TransformerConfig) -> list[Rule]:
        return rules(config, NORMS if config.norm_placement == "pre" else _NORMS)

    def ignored(self, config: TransformerConfig) -> Sequence[str]:
        return [r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\..*inv_freq"]

    def copies(self, config: TransformerConfig) -> dict[str, str]:
        return {"lm_head.weight": "model.embed_tokens.weight"} if config.tied_embeddings else {}


def _cap(fields: Fields, name: str, absent: float | None) -> float | None:
    """A soft cap; null is none, and a file without the field means its class's."""
    if name not in fields:
        return absent
    return None if fields.get(name) is None else fields.number(name, None, float)


def _windows(fields: Fields, layers: int, every: int) -> dict[str, Any]:
    """The window, and which layers have it: all but every so-manieth."""
    window = fields.number("sliding_window", 0 if "sliding_window" in fields else 4096) or None
    for name in ("sliding_window_pattern", "_sliding_window_pattern"):
        every = fields.number(name, every)
    local = [bool((i + 1) % every) for i in range(layers)]
    kinds = fields.get("layer_types", [_LOCAL if near else _FULL for near in local])
    if not any(kind == _LOCAL for kind in kinds):
        window = None
    elif _FULL not in kinds:
        every = layers + 1
    else:
        every = kinds.index(_FULL) + 1
    expected = [_LOCAL if window and (i + 1) % every else _FULL for i in range(layers)]
    if kinds != expected:
        raise UserError(
            f"{fields.where}: layer_types = {kinds!r:.90} isn't supported: expected "
            f"'{_FULL}' in every so-manieth layer, '{_LOCAL}' in the others, and a sliding_window."
        )
    every_or_none = every if window else None
    return dict(attention_window=window, full_attention_every=every_or_none)


def _ropes(fields: Fields, windows: bool) -> dict[str, Any]:
    """Gemma 3's two rotations: of layers that see everything, and of those with a window."""
    local: rope.Rope = fields.number("rope_local_base_freq", 10_000.0, float), None
    full: rope.Rope = fields.number("rope_theta", 1_000_000.0, float), None
    full = rope.parsed(fields.get("rope_scaling", {}), full, f"{fields.where}: rope_scaling")
    both = fields.get("rope_parameters", {})
    if isinstance(both, dict):
        unknown = both.keys() - {_LOCAL, _FULL}
    if not isinstance(both, dict) or unknown:
        raise UserError(
            f"{fields.where}: rope_parameters is {both!r:.90}, expected an object with "
            f"'{_FULL}' and '{_LOCAL}'."
        )
    what = f"{fields.where}: rope_parameters"
    full = rope.parsed(both.get(_FULL) or {}, full, what)
    local = rope.parsed(both.get(_LOCAL) or {}, local, what)
    if local[1] is not None:
        raise UserError(f"{what} scales layers with a window: that isn't supported.")
    return dict(rope_theta=full[0], rope_scaling=full[1]) | (
        dict(local_rope_theta=local[0]) if windows else {}
    )
