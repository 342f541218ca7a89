"""How much of each source or language goes into the result."""

import dataclasses
from collections.abc import Mapping

from t5x_lite.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Mix:
    """Copies of each document by its group: 0.3 keeps 30 % of them, 2.5 makes two or three of each.

    Args:
      by: "source" or "language".
      weights: {group: share of the result's bytes}; groups that aren't named are left out.
      temperature: without weights, shares are bytes ** temperature: 1 as it is, 0.3 as in mT5
        (Xue et al. 2021), 0 all alike.
      budget_bytes: of the result; None: as much as there is of the group that is scarcest for its
        share, so that nothing is repeated but up to `max_copies`.
      max_copies: no document more often; a group that is too small for its share stays smaller.
    """

    by: str = "language"
    weights: Mapping[str, float] | None = None
    temperature: float = 1.0
    budget_bytes: int | None = None
    max_copies: float = 4.0

    def __post_init__(self):
        if self.by not in ("source", "language"):
            raise UserError(f"Mix.by is {self.by!r}; use 'source' or 'language'.")
        if self.max_copies <= 0 or not 0 <= self.temperature <= 1:
            raise UserError("Mix wants 0 <= temperature <= 1 and max_copies > 0.")

    def copies(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """Copies of each document of a group, from the groups' bytes.

        Raises UserError if a weight's group isn't there.
        """
        sizes = {group: size for group, size in sizes.items() if size > 0}
        if self.weights is not None:
            for group in self.weights:
                if group not in sizes:
                    raise UserError(
                        f"Mix.weights has {group!r}, expected a {self.by} of the documents: "
                        f"{', '.join(sorted(sizes))}.{did_you_mean(group, sizes)}"
                    )
            shares = dict(self.weights)
        else:
            shares = {group: size**self.temperature for group, size in sizes.items()}
        total = sum(shares.values())
        most = {g: self.max_copies * sizes[g] for g in shares}
        budget = self.budget_bytes
        if budget is None:
            budget = min(most[g] * total / shares[g] for g in shares if shares[g] > 0)
            if self.weights is None and self.temperature == 1:
                budget = sum(sizes.values())
        return {
            group: min(budget * share / total, most[group]) / sizes[group]
            for group, share in shares.items()
        }


def number_of_copies(copies: float, position: float) -> int:
    """Whole copies of the document at `position` in [0, 1), so that `copies` is their mean."""
    return int(copies) + (position < copies - int(copies))
