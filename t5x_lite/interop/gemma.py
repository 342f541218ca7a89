"""Gemma: scaled embeddings, norms of 1 + w; from 2 on norms around each sublayer, soft caps and
windows in most layers; in 3 another rotation in these."""

from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.interop import rope
from t5x_lite.interop.family import ACTIVATIONS, Family, first_obstacle
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.llama import FULL, LOCAL, NORMS, rules, sizes
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models.config import TransformerConfig

_NORMS = (
    ("pre_self_attention_layer_norm", "input_layernorm"),
    ("post_self_attention_layer_norm", "post_attention_layernorm"),
    ("pre_mlp_layer_norm", "pre_feedforward_layernorm"),
    ("post_mlp_layer_norm", "post_feedforward_layernorm"),
)
_PATTERNS = ("sliding_window_pattern", "_sliding_window_pattern")
_NAMES = {"gelu": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}


class Gemma(Family):
    model_types = ("gemma", "gemma2", "gemma3_text")

    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        first, third = fields.kind == "gemma", fields.kind == "gemma3_text"
        fields.refuse("use_bidirectional_attention", (False,), "a decoder looks back only")
        fields.refuse("attention_bias", (False,), "its projections have no biases")
        layers = fields.number("num_hidden_layers")
        arguments = dict(
            architecture="decoder_only",
            vocab_size=fields.number("vocab_size"),
            embed_dim=fields.number("hidden_size"),
            num_heads=fields.number("num_attention_heads"),
            num_kv_heads=fields.number("num_key_value_heads"),
            head_dim=fields.number("head_dim"),
            mlp_dim=fields.number("intermediate_size"),
            num_decoder_layers=layers,
            mlp_activations=(_activation(fields), "linear"),
            norm_epsilon=fields.number("rms_norm_eps", kind=float),
            norm_scale_from_one=True,
            norm_placement="pre" if first else "both",
            positions="rope",
            max_positions=fields.number("max_position_embeddings"),
            scale_attention=True,
            qk_norm=third,
            scale_embeddings=True,
            tied_embeddings=fields.flag("tie_word_embeddings"),
            scale_tied_logits=False,
            init_std=fields.number("initializer_range", kind=float),
        )
        if not first:
            arguments |= dict(
                attention_scalar=fields.number("query_pre_attn_scalar", kind=float),
                logits_soft_cap=_cap(fields, "final_logit_softcapping"),
                **_windows(fields, layers),
            )
        if third:
            fields.refuse("attn_logit_softcapping", (), "transformers leaves it out of Gemma 3")
            arguments |= _ropes(fields, arguments["full_attention_every"] is not None)
        else:
            theta, scaling = rope.read(fields)
            arguments |= dict(rope_theta=theta, rope_scaling=scaling)
        if not first and not third:
            arguments["attention_soft_cap"] = _cap(fields, "attn_logit_softcapping")
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
            kinds = [LOCAL if c.has_window(i) else FULL for i in range(c.num_decoder_layers)]
            values |= {
                "query_pre_attn_scalar": int(c.attention_scalar or c.head_dim),
                "final_logit_softcapping": c.logits_soft_cap,
                "attn_logit_softcapping": c.attention_soft_cap,
                # Asked for by transformers even where no layer has it.
                "sliding_window": c.attention_window or c.max_positions,
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


def _activation(fields: Fields) -> str:
    """Gemma reads hidden_act, where the first files say "gelu" and mean its tanh form; from 2 on it
    is hidden_activation. The other name may stand beside it if it says the same."""
    reads = "hidden_act" if fields.has("hidden_act") else "hidden_activation"
    first = reads == "hidden_act"
    names = ACTIVATIONS | {"gelu": "gelu"} if first else ACTIVATIONS
    found = fields.choice(reads, names)
    other = "hidden_activation" if first else "hidden_act"
    fine = [name for name, ours in names.items() if ours == found]
    fine += ["gelu"] if found == "gelu" else []
    fields.refuse(other, fine, f"a {fields.kind} reads {reads}, which is another")
    return found


def _cap(fields: Fields, name: str) -> float | None:
    """A soft cap; null is none, and a file without the field means its class's."""
    return None if fields.get(name) is None else fields.number(name, kind=float)


def _windows(fields: Fields, layers: int) -> dict[str, Any]:
    """The window, and which layers have it: all but every so-manieth."""
    window = fields.get("sliding_window")
    if window is not None and fields.number("sliding_window") < 1:
        raise UserError(f"{fields.where}: sliding_window is {window!r}, expected 1 or more.")
    every = 2
    if fields.has("sliding_window_pattern"):
        every = fields.number("sliding_window_pattern")
    if every < 1:
        raise UserError(f"{fields.where}: sliding_window_pattern is {every}, expected 1 or more.")
    kinds = fields.get("layer_types")
    if kinds is None:
        kinds = [LOCAL if (i + 1) % every else FULL for i in range(layers)]
        # Names that this class doesn't read: fine if they say what it does.
        for name in _PATTERNS:
            if not fields.has(name):
                fields.refuse(name, (every,), f"it is {every} here; layer_types could say another")
    fields.ignore(*_PATTERNS)  # layer_types decides
    if isinstance(kinds, list) and LOCAL not in kinds:
        window = None
    elif isinstance(kinds, list):
        every = kinds.index(FULL) + 1 if FULL in kinds else layers + 1
    expected = [LOCAL if window and (i + 1) % every else FULL for i in range(layers)]
    if kinds != expected:
        raise UserError(
            f"{fields.where}: layer_types = {kinds!r:.90} isn't supported: expected "
            f"'{FULL}' in every so-manieth layer, '{LOCAL}' in the others, and a sliding_window."
        )
    every_or_none = every if window else None
    return dict(attention_window=window, full_attention_every=every_or_none)


def _ropes(fields: Fields, windows: bool) -> dict[str, Any]:
    """Gemma 3's two rotations: of layers that see everything, and of those with a window."""
    local: rope.Rope = fields.number("rope_local_base_freq", kind=float), None
    full: rope.Rope = fields.number("rope_theta", kind=float), None
    rope.one_spelling(fields)
    scaling = fields.get("rope_scaling") or {}
    if isinstance(scaling, dict) and "type" in scaling and "rope_type" not in scaling:
        raise UserError(
            f"{fields.where}: rope_scaling = {scaling!r:.80} says type, which a Gemma 3 of "
            f"transformers 5 passes over: expected rope_type."
        )
    full = rope.parsed(scaling, full, f"{fields.where}: rope_scaling")
    both = fields.get("rope_parameters") or {}
    if isinstance(both, dict):
        unknown = both.keys() - {LOCAL, FULL}
    if not isinstance(both, dict) or unknown:
        raise UserError(
            f"{fields.where}: rope_parameters is {both!r:.90}, expected an object with "
            f"'{FULL}' and '{LOCAL}'."
        )
    what = f"{fields.where}: rope_parameters"
    full = rope.parsed(both.get(FULL) or {}, full, what)
    local = rope.parsed(both.get(LOCAL) or {}, local, what)
    if local[1] is not None:
        raise UserError(f"{what} scales layers with a window: that isn't supported.")
    return dict(rope_theta=full[0], rope_scaling=full[1]) | (
        dict(local_rope_theta=local[0]) if windows else {}
    )
