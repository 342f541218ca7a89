"""BERT: an encoder with norms behind, token types, masked LM and next-sentence heads; or a head
for a task: sequence and token classification, question answering."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from t5x_lite.interop.family import ACTIVATION_NAMES, ACTIVATIONS, Family, first_obstacle
from t5x_lite.interop.fields import Fields
from t5x_lite.interop.tensors import Tensors
from t5x_lite.interop.weight_maps import Rule
from t5x_lite.models.config import TransformerConfig

# The class for a model with these heads, and what says that a file has a head.
CLASSES = {
    ("masked_lm", "pooler", "next_sentence"): "BertForPreTraining",
    ("masked_lm",): "BertForMaskedLM",
    ("pooler", "next_sentence"): "BertForNextSentencePrediction",
    ("pooler", "classes"): "BertForSequenceClassification",
    ("tags",): "BertForTokenClassification",
    ("span",): "BertForQuestionAnswering",
    ("pooler",): "BertModel",
    (): "BertModel",
}
_SIGNS = {
    "masked_lm": "cls.predictions.bias",
    "pooler": "pooler.dense.weight",
    "next_sentence": "cls.seq_relationship.weight",
    "span": "qa_outputs.weight",
}
# Beside the body, named as there.
_OTHERS = ("cls.", "classifier.", "qa_outputs.")
# Files of the first years call a norm's parameters as TensorFlow did.
_OLD = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


class Bert(Family):
    model_types = ("bert",)

    def read(self, fields: Fields, tensors: Collection[str]) -> dict[str, Any]:
        embed_dim, heads, head_dim = fields.heads("hidden_size", "num_attention_heads")
        for name in ("is_decoder", "add_cross_attention"):
            fields.refuse(name, (False,), "a BERT only encodes")
        fields.refuse("position_embedding_type", ("absolute",), "positions are a table")
        fields.refuse("tie_word_embeddings", (True,), "its output layer is its embedding")
        encoder_heads = _heads(fields.get("architectures"), tensors)
        labels = len(fields.get("id2label") or {}) or fields.number("num_labels", 2)
        arguments = dict(
            architecture="encoder_only",
            vocab_size=fields.number("vocab_size"),
            embed_dim=embed_dim,
            num_heads=heads,
            head_dim=head_dim,
            mlp_dim=fields.number("intermediate_size"),
            num_decoder_layers=0,
            num_encoder_layers=fields.number("num_hidden_layers"),
            mlp_activations=(fields.choice("hidden_act", ACTIVATIONS),),
            norm="layer",
            norm_epsilon=fields.number("layer_norm_eps", kind=float),
            norm_placement="post",
            embedding_norm=True,
            positions="learned",
            max_positions=fields.number("max_position_embeddings"),
            token_types=fields.number("type_vocab_size"),
            encoder_heads=encoder_heads,
            num_labels=labels if {"classes", "tags"} & set(encoder_heads) else 0,
            scale_attention=True,
            tied_embeddings=True,
            scale_tied_logits=False,
            use_bias=True,
            dropout_rate=fields.number("hidden_dropout_prob", kind=float),
            init_std=fields.number("initializer_range", kind=float),
        )
        fields.done(("attention_probs_dropout_prob", "gradient_checkpointing", "directionality",
                     "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
                     "pooler_size_per_head", "pooler_type"))  # fmt: skip
        return arguments

    def obstacle(self, config: TransformerConfig) -> str | None:
        return first_obstacle(
            config,
            architecture="encoder_only",
            positions="learned",
            norm="layer",
            norm_placement="post",
            embedding_norm=True,
            token_types=tuple(range(1, 1024)),
            encoder_heads=tuple(CLASSES),
            use_bias=True,
            kv_heads=config.num_heads,
            head_dim=config.embed_dim // config.num_heads,
            embed_dim=config.num_heads * config.head_dim,
            scale_attention=True,
            qk_norm=False,
            attention_soft_cap=None,
            logits_soft_cap=None,
            num_experts=0,
            mlp_activations=tuple((name,) for name in ACTIVATION_NAMES),
            scale_tied_logits=False if config.tied_embeddings else (True, False),
        )

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        c = config
        return {
            "model_type": "bert",
            "architectures": [CLASSES[c.encoder_heads]],
            "vocab_size": c.vocab_size,
            "hidden_size": c.embed_dim,
            "num_hidden_layers": c.num_encoder_layers,
            "num_attention_heads": c.num_heads,
            "intermediate_size": c.mlp_dim,
            "hidden_act": ACTIVATION_NAMES[c.mlp_activations[0]],
            "max_position_embeddings": c.max_positions,
            "type_vocab_size": c.token_types,
            "layer_norm_eps": c.norm_epsilon,
            "position_embedding_type": "absolute",
            "hidden_dropout_prob": c.dropout_rate,
            "attention_probs_dropout_prob": c.dropout_rate,
            "initializer_range": 0.02 if c.init_std is None else c.init_std,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            **(
                {
                    "id2label": {str(i): f"LABEL_{i}" for i in range(c.num_labels)},
                    "label2id": {f"LABEL_{i}": i for i in range(c.num_labels)},
                }
                if c.num_labels
                else {}
            ),
        }

    def rules(self, config: TransformerConfig) -> list[Rule]:
        heads = config.encoder_heads
        body = "bert." if _has_prefix(heads) else ""
        block, theirs = "encoder/layers_{i}", f"{body}encoder.layer.{{i}}"
        rules = [
            Rule("token_embedder/embedding", f"{body}embeddings.word_embeddings.weight"),
            Rule("type_embedder/embedding", f"{body}embeddings.token_type_embeddings.weight"),
            Rule(
                "encoder/position_embedder/embedding",
                f"{body}embeddings.position_embeddings.weight",
            ),
        ]
        norms = [
            ("encoder/embedding_norm", f"{body}embeddings.LayerNorm"),
            (f"{block}/post_attention_layer_norm", f"{theirs}.attention.output.LayerNorm"),
            (f"{block}/post_mlp_layer_norm", f"{theirs}.output.LayerNorm"),
        ]
        dense = [
            (f"{block}/attention/query", f"{theirs}.attention.self.query"),
            (f"{block}/attention/key", f"{theirs}.attention.self.key"),
            (f"{block}/attention/value", f"{theirs}.attention.self.value"),
            (f"{block}/attention/out", f"{theirs}.attention.output.dense"),
            (f"{block}/mlp/wi", f"{theirs}.intermediate.dense"),
            (f"{block}/mlp/wo", f"{theirs}.output.dense"),
        ]
        if "masked_lm" in heads:
            rules.append(Rule("heads/output/bias", "cls.predictions.bias"))
            norms.append(("heads/transform_norm", "cls.predictions.transform.LayerNorm"))
            dense.append(("heads/transform", "cls.predictions.transform.dense"))
        if "pooler" in heads:
            dense.append(("heads/pooler", f"{body}pooler.dense"))
        if "next_sentence" in heads:
            dense.append(("heads/next_sentence", "cls.seq_relationship"))
        for head, name in (
            ("classes", "classifier"),
            ("tags", "classifier"),
            ("span", "qa_outputs"),
        ):
            if head in heads:
                dense.append((f"heads/{head}", name))
        for ours, name in norms:
            rules += [Rule(f"{ours}/scale", f"{name}.weight"), Rule(f"{ours}/bias", f"{name}.bias")]
        for ours, name in dense:
            rules.append(Rule(f"{ours}/kernel", f"{name}.weight", transpose=True))
            rules.append(Rule(f"{ours}/bias", f"{name}.bias"))
        return rules

    def renamed(self, tensors: Tensors) -> Tensors:
        """With today's names of norms; with "bert." in front if there are heads beside the body."""
        found = {}
        several = any(name.startswith(_OTHERS) for name in tensors)
        for name, tensor in tensors.items():
            for old, new in _OLD:
                name = name.replace(old, new)
            if not name.startswith(_OTHERS):
                name = ("bert." if several else "") + name.removeprefix("bert.")
            found[name] = tensor
        return found

    def ignored(self, config: TransformerConfig) -> Sequence[str]:
        return [r"(bert\.)?embeddings\.position_ids"]

    def copies(self, config: TransformerConfig) -> dict[str, str]:
        return {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        }


def _has_prefix(heads: tuple[str, ...]) -> bool:
    return bool(set(heads) - {"pooler"})


def _heads(architectures: Any, tensors: Collection[str]) -> tuple[str, ...]:
    """What the file holds or, where there is none, what its class has."""
    names = [re.sub(r"^bert\.", "", name) for name in tensors]
    if "embeddings.word_embeddings.weight" in names:
        found = tuple(head for head, sign in _SIGNS.items() if sign in names)
        if "classifier.weight" in names:
            found += ("classes" if "pooler" in found else "tags",)
        return found
    kind = architectures[0] if isinstance(architectures, list) and architectures else ""
    by_class = {name: heads for heads, name in reversed(CLASSES.items())}
    return by_class.get(kind, ("masked_lm", "pooler", "next_sentence"))
