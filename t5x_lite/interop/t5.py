"""T5 1.0, T5 1.1, LM-adapted T5, FLAN-T5, mT5, umT5, ByT5 and UL2: one table."""

from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.interop.family import Family, first_obstacle
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models import TransformerConfig

# feed_forward_proj -> mlp_activations. T5Config reads "gated-gelu" as gelu_new, "gelu" as erf.
MLPS = {
    "relu": ("relu",),
    "gelu": ("gelu_exact",),
    "gelu_new": ("gelu",),
    "silu": ("silu",),
    "gated-relu": ("relu", "linear"),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
_ATTENTION = (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))


class T5(Family):
    model_types = ("t5", "mt5", "umt5")

    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        layers = fields.number("num_layers")
        tie = fields.get("tie_word_embeddings")
        # transformers 4 scales the output if the table is tied. 5 writes scale_decoder_outputs,
        # claims all tables to be tied, and ties those that come without a head. mT5 never scales.
        scale = fields.get("scale_decoder_outputs", tie is not False)
        kind = fields.get("model_type")
        if kind in ("mt5", "umt5"):  # as published; transformers 5 scales umT5's by mistake
            scale = False
        head = "lm_head.weight" in tensors and not (scale and tie is not False)
        if scale and head:
            raise UserError(
                f"{fields.where} scales the decoder's output and has a head of its own: "
                f"T5 1.0 ties it, T5 1.1 doesn't scale; set tie_word_embeddings to say which."
            )
        fields.refuse("is_gated_act", (True, False), "unknown")
        fields.get("dense_act_fn")  # follows from feed_forward_proj
        activations = fields.choice("feed_forward_proj", MLPS, "relu")
        arguments = dict(
            architecture="encoder_decoder",
            vocab_size=fields.number("vocab_size"),
            embed_dim=fields.number("d_model"),
            num_heads=fields.number("num_heads"),
            head_dim=fields.number("d_kv"),
            mlp_dim=fields.number("d_ff"),
            num_encoder_layers=layers,
            num_decoder_layers=fields.number("num_decoder_layers", layers),
            mlp_activations=activations,
            norm_epsilon=fields.number("layer_norm_epsilon", 1e-6, float),
            relative_buckets=fields.number("relative_attention_num_buckets", 32),
            relative_max_distance=fields.number("relative_attention_max_distance", 128),
            relative_bias_per_layer=kind == "umt5",
            tied_embeddings=not head,
            scale_tied_logits=bool(scale),
        )
        fields.done(("n_positions", "scalable_attention"))
        return arguments

    def obstacle(self, config: TransformerConfig) -> str | None:
        return first_obstacle(
            config,
            architecture="encoder_decoder",
            positions="relative",
            norm="rms",
            kv_heads=config.num_heads,
            scale_attention=False,
            qk_norm=False,
            attention_soft_cap=None,
            logits_soft_cap=None,
            attention_window=None,
            use_bias=False,
            num_experts=0,
            mlp_activations=tuple(MLPS.values()),
            relative_bias_per_layer=(True, False),
            # umT5's class would scale a tied table, or not, by its version.
            **(dict(tied_embeddings=False) if config.relative_bias_per_layer else {}),
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        c = config
        names = {activations: name for name, activations in MLPS.items()}
        name = names[c.mlp_activations]
        return {
            "model_type": "umt5" if c.relative_bias_per_layer else "t5",
            "architectures": [f"{'UM' * c.relative_bias_per_layer}T5ForConditionalGeneration"],
            "is_encoder_decoder": True,
            "vocab_size": c.vocab_size,
            "d_model": c.embed_dim,
            "d_kv": c.head_dim,
            "d_ff": c.mlp_dim,
            "num_layers": c.num_encoder_layers,
            "num_decoder_layers": c.num_decoder_layers,
            "num_heads": c.num_heads,
            "relative_attention_num_buckets": c.relative_buckets,
            "relative_attention_max_distance": c.relative_max_distance,
            "feed_forward_proj": name,
            "layer_norm_epsilon": c.norm_epsilon,
            "dropout_rate": c.dropout_rate,
            # Read by every version as "scale the output"; see `read`.
            "tie_word_embeddings": c.tied_embeddings and c.scale_tied_logits,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        }

    def rules(self, config: TransformerConfig) -> list[Rule]:
        rules = [Rule("token_embedder/embedding", "shared.weight")]
        for stack, attentions in (
            ("encoder", [("attention", "SelfAttention")]),
            ("decoder", [("self_attention", "SelfAttention"),
                         ("encoder_decoder_attention", "EncDecAttention")]),
        ):  # fmt: skip
            theirs = f"{stack}.block"
            ours, i = (
                (f"{stack}/layers_{{i}}", "{i}") if config.relative_bias_per_layer else (stack, 0)
            )
            rules.append(
                Rule(
                    f"{ours}/relpos_bias/rel_embedding",
                    f"{theirs}.{i}.layer.0.SelfAttention.relative_attention_bias.weight",
                    transpose=True,
                )
            )
            norms = {
                "attention": "pre_attention_layer_norm",
                "self_attention": "pre_self_attention_layer_norm",
                "encoder_decoder_attention": "pre_cross_attention_layer_norm",
            }
            block, theirs = f"{stack}/layers_{{i}}", f"{theirs}.{{i}}.layer"
            for k, (name, module) in enumerate(attentions):
                rules.append(
                    Rule(f"{block}/{norms[name]}/scale", f"{theirs}.{k}.layer_norm.weight")
                )
                rules += [
                    Rule(f"{block}/{name}/{a}/kernel", f"{theirs}.{k}.{module}.{b}.weight", True)
                    for a, b in _ATTENTION
                ]
            k = len(attentions)
            rules.append(
                Rule(f"{block}/pre_mlp_layer_norm/scale", f"{theirs}.{k}.layer_norm.weight")
            )
            gated = len(config.mlp_activations) > 1
            rules += [
                Rule(f"{block}/mlp/{w}/kernel", f"{theirs}.{k}.DenseReluDense.{w}.weight", True)
                for w in (("wi_0", "wi_1", "wo") if gated else ("wi", "wo"))
            ]
            rules.append(Rule(f"{stack}/{stack}_norm/scale", f"{stack}.final_layer_norm.weight"))
        if not config.tied_embeddings:
            rules.append(Rule("decoder/logits_dense/kernel", "lm_head.weight", transpose=True))
        elif not config.scale_tied_logits:
            # Written out, as older readers take "don't scale" for "not tied".
            rules.append(Rule("token_embedder/embedding", "lm_head.weight"))
        return rules

    def ignored(self, config: TransformerConfig) -> Sequence[str]:
        # Files of the first years hold a table that the cross-attention never had.
        return [r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"]

    def copies(self, config: TransformerConfig) -> dict[str, str]:
        copies = dict.fromkeys(
            ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"
        )
        return copies | ({"lm_head.weight": "shared.weight"} if config.tied_embeddings else {})
