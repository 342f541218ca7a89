"""Reading a config.json: every field is used, known to change nothing, or refused by name."""

from collections.abc import Collection, Mapping
from typing import Any

from t5x_lite.errors import UserError, did_you_mean

# What any model may carry and what changes no number: bookkeeping, generation, training, dtypes.
_HARMLESS = """
_attn_implementation _attn_implementation_autoset _name_or_path _num_labels architectures
attention_dropout attn_pdrop auto_map bad_words_ids begin_suppress_tokens bos_token_id
chunk_size_feed_forward classifier_dropout cross_attention_hidden_size decoder_start_token_id
diversity_penalty do_sample dropout_rate dtype early_stopping embd_pdrop
encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_factor
initializer_range is_decoder is_encoder_decoder keys_to_ignore_at_inference label2id
length_penalty max_length min_length model_type n_ctx name_or_path no_repeat_ngram_size
num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
output_past output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values
repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id
summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
torch_dtype torchscript transformers.js_config transformers_version typical_p use_bfloat16
use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())


class Fields:
    """The fields of a config.json, which must all be asked for by the end.

    A field that is null is as good as absent.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values = {name: value for name, value in values.items() if value is not None}
        self._named = frozenset(values)
        self._asked: set[str] = set()
        self.where = where

    def __contains__(self, name: str) -> bool:
        """Whether the field is there, be it null."""
        return name in self._named

    def get(self, name: str, default: Any = None) -> Any:
        self._asked.add(name)
        return self._values.get(name, default)

    def number(self, name: str, default: float | None = None, kind: type = int) -> Any:
        """A number; UserError if it is something else, or absent without a default."""
        value = self.get(name, default)
        if value is None:
            near = did_you_mean(name, self._values)
            raise UserError(f"{self.where} has no {name!r}, which its model needs.{near}")
        right = isinstance(value, int if kind is int else (int, float))
        if not right or isinstance(value, bool) or not 0 <= value < 2**40:
            raise UserError(f"{self.where}: {name} is {value!r}, expected a number.")
        return kind(value)

    def heads(self, embed_dim: str, num_heads: str) -> tuple[int, int, int]:
        """The width, the heads and the width of one; UserError if they don't share it."""
        width, heads = self.number(embed_dim), self.number(num_heads)
        if heads < 1 or width % heads:
            raise UserError(f"{self.where}: {embed_dim} = {width} isn't a multiple of {heads}.")
        return width, heads, width // heads

    def choice(self, name: str, choices: Mapping[str, Any], default: str) -> Any:
        """``choices[value]``; UserError for a value that isn't among them."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in choices:
            known = ", ".join(choices)
            raise UserError(f"{self.where}: {name} = {value!r} isn't known; expected {known}.")
        return choices[value]

    def refuse(self, name: str, fine: Collection[Any], why: str) -> None:
        """UserError if the field is there with another value than ``fine`` ones."""
        value = self.get(name)
        if value is not None and value not in fine:
            raise UserError(f"{self.where}: {name} = {value!r} isn't supported: {why}.")

    def done(self, harmless: Collection[str] = ()) -> None:
        """UserError that names the fields nobody asked for."""
        known = self._asked | HARMLESS | set(harmless)
        left = sorted(name for name in self._values if name not in known)
        if left:
            said = ", ".join(f"{name} = {self._values[name]!r}"[:80] for name in left[:4])
            raise UserError(
                f"{self.where} has fields that may change what the model computes and aren't "
                f"known here: {said}. Take them out if they don't."
            )
