"""XLNet: two-stream attention over relative positions; its weights without the memory."""

from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.interop.family import ACTIVATION_NAMES, ACTIVATIONS, Family, first_obstacle
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models.config import TransformerConfig


class XLNet(Family):
    model_types = ("xlnet",)

    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        embed_dim, heads, head_dim = fields.heads("d_model", "n_head")
        fields.refuse("d_head", (head_dim,), "it is d_model / n_head")
        fields.refuse("attn_type", ("bi",), "attention goes both ways")
        for name in ("bi_data", "same_length"):
            fields.refuse(name, (False,), "there is no such batch")
        fields.refuse("clamp_len", (-1, 0), "distances aren't clamped")
        fields.refuse("untie_r", (True,), "each layer has its own biases")
        fields.refuse("tie_word_embeddings", (True,), "its output layer is its embedding")
        arguments = dict(
            architecture="encoder_only",
            vocab_size=fields.number("vocab_size"),
            embed_dim=embed_dim,
            num_heads=heads,
            head_dim=head_dim,
            mlp_dim=fields.number("d_inner"),
            num_decoder_layers=0,
            num_encoder_layers=fields.number("n_layer"),
            mlp_activations=(fields.choice("ff_activation", ACTIVATIONS),),
            norm="layer",
            norm_epsilon=fields.number("layer_norm_eps", kind=float),
            norm_placement="post",
            positions="transformer_xl",
            encoder_heads=("lm",) if "lm_loss.bias" in tensors or len(tensors) < 2 else (),
            scale_attention=True,
            tied_embeddings=True,
            scale_tied_logits=False,
            use_bias="mlp",
            dropout_rate=fields.number("dropout", kind=float),
            init_std=fields.number("initializer_range", kind=float),
        )
        # Memory is of use where a text is read in several parts, which it isn't here.
        fields.done(("mem_len", "reuse_len", "use_mems_eval", "use_mems_train", "use_mems",
                     "start_n_top", "end_n_top", "summary_last_dropout", "max_position_embeddings",
                     "init", "init_range", "init_std"))  # fmt: skip
        return arguments

    def obstacle(self, config: TransformerConfig) -> str | None:
        return first_obstacle(
            config,
            architecture="encoder_only",
            positions="transformer_xl",
            norm="layer",
            norm_placement="post",
            encoder_heads=((), ("lm",)),
            head_dim=config.embed_dim // config.num_heads,
            embed_dim=config.num_heads * config.head_dim,
            logits_soft_cap=None,
            mlp_activations=tuple((name,) for name in ACTIVATION_NAMES),
            scale_tied_logits=False if config.tied_embeddings else (True, False),
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        c = config
        return {
            "model_type": "xlnet",
            "architectures": ["XLNetLMHeadModel" if c.encoder_heads else "XLNetModel"],
            "vocab_size": c.vocab_size,
            "d_model": c.embed_dim,
            "n_layer": c.num_encoder_layers,
            "n_head": c.num_heads,
            "d_head": c.head_dim,
            "d_inner": c.mlp_dim,
            "ff_activation": ACTIVATION_NAMES[c.mlp_activations[0]],
            "attn_type": "bi",
            "layer_norm_eps": c.norm_epsilon,
            "dropout": c.dropout_rate,
            "initializer_range": 0.02 if c.init_std is None else c.init_std,
            "mem_len": None,
            "untie_r": True,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def rules(self, config: TransformerConfig) -> list[Rule]:
        body = "transformer." if config.encoder_heads else ""
        block, theirs = "encoder/layers_{i}", f"{body}layer.{{i}}"
        attention, heads = f"{theirs}.rel_attn", (config.num_heads, config.head_dim)
        rules = [
            Rule("token_embedder/embedding", f"{body}word_embedding.weight"),
            Rule("mask_embedder/embedding", f"{body}mask_emb", split=(1, config.embed_dim)),
        ]
        for ours, name in (("query", "q"), ("key", "k"), ("value", "v"), ("position", "r")):
            rules.append(Rule(f"{block}/attention/{ours}/kernel", f"{attention}.{name}", False,
                              heads))  # fmt: skip
        rules.append(Rule(f"{block}/attention/out/kernel", f"{attention}.o", True, heads))
        for ours, name in (
            ("content_bias/bias", "r_w_bias"),
            ("position_bias/bias", "r_r_bias"),
            ("segment_bias/bias", "r_s_bias"),
            ("segment_embedder/embedding", "seg_embed"),
        ):
            rules.append(Rule(f"{block}/attention/{ours}", f"{attention}.{name}", split=heads))
        for ours, name in (
            (f"{block}/post_attention_layer_norm", f"{attention}.layer_norm"),
            (f"{block}/post_mlp_layer_norm", f"{theirs}.ff.layer_norm"),
        ):
            rules += [Rule(f"{ours}/scale", f"{name}.weight"), Rule(f"{ours}/bias", f"{name}.bias")]
        for ours, name in (("wi", "layer_1"), ("wo", "layer_2")):
            rules.append(Rule(f"{block}/mlp/{ours}/kernel", f"{theirs}.ff.{name}.weight", True))
            rules.append(Rule(f"{block}/mlp/{ours}/bias", f"{theirs}.ff.{name}.bias"))
        if config.encoder_heads:
            rules.append(Rule("heads/output/bias", "lm_loss.bias"))
        return rules

    def ignored(self, config: TransformerConfig) -> Sequence[str]:
        return ()

    def copies(self, config: TransformerConfig) -> dict[str, str]:
        return {"lm_loss.weight": "transformer.word_embedding.weight"}
