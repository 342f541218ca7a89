"""What a model reads: the one place that decides it, for training and for every later use.

A task's objective decides it while a model is trained (`task_reading`); it is recorded with the
weights (`Reading.record`), and whoever uses these later reads as they did: `eval`, samples,
`infer`, `serve`, `explain`, the evaluation harness and the exporters. Weights of others have their
family's default (`default_reading`).

  attention        a question and its answer are read as
  "encoder"        encoder: question EOS      decoder: start, answer EOS
  "bidirectional"  start, question EOS, answer EOS: a prefix LM, the question sees all of itself
  "causal"         start, question, answer EOS: every token sees what is before it
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from t5x_lite.data.chat import ChatTemplate, check_messages
from t5x_lite.data.features import Lengths, Row, model_features, pad_example
from t5x_lite.data.objectives.chat import Chat, LastAnswer
from t5x_lite.errors import UserError, did_you_mean

ATTENTION = ("encoder", "bidirectional", "causal")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a model reads a text that it is to answer, or to go on with.

    attention: "encoder", "bidirectional" or "causal"; see above.
    inputs_eos: whether EOS ends what it is given.
    template: of conversations; None: the weights know of none.
    marks: whether the template's marks are special tokens where the vocabulary has them (else a
      conversation is plain text to the vocabulary).
    """

    attention: str
    inputs_eos: bool
    template: ChatTemplate | None = None
    marks: bool = True

    start_id: ClassVar[int] = 0  # what a decoder's text begins with

    def __post_init__(self):
        if self.attention not in ATTENTION:
            raise UserError(
                f"attention is {self.attention!r}, expected one of {', '.join(ATTENTION)}."
                + did_you_mean(str(self.attention), ATTENTION)
            )

    @property
    def architecture(self) -> str:
        return "encoder_decoder" if self.attention == "encoder" else "decoder_only"

    @property
    def bidirectional(self) -> bool:
        """Whether a decoder's prompt is read in both directions (prefix LM)."""
        return self.attention == "bidirectional"

    # ---- token ids

    def inputs(
        self, tokens: np.ndarray | Sequence[int], eos_id: int, limit: int | None = None
    ) -> np.ndarray:
        """int32 [n]: what is read of a text's tokens, without the start id; at most `limit`.

        A text is read from its beginning, and EOS ends it even when it is cut; of a causal model's
        prompt, which is gone on with, the end is kept.
        """
        tokens = np.asarray(tokens, np.int32)
        end = np.full(int(self.inputs_eos), eos_id, np.int32)
        if limit is not None and len(tokens) + len(end) > limit:
            room = max(limit - len(end), 0)
            causal = self.attention == "causal"
            tokens = tokens[len(tokens) - room :] if causal else tokens[:room]
        return np.concatenate([tokens, end])

    def chat(self, messages: Sequence[Mapping[str, Any]], vocabulary: Any) -> np.ndarray:
        """int32 [tokens]: a conversation up to where the next answer begins; for `inputs`.

        Without a template of its own, the tokenizer's or chatml's. Raises UserError as `prompt`.
        """
        template = self.template or ChatTemplate()
        if self.marks:
            return template.prompt_ids(messages, vocabulary)
        return vocabulary.encode(template.prompt(messages))

    def end_ids(self, vocabulary: Any) -> tuple[int, ...]:
        """The tokens of which each ends what the model writes: every EOS, and what ends an answer
        if it was trained on conversations."""
        return vocabulary.eos_ids if self.template is None else self.stop_ids(vocabulary)

    def targets(
        self, text: str, vocabulary: Any, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> np.ndarray:
        """int32 [tokens]: an answer and what ends it, as they were learnt.

        messages: the conversation before it, of a task of those whose answers end as the template
        says; otherwise EOS ends it.
        """
        if messages is None or self.template is None or not self.marks:
            return np.append(vocabulary.encode(text), vocabulary.eos_id).astype(np.int32)
        answered = check_messages([*messages, {"role": "assistant", "content": text}])
        ids, turns = self.template.encode(answered, vocabulary)
        learnt = np.flatnonzero(turns == turns.max())  # of the last exchange: odd, hence largest
        return ids[learnt[0] : learnt[-1] + 1]

    def stop_ids(self, vocabulary: Any) -> tuple[int, ...]:
        """The tokens of which each ends an answer in a conversation."""
        if not self.marks:
            return vocabulary.eos_ids
        return (self.template or ChatTemplate()).stop_ids(vocabulary)

    def stop_texts(self, vocabulary: Any) -> tuple[str, ...]:
        """Texts of which each ends an answer in a conversation, beside `stop_ids`: of a vocabulary
        that has no token for the template's stop."""
        return (self.template or ChatTemplate()).stop_texts(vocabulary) if self.marks else ()

    def end_texts(self, vocabulary: Any) -> tuple[str, ...]:
        """As `stop_texts`, beside `end_ids`."""
        return () if self.template is None else self.stop_texts(vocabulary)

    # ---- rows of a batch

    def finish(self, example: Row, lengths: Lengths, append_eos: bool, eos_id: int) -> Row:
        """Trims each of an objective's features to its length, and puts EOS where it is read.

        T5's `append_eos_after_trim`: a feature that was trimmed ends with EOS, too. Only a causal
        model's inputs have none, and are cut at their beginning.
        """
        finished = {}
        for name, tokens in example.items():
            eos = append_eos and (self.inputs_eos or name != "inputs")
            reader = dataclasses.replace(self, inputs_eos=eos)
            if name == "inputs":
                finished[name] = reader.inputs(tokens, eos_id, lengths[name])
            elif eos:
                finished[name] = np.append(tokens[: lengths[name] - 1], eos_id).astype(np.int32)
            else:
                finished[name] = tokens[: lengths[name]]
        return finished

    def features(self, examples: Sequence[Row], lengths: Lengths) -> Row:
        """Model features [B, length] of finished examples {"inputs", "targets"}, one a row."""
        names = list(examples[0])
        rows = [
            pad_example(example, {name: lengths[name] for name in names}) for example in examples
        ]
        stacked = {name: np.stack([row[name] for row in rows]) for name in names}
        return model_features(stacked, self.architecture, False, self.attention)

    # ---- with the weights

    def record(self) -> dict[str, Any]:
        """JSON values for a checkpoint's description."""
        return dataclasses.asdict(self)


def reading_from(record: Mapping[str, Any]) -> Reading:
    """The Reading that `Reading.record` wrote; UserError if it has settings unknown here."""
    fields = dict(record)
    template = fields.pop("template", None)
    known = {field.name for field in dataclasses.fields(Reading)}
    if unknown := sorted(fields.keys() - known):
        raise UserError(f"the weights' reading has {unknown[0]!r}, unknown here.")
    return Reading(**fields, template=template and ChatTemplate(**template))


def default_reading(architecture: str) -> Reading:
    """That of weights of others: T5's family reads EOS behind its inputs, decoders are causal.

    transformers has no class of decoder whose prompt is bidirectional.
    """
    if architecture == "decoder_only":
        return Reading("causal", inputs_eos=False)
    return Reading("encoder", inputs_eos=True)


def objective_reading(objective: Any, architecture: str) -> Reading:
    """What an objective makes a model of this architecture read; without a template."""
    if architecture != "decoder_only":
        return Reading("encoder", inputs_eos=bool(objective.append_eos))
    pairs = "inputs" in objective.features
    if not pairs or getattr(objective, "prefix", None) == "causal":
        return Reading("causal", inputs_eos=False)
    return Reading("bidirectional", inputs_eos=bool(objective.append_eos))


def template_of(task: Any) -> ChatTemplate | None:
    """That of a task of conversations; None: its texts are no messages."""
    holder = _conversations(task.leaves[0][0])
    return holder.template if holder is not None else None


def _conversations(leaf: Any) -> Chat | LastAnswer | None:
    holders = (leaf.objective, *leaf.preprocessors)
    return next((h for h in holders if isinstance(h, Chat | LastAnswer)), None)


def task_reading(task: Any, architecture: str) -> Reading:
    """What a task, or a mixture, makes a model read, if nothing else was recorded with it.

    A task that was made for certain weights (`Task.read_as`) reads as they do.
    """
    leaf = task.leaves[0][0]
    reading = leaf.reading or objective_reading(leaf.objective, architecture)
    if (holder := _conversations(leaf)) is None:
        return reading
    return dataclasses.replace(reading, template=holder.template, marks=isinstance(holder, Chat))
