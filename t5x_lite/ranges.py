"""Numbers with limits, for annotations: `batch_size: Positive`, `held_out: Fraction`.

The limits are checked where a gin file gives the value (value_checks.py).
"""

import math
from typing import Annotated, NamedTuple


class Range(NamedTuple):
    """From `low` to `high`, which belong to it unless they are open."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.open_low else f"of {self.low:g} or more"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"

    def __repr__(self) -> str:
        return f"Range({self.low!r}, {self.high!r}, {self.open_low}, {self.open_high})"


Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]
Fraction = Annotated[float, Range(0, 1, open_high=True)]  # all is too much
AboveZero = Annotated[float, Range(0, open_low=True)]
NotNegative = Annotated[float, Range(0)]
