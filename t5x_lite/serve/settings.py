"""What a server allows."""

import dataclasses

from t5x_lite.errors import UserError
from t5x_lite.ranges import AboveZero, Count, NotNegative, Positive


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Limits of `t5x_lite serve`; a request beyond one is refused with the status in brackets.

    slots: texts that are decoded together.
    max_waiting: texts that wait for a slot [429].
    max_prompt_tokens: of one prompt; None: the length of the task's inputs, or targets [400].
    max_tokens: new tokens of one text; None: the length of the task's targets [400]. It is also
      what a request gets that asks for no number.
    max_texts: prompts times n, or texts to embed, of one request [400].
    max_body_bytes: of a request [413].
    read_seconds: for a request to arrive [408, or the connection is closed].
    request_seconds: for the answer [408; of a stream, its end].
    grace_seconds: for running requests when the server is asked to stop.
    slice_tokens: tokens that are decoded between two looks at who came and who left.
    """

    slots: Positive = 8
    max_waiting: Count = 256
    max_prompt_tokens: Positive | None = None
    max_tokens: Positive | None = None
    max_texts: Positive = 32
    max_body_bytes: Positive = 1_000_000
    read_seconds: AboveZero = 10.0
    request_seconds: AboveZero = 120.0
    grace_seconds: NotNegative = 10.0
    slice_tokens: Positive = 8

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise UserError(f"ServeConfig.{field.name} is {value}, expected more than 0.")
