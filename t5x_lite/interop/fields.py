"""Reading a config.json: every field is used, known to change nothing, or refused by name."""

from collections.abc import Collection, Mapping
from typing import Any

from t5x_lite.errors import UserError, did_you_mean
from t5x_lite.interop.class_fields import CLASS_FIELDS, IDLE, NEEDED, SPELLINGS, Derived, Null

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

    Only those are asked for that the class of ``values["model_type"]`` has (see class_fields.py):
    any other reads as absent, and is refused by name in the end, unless it is null.

    Raises UserError for two spellings of a field that disagree, and a null that the class refuses.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.where = where
        self.kind: str = values["model_type"]
        self._declared = CLASS_FIELDS[self.kind]
        found = dict(values)
        for name, own in SPELLINGS.get(self.kind, {}).items():
            if name in found:
                value = found.pop(name)
                if found.setdefault(own, value) != value:
                    raise UserError(
                        f"{where}: {name} = {value!r} and {own} = {found[own]!r} are one field of "
                        f"{self.kind}: expected one of them."
                    )
        for name, absent in self._declared.items():
            if name in found and found[name] is None and not isinstance(absent, Null):
                raise UserError(f"{where}: {name} is null, expected a value.")
        self._named = frozenset(found)
        self._values = {name: value for name, value in found.items() if value is not None}
        self._asked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether the class has the field, and the file too, be it null."""
        return name in self._declared and name in self._named

    def has(self, name: str) -> bool:
        """Whether the class has the field."""
        return name in self._declared

    def get(self, name: str, absent: Any = None) -> Any:
        """The value; for a file without it, ``absent``, or what its absence means to the class."""
        if name not in self._declared:
            return absent
        self._asked.add(name)
        if name in self._named:
            return self._values.get(name)
        default = self._declared[name]
        if isinstance(default, Null):
            default = default.absent
        unknown = default is NEEDED or default is None or isinstance(default, Derived)
        return absent if unknown else default

    def number(self, name: str, absent: float | None = None, kind: type = int) -> Any:
        """A number; UserError if it is something else, or absent from a file that needs it."""
        value = self.get(name, absent)
        if value is None and absent is not None:
            value = absent
        if value is None:
            near = did_you_mean(name, self._values)
            raise UserError(f"{self.where} has no {name!r}, which its model needs.{near}")
        right = isinstance(value, int if kind is int else (int, float))
        if not right or isinstance(value, bool) or not 0 <= value < 2**40:
            raise UserError(f"{self.where}: {name} is {value!r}, expected a number.")
        return kind(value)

    def flag(self, name: str, absent: bool = False) -> bool:
        """True or false; UserError if it is something else."""
        value = self.get(name, absent)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {name} is {value!r}, expected true or false.")
        return value

    def heads(self, embed_dim: str, num_heads: str) -> tuple[int, int, int]:
        """The width, the heads and the width of one; UserError if they don't share it."""
        width, heads = self.number(embed_dim), self.number(num_heads)
        if heads < 1 or width % heads:
            raise UserError(f"{self.where}: {embed_dim} = {width} isn't a multiple of {heads}.")
        return width, heads, width // heads

    def choice(self, name: str, choices: Mapping[str, Any]) -> Any:
        """``choices[value]``; UserError for a value that isn't among them."""
        value = self.get(name)
        if not isinstance(value, str) or value not in choices:
            known = ", ".join(choices)
            raise UserError(f"{self.where}: {name} = {value!r} isn't known; expected {known}.")
        return choices[value]

    def refuse(self, name: str, fine: Collection[Any], why: str) -> None:
        """UserError if the field is there, of this class or of another, and isn't ``fine``."""
        self._asked.add(name)
        value = self._values.get(name)
        if value is not None and not _among(value, fine):
            raise UserError(f"{self.where}: {name} = {value!r} isn't supported: {why}.")

    def ignore(self, *names: str) -> None:
        """Names of siblings' fields that this class doesn't read, and that may stand there."""
        self._asked.update(names)

    def done(self, harmless: Collection[str] = ()) -> None:
        """UserError that names the fields nobody asked for."""
        known = self._asked | HARMLESS | set(harmless)
        left = sorted(
            name
            for name, value in self._values.items()
            if name not in known and not _among(value, IDLE.get(name, ()))
        )
        if left:
            said = ", ".join(f"{name} = {self._values[name]!r}"[:80] for name in left[:4])
            raise UserError(
                f"{self.where} has fields that may change what the model computes and that a "
                f"{self.kind} doesn't read: {said}. Take them out if they mean nothing."
            )


def _among(value: Any, fine: Collection[Any]) -> bool:
    """Whether it is one of them; True isn't 1, nor False 0."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in fine)
