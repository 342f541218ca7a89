"""What goes without saying: values that reach a parameter to which a gin file doesn't bind them.

`EarlyStopping.patience = 5` is enough, without `train.early_stopping = @EarlyStopping()`. This is
the one place where a value gets from gin to where nothing is bound; from Python, the parameter is
None, or its default, unless it is given.
"""

from collections.abc import Callable, Mapping
from typing import Any

# configurable -> parameter -> what it is if neither gin nor the caller gives it: "NAME" is @NAME()
# as the config describes it (or ("NAME", arguments)); "NAME.parameter" is what the config binds to
# that, if anything; a function gets the other arguments, and answers likewise.
Rule = str | tuple[str, dict] | Callable[[Mapping[str, Any]], "str | None"]


def _training_loss(given: Mapping[str, Any]) -> str | None:
    objective = getattr(given.get("task"), "objective", None)
    return "HeadLoss" if hasattr(objective, "head") else "Loss"


def _evaluation_loss(given: Mapping[str, Any]) -> str | None:
    objective = getattr(given.get("task"), "objective", None)
    pairs = "anchor" in getattr(objective, "features", ())
    return "ContrastiveLoss" if pairs else _training_loss(given)


_DEVICES: dict[str, Rule] = {"mesh": "MeshConfig", "rules": "logical_rules"}
_HELD_OUT: dict[str, Rule] = {"text": "TextEvaluation", "sts": "StsEvaluation"}
RULES: dict[str, dict[str, Rule]] = {
    "train": {
        **_DEVICES,
        **_HELD_OUT,
        "loss": _training_loss,
        "checkpoint": "CheckpointConfig",
        "early_stopping": "EarlyStopping",
        "watchdog": "WatchdogConfig",
        "num_workers": "BatchLoader.num_workers",
    },
    "evaluate": {**_DEVICES, **_HELD_OUT, "loss": _evaluation_loss},
    "infer": {**_DEVICES, "pooling": "ContrastiveLoss.pooling"},
    "Chat": {"template": "ChatTemplate"},
    "LastAnswer": {"template": ("ChatTemplate", {"name": "plain"})},
}
