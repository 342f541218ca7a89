"""T5 1.0, T5 1.1, LM-adapted T5, FLAN-T5, mT5, umT5, ByT5 and UL2: one table."""

from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.interop.family import ACTIVATION_NAMES, ACTIVATIONS, Family, first_obstacle
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.tensors import Tensors, equal
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models.config import TransformerConfig

TABLE, HEAD = "shared.weight", "lm_head.weight"
_GATED = "gated-"
_ATTENTION = (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))


class T5(Family):
    model_types = ("t5", "mt5", "umt5")

    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        layers = fields.number("num_layers")
        scale = _scale(fields)
        # The head is what the file holds: a copy of the table has been dropped (see `renamed`).
        head = HEAD in tensors
        if scale and head:
            raise UserError(
                f"{fields.where} scales the decoder's output and has a head of its own: "
                f"T5 1.0 ties it, T5 1.1 doesn't scale; set tie_word_embeddings to say which."
            )
        arguments = dict(
            architecture="encoder_decoder",
            vocab_size=fields.number("vocab_size"),
            embed_dim=fields.number("d_model"),
            num_heads=fields.number("num_heads"),
            head_dim=fields.number("d_kv"),
            mlp_dim=fields.number("d_ff"),
            num_encoder_layers=layers,
            num_decoder_layers=fields.number("num_decoder_layers", layers),
            mlp_activations=_activations(fields),
            norm_epsilon=fields.number("layer_norm_epsilon", kind=float),
            relative_buckets=fields.number("relative_attention_num_buckets"),
            relative_max_distance=fields.number("relative_attention_max_distance"),
            relative_bias_per_layer=fields.kind == "umt5",
            tied_embeddings=not head,
            scale_tied_logits=scale,
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
            mlp_activations=tuple((a, *b) for a in ACTIVATION_NAMES for b in ((), ("linear",))),
            relative_bias_per_layer=(True, False),
            # umT5's class would scale a tied table, or not, by its version.
            **(dict(tied_embeddings=False) if config.relative_bias_per_layer else {}),
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        c = config
        function = ACTIVATION_NAMES[c.mlp_activations[0]]
        gated = len(c.mlp_activations) > 1
        # "gated-gelu" is read as gelu_new: dense_act_fn says which it is.
        project = _GATED * gated + ("gelu" if gated and "gelu" in function else function)
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
            "feed_forward_proj": project,
            "dense_act_fn": function,
            "is_gated_act": gated,
            "layer_norm_epsilon": c.norm_epsilon,
            "dropout_rate": c.dropout_rate,
            # Read by every version as "scale the output"; see `read`.
            "tie_word_embeddings": c.tied_embeddings and c.scale_tied_logits,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        }

    def rules(self, config: TransformerConfig) -> list[Rule]:
        rules = [Rule("token_embedder/embedding", TABLE)]
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
            rules.append(Rule("decoder/logits_dense/kernel", HEAD, transpose=True))
        return rules

    def repeated(self, config: TransformerConfig) -> list[Rule]:
        # transformers 4 takes "don't scale" for "not tied", and reads a head.
        unscaled = config.tied_embeddings and not config.scale_tied_logits
        return [Rule("token_embedder/embedding", HEAD)] if unscaled else []

    def renamed(self, tensors: Tensors) -> Tensors:
        """Without a head that is a copy of the table: transformers 5 ties these, whatever a file's
        fields say, and leaves the copy out."""
        if HEAD not in tensors or TABLE not in tensors or not equal(tensors[HEAD], tensors[TABLE]):
            return tensors
        return {name: tensor for name, tensor in tensors.items() if name != HEAD}

    def ignored(self, config: TransformerConfig) -> Sequence[str]:
        # Files of the first years hold a table that the cross-attention never had.
        return [r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"]

    def copies(self, config: TransformerConfig) -> dict[str, str]:
        return dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), TABLE)


def _scale(fields: Fields) -> bool:
    """Whether the decoder's output is scaled.

    transformers 4 scales it unless tie_word_embeddings is false; 5 then calls all tables tied, and
    writes scale_decoder_outputs, which decides. mT5 never scales, whatever its files say.
    """
    tie = fields.get("tie_word_embeddings")
    if tie is not None:
        fields.flag("tie_word_embeddings")
    scale = fields.flag("scale_decoder_outputs", tie is not False)
    return scale and fields.kind != "mt5"


def _activations(fields: Fields) -> tuple[str, ...]:
    """From dense_act_fn and is_gated_act, which the layers read; they follow from
    feed_forward_proj in a file without them."""
    project = fields.get("feed_forward_proj")
    if not isinstance(project, str) or project.count("-") > project.startswith(_GATED):
        raise UserError(f"{fields.where}: feed_forward_proj = {project!r} isn't known.")
    implied = "gelu_new" if project == "gated-gelu" else project.removeprefix(_GATED)
    gated = fields.flag("is_gated_act", project.split("-")[0] == "gated")
    function = fields.get("dense_act_fn", implied)
    if not isinstance(function, str) or function not in ACTIVATIONS:
        said = f"feed_forward_proj = {project!r}"
        said = f"dense_act_fn = {function!r}" if "dense_act_fn" in fields else said
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{fields.where}: {said} isn't known; expected a function of {known}.")
    return (ACTIVATIONS[function], *(("linear",) if gated else ()))
