"""GPT-2: learned positions, layer norm, biases everywhere, tied embeddings."""

from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.interop.family import ACTIVATION_NAMES, ACTIVATIONS, Family, first_obstacle
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.tensors import Tensors
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models.config import TransformerConfig


class Gpt2(Family):
    model_types = ("gpt2",)

    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        embed_dim, heads, head_dim = fields.heads("n_embd", "n_head")
        scaled = fields.flag("scale_attn_weights")
        fields.refuse("scale_attn_by_inverse_layer_idx", (False,), "all layers are scaled alike")
        fields.refuse("add_cross_attention", (False,), "a GPT-2 decodes alone")
        arguments = dict(
            architecture="decoder_only",
            vocab_size=fields.number("vocab_size"),
            embed_dim=embed_dim,
            num_heads=heads,
            head_dim=head_dim,
            mlp_dim=fields.number("n_inner", 4 * embed_dim),
            num_decoder_layers=fields.number("n_layer"),
            mlp_activations=(fields.choice("activation_function", ACTIVATIONS),),
            norm="layer",
            norm_epsilon=fields.number("layer_norm_epsilon", kind=float),
            positions="learned",
            max_positions=fields.number("n_positions"),
            scale_attention=scaled,
            tied_embeddings=fields.flag("tie_word_embeddings"),
            scale_tied_logits=False,
            use_bias=True,
            init_std=fields.number("initializer_range", kind=float),
        )
        fields.done(("reorder_and_upcast_attn",))  # the order of rounding in half precision
        return arguments

    def obstacle(self, config: TransformerConfig) -> str | None:
        return first_obstacle(
            config,
            architecture="decoder_only",
            positions="learned",
            norm="layer",
            use_bias=True,
            attention_window=None,
            kv_heads=config.num_heads,
            head_dim=config.embed_dim // config.num_heads,
            embed_dim=config.num_heads * config.head_dim,
            qk_norm=False,
            attention_soft_cap=None,
            logits_soft_cap=None,
            num_experts=0,
            mlp_activations=tuple((name,) for name in ACTIVATION_NAMES),
            scale_tied_logits=(True, False) if not config.tied_embeddings else False,
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        c = config
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": c.vocab_size,
            "n_embd": c.embed_dim,
            "n_layer": c.num_decoder_layers,
            "n_head": c.num_heads,
            "n_inner": c.mlp_dim,
            "n_positions": c.max_positions,
            "activation_function": ACTIVATION_NAMES[c.mlp_activations[0]],
            "layer_norm_epsilon": c.norm_epsilon,
            "scale_attn_weights": c.scale_attention,
            "tie_word_embeddings": c.tied_embeddings,
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), c.dropout_rate),
            "initializer_range": 0.02 if c.init_std is None else c.init_std,
            "bos_token_id": None,  # else GPT-2's own
            "eos_token_id": None,
        }

    def rules(self, config: TransformerConfig) -> list[Rule]:
        block, theirs = "decoder/layers_{i}", "transformer.h.{i}"
        rules = [
            Rule("token_embedder/embedding", "transformer.wte.weight"),
            Rule("decoder/position_embedder/embedding", "transformer.wpe.weight"),
        ]
        for ours, name in (
            ("decoder/decoder_norm", "transformer.ln_f"),
            (f"{block}/pre_self_attention_layer_norm", f"{theirs}.ln_1"),
            (f"{block}/pre_mlp_layer_norm", f"{theirs}.ln_2"),
        ):
            rules += [Rule(f"{ours}/scale", f"{name}.weight"), Rule(f"{ours}/bias", f"{name}.bias")]
        heads = [f"{block}/self_attention/{name}" for name in ("query", "key", "value")]
        for ours, name in (
            (heads, "attn.c_attn"),
            ([f"{block}/self_attention/out"], "attn.c_proj"),
            ([f"{block}/mlp/wi"], "mlp.c_fc"),
            ([f"{block}/mlp/wo"], "mlp.c_proj"),
        ):  # Conv1D keeps [in, out]: nothing is transposed
            for last, theirs_last in (("kernel", "weight"), ("bias", "bias")):
                names = tuple(f"{n}/{last}" for n in ours)
                rules.append(Rule(names, f"{theirs}.{name}.{theirs_last}"))
        if not config.tied_embeddings:
            rules.append(Rule("decoder/logits_dense/kernel", "lm_head.weight", transpose=True))
        return rules

    def ignored(self, config: TransformerConfig) -> Sequence[str]:
        return [r"transformer\.h\.\d+\.attn\.(masked_)?bias"]

    def copies(self, config: TransformerConfig) -> dict[str, str]:
        return {"lm_head.weight": "transformer.wte.weight"} if config.tied_embeddings else {}

    def renamed(self, tensors: Tensors) -> Tensors:
        """The first published files lack the name of the body."""
        known = ("transformer.", "lm_head.")
        return {n if n.startswith(known) else f"transformer.{n}": t for n, t in tensors.items()}
