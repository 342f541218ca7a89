"""What a metric is, and how sure one may be of its value."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.registry import register

Target = str | Sequence[str]
Values = dict[str, float | str]

# What a metric may ask for besides targets and predictions, by keyword; each is a list, too.
EXTRAS = ("scores", "target_scores", "groups")


class Metric(Protocol):
    """A function of lists of equal length, one entry an example. `uses` names its extras.

    targets: the text that is right, or a sequence of texts each of which is.
    predictions: the text that the model made or chose.
    scores: the prediction's log-probability; among choices, that of the choice among them.
    target_scores: the log-probability of the target text.
    groups: what examples that belong together have in common, or None.

    Returns numbers by name; a text is a note on how they were computed.
    """

    uses: tuple[str, ...]

    def __call__(self, targets: Sequence[Target], predictions: Sequence[str], **extras) -> Values:
        """Raises UserError for lists that are empty or of different lengths."""


def metric(*uses: str, needs: str | None = None) -> Callable[[Callable], Any]:
    """Makes a function a `Metric` that can be named in gin: `Task.metrics = [@accuracy]`.

    needs: the package that it is computed with, as pip calls it.
    """
    assert set(uses) <= set(EXTRAS), uses

    def wrap(function: Callable) -> Any:
        @functools.wraps(function)
        def checked(targets, predictions, *args, **kwargs):
            lists = [targets, predictions, *(kwargs[k] for k in uses if kwargs.get(k) is not None)]
            lengths = [len(values) for values in lists]
            if len(set(lengths)) > 1 or not lengths[0]:
                raise UserError(
                    f"metric {function.__name__} got {lengths[0]} targets and {lengths[1]} "
                    "predictions (or others beside them): it needs one prediction for each target, "
                    "and one target at least."
                )
            return function(targets, predictions, *args, **kwargs)

        vars(checked).update(uses=uses, needs=needs)
        return register(checked)  # those of the table are known already

    return wrap


_MODULES = {"scikit-learn": "sklearn", "rouge-score": "rouge_score"}  # others: as pip has it


def check_installed(metrics: Iterable[Callable]) -> None:
    """UserError, with what to install, if a package that a metric needs isn't there."""
    for name in dict.fromkeys(getattr(m, "needs", None) for m in metrics):
        if name is not None and importlib.util.find_spec(_MODULES.get(name, name)) is None:
            raise _missing(name, "it isn't installed")


def library(package: str, module: str) -> Any:
    """Imports a module of a package, as pip calls it; UserError with what to install."""
    try:
        return importlib.import_module(f"{_MODULES.get(package, package)}.{module}")
    except ImportError as error:
        raise _missing(package, str(error)) from error


def _missing(package: str, reason: str) -> UserError:
    return UserError(
        f"a metric needs {package} ({reason}): pip install 't5x_lite[metrics]', or "
        f"pip install {package}"
    )


def references(target: Target) -> list[str]:
    """The texts that are right, as a list."""
    return [target] if isinstance(target, str) else list(target)


def bootstrap(
    function: Metric,
    targets: Sequence[Target],
    predictions: Sequence[str],
    extras: Mapping[str, Sequence[Any]] | None = None,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals {name: (low, high)} by the percentile bootstrap (Efron, 1979).

    The metric is computed on `samples` draws of as many examples, with replacement; whole groups
    are drawn where there are any. Values that a draw leaves undefined (nan) don't count.

    Raises:
      UserError: fewer than 2 samples, or a level outside (0, 1).
    """
    if samples < 2 or not 0 < level < 1:
        raise UserError(
            f"bootstrap got samples={samples}, level={level}: use 2 samples or more and a level "
            "between 0 and 1, such as 0.95."
        )
    extras = dict(extras or {})
    rng = np.random.default_rng(seed)
    units = _units(extras.get("groups"), len(targets))
    drawn: dict[str, list[float]] = {}
    for _ in range(samples):
        chosen = np.concatenate([units[i] for i in rng.integers(len(units), size=len(units))])
        pick = lambda values: [values[i] for i in chosen]  # noqa: B023, E731
        more = {name: pick(values) for name, values in extras.items()}
        for name, value in function(pick(targets), pick(predictions), **more).items():
            if isinstance(value, float):
                drawn.setdefault(name, []).append(value)
    tail = (1 - level) / 2
    return {
        name: (float(np.nanquantile(values, tail)), float(np.nanquantile(values, 1 - tail)))
        for name, values in drawn.items()
    }


def _units(groups: Sequence[Any] | None, count: int) -> list[np.ndarray]:
    """Indices of the examples that are drawn together."""
    found: dict[Any, list[int]] = {}
    for i in range(count):
        group = None if groups is None else groups[i]
        found.setdefault(("alone", i) if group is None else ("group", group), []).append(i)
    return [np.array(indices) for indices in found.values()]
