"""All that a gin file can name, as a table: it is read without importing what it names.

gin knows each name by a stand-in, which imports the class or function when a configuration (or a
program, see `config.call`) first makes use of it. The classes and functions themselves are plain:
`TransformerConfig()` in Python means its defaults, whatever a gin file says, and only
`@TransformerConfig()` in a gin file is filled by gin.

What a parameter may be is in signatures.json (signatures.py), so that a wrong name is found
without imports, too.
"""

import functools
import importlib
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import gin

from t5x_lite import value_checks
from t5x_lite.errors import UserError
from t5x_lite.implied import RULES
from t5x_lite.signatures import Parameter, signature_of, stored

MODULE = "t5x_lite"  # gin's module of all names in the table: "t5x_lite.AdamW", or "AdamW"

# module -> its configurables
TABLE = {
    "t5x_lite.corpus.c4": "C4 C4Tfds C4Paragraphs",
    "t5x_lite.corpus.code": "Code",
    "t5x_lite.corpus.duplicates": "Duplicates",
    "t5x_lite.corpus.fineweb": "FineWeb",
    "t5x_lite.corpus.gopher": "GopherQuality GopherRepetition",
    "t5x_lite.corpus.language": "Language",
    "t5x_lite.corpus.limits": "Repair Limits Blocklist Decontaminate",
    "t5x_lite.corpus.mixing": "Mix",
    "t5x_lite.corpus.perplexity": "Perplexity",
    "t5x_lite.corpus.pii": "Pii",
    "t5x_lite.corpus.readers": "Reader",
    "t5x_lite.corpus.roots": "Roots",
    "t5x_lite.corpus.settings": "Corpus",
    "t5x_lite.corpus.tokenizer": "Tokenizer",
    "t5x_lite.data.chat": "ChatTemplate",
    "t5x_lite.data.conversations": "conversations",
    "t5x_lite.data.hub_source": "HuggingFace",
    "t5x_lite.data.huggingface": "HuggingFaceVocabulary",
    "t5x_lite.data.loader": "BatchLoader",
    "t5x_lite.data.objectives.chat": "Chat LastAnswer",
    "t5x_lite.data.objectives.contrastive": "DropoutPairs GivenPairs",
    "t5x_lite.data.objectives.denoisers": "UL2",
    "t5x_lite.data.objectives.fim": "FillInTheMiddle",
    "t5x_lite.data.objectives.heads": "Classes Tags Span",
    "t5x_lite.data.objectives.lm": "CausalLM PrefixLM TextToText",
    "t5x_lite.data.objectives.masked": "MaskedLM ReplacedTokens SentenceOrder NextSentence",
    "t5x_lite.data.objectives.permutation": "PermutationLM",
    "t5x_lite.data.objectives.span": "SpanCorruption",
    "t5x_lite.data.open_files": "open_files",
    "t5x_lite.data.preprocessors": (
        "Rekey Fields Strip Filter Concatenate Truncate FewShot Chunk FlatMap"
    ),
    "t5x_lite.data.record_files": "ArrayRecords TfRecords",
    "t5x_lite.data.sentencepiece_training": "train_sentencepiece",
    "t5x_lite.data.sources": "PythonLibrary InMemory FromFunction",
    "t5x_lite.data.parquet": "Parquet",
    "t5x_lite.data.tables": "JsonLines Delimited",
    "t5x_lite.data.task_data": "task_data parallel_folder text_in_order",
    "t5x_lite.data.tasks": "Task Mixture",
    "t5x_lite.data.templates": (
        "Classify Rate MarkSpans EachAnswer Cloze AnswerQuestion Choose TagWords LastWord"
    ),
    "t5x_lite.data.text_files": "TextFiles ParallelFiles",
    "t5x_lite.data.tfds_source": "Tfds",
    "t5x_lite.data.token_cache": "CachedTokens",
    "t5x_lite.data.trained_vocabulary": "TrainedVocabulary",
    "t5x_lite.data.vocabulary": "SentencePieceVocabulary ByteVocabulary",
    "t5x_lite.evaluation.metrics.answers": "exact_match group_exact_match squad",
    "t5x_lite.evaluation.metrics.classification": (
        "accuracy matthews f1 precision recall auc calibration_error"
    ),
    "t5x_lite.evaluation.metrics.correlation": "pearson spearman",
    "t5x_lite.evaluation.metrics.generation": "bleu chrf rouge",
    "t5x_lite.evaluation.metrics.likelihood": "perplexity",
    "t5x_lite.evaluation.metrics.tagging": "entity_f1",
    "t5x_lite.evaluation.predictions": "TextEvaluation",
    "t5x_lite.inference.beam": "BeamSearch",
    "t5x_lite.inference.lookup": "Lookup",
    "t5x_lite.inference.sampling": "Greedy Sample",
    "t5x_lite.models.adapters": "LoRA SoftPrompt",
    "t5x_lite.models.config": "TransformerConfig",
    "t5x_lite.parallel.mesh": "MeshConfig",
    "t5x_lite.parallel.rules": "logical_rules",
    "t5x_lite.programs.early_stopping": "EarlyStopping",
    "t5x_lite.programs.embed": "StsEvaluation",
    "t5x_lite.programs.eval": "evaluate",
    "t5x_lite.programs.infer": "infer",
    "t5x_lite.programs.train": "train",
    "t5x_lite.serve.settings": "ServeConfig",
    "t5x_lite.training.guards": "SpikeGuard",
    "t5x_lite.training.head_losses": "HeadLoss",
    "t5x_lite.training.optimizers": "AdamW Lion RmsScaledAdamW Adafactor Muon",
    "t5x_lite.training.pair_losses": "ContrastiveLoss",
    "t5x_lite.training.retention": "CheckpointConfig",
    "t5x_lite.training.schedules": (
        "constant inverse_square_root t5_inverse_square_root cosine linear warmup_stable_decay "
        "join_schedules"
    ),
    "t5x_lite.training.services": "WandB Trackio",
    "t5x_lite.training.step": "Loss",
    "t5x_lite.training.watchdog": "WatchdogConfig",
    "t5x_lite.training.watches": "Watches",
}

# Parameters that a program or the library gives, and a gin file can't.
HIDDEN = {
    "train": ("dry_run", "interrupt"),
    "evaluate": ("checkpoint", "watch", "html"),
    "infer": ("records", "checkpoint", "first"),
}
# The only parameters that a gin file can give.
SHOWN = {"BatchLoader": ("num_workers",)}

NAMES = {n: f"{module}:{n}" for module, names in TABLE.items() for n in names.split()}
# (scope, selector, parameter) -> where the configuration gives its value, for messages
PLACES: dict[tuple[str, str, str], str] = {}
_COLLECT = object()  # asks a stand-in for its arguments, instead of a call
_NAME = object()  # asks a stand-in for a function to be called later, with what is bound to it

T = TypeVar("T", bound=Callable)


class Entry:
    """A name that gin knows, and what it stands for."""

    def __init__(self, name: str, target: str | Callable, module: str):
        self.name, self._target, self.selector = name, target, f"{module}.{name}"

    @functools.cached_property
    def target(self) -> Callable:
        """The class or function; the first use imports its module."""
        if not isinstance(self._target, str):
            return self._target
        module, _, attribute = self._target.partition(":")
        return getattr(importlib.import_module(module), attribute)

    @functools.cached_property
    def parameters(self) -> dict[str, Parameter] | None:
        """Those that a gin file may bind; None if any name will do."""
        if isinstance(self._target, str) and self.name in (known := stored()):
            return known[self.name]
        return signature_of(self.target, HIDDEN.get(self.name, ()), SHOWN.get(self.name))

    @functools.cached_property
    def annotations(self) -> dict[str, Any]:
        found = inspect.signature(self.target).parameters
        return {name: p.annotation for name, p in found.items()}

    def make(self, arguments: Mapping[str, Any]) -> Any:
        """Calls the target; what it says of its arguments is told with their places."""
        given = self.prepared(arguments)
        try:
            return self.target(**given)
        except UserError as error:
            raise type(error)(f"{error}{self._places(str(error))}") from error
        except (TypeError, ValueError) as error:
            first = str(error).partition("\n")[0]
            raise UserError(f"{self.name}: {first}{self._places(first)}") from error

    def _places(self, message: str) -> str:
        """Where the parameters stand that a message names."""
        if "\n" in message or any(where in message for where in PLACES.values()):
            return ""  # told already, of something inside
        words = re.findall(r"\w+", message)
        found = [where for (_, selector, name), where in PLACES.items()
                 if selector == self.selector and name in words]  # fmt: skip
        return f" ({', '.join(dict.fromkeys(found))})" if found else ""

    def prepared(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What to call with: gin's values, and those that are implied (implied.py).

        Raises:
          UserError: for all values that aren't what the annotations say.
        """
        given = {name: self._checked(name, value) for name, value in arguments.items()}
        if wrong := [p for name, value in given.items() if (p := self.problem(name, value))]:
            raise UserError("; ".join(wrong))
        self._record_defaults(given)
        for name in RULES.get(self.name, {}) if self.selector in _ENTRIES else ():
            if name not in given and (value := implied(self.name, name, given)) is not None:
                given[name] = value
        return given

    def _checked(self, name: str, value: Any) -> Any:
        return value_checks.as_tuple(without_gin(value), self.annotations.get(name, Any))

    def problem(self, name: str, value: Any) -> str | None:
        """What is wrong with a value; None if nothing is."""
        annotation = self.annotations.get(name, Any)
        if value_checks.fits(value, annotation, value_checks.is_instance):
            return None
        where = next((w for (_, s, n), w in PLACES.items() if (s, n) == (self.selector, name)), "")
        return wrong_value(f"{self.name}.{name}", value, annotation, where)

    def _record_defaults(self, given: Mapping[str, Any]) -> None:
        """gin's operative config has the defaults, too, which gin can't see through a stand-in."""
        scope = gin.current_scope_str()
        used = gin.config._OPERATIVE_CONFIG.setdefault((scope, self.selector), {})
        signature = inspect.signature(self.target).parameters
        for name in self.parameters or ():
            default = signature[name].default if name in signature else inspect.Parameter.empty
            new = default is not inspect.Parameter.empty and name not in {*given, *used}
            if new and gin.config._is_literally_representable(default):
                used[name] = default


def wrong_value(label: str, value: Any, annotation: Any, where: str) -> str:
    """One line: the parameter, what was found, what was expected, and where it stands."""
    place = f" ({where})" if where else ""
    if isinstance(value, type | Bound) or inspect.isfunction(value):
        name = getattr(value, "__name__", "NAME")
        found, more = f"@{name}, without brackets", f"; write @{name}()"
    elif value_checks.is_plain_value(value):
        found, more = f"{value!r:.80}", value_checks.advice(value, annotation)
    else:
        found, more = f"a {type(value).__name__}", ""
    expected = value_checks.described(annotation, NAMES)
    return f"{label} is {found}; expected {expected}{more}{place}"


class Bound:
    """A function that a gin file names without brackets, with the values that it binds to it.

    The values are fixed when the owner is made, so that the function is the same in a worker
    process, to which no configuration comes.
    """

    def __init__(self, function: Callable, values: Mapping[str, Any]):
        functools.update_wrapper(self, function)
        self._function, self._values = function, dict(values)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(self._function).bind_partial(*args).arguments if args else {}
        values = {name: value for name, value in self._values.items() if name not in given}
        return self._function(*args, **{**values, **kwargs})

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"{self._function.__name__}({values})"


def without_gin(value: Any) -> Any:
    """The value with plain functions in the place of gin's: `metrics = [@accuracy]`."""
    if isinstance(value, types.FunctionType):
        if hasattr(value, "_t5x_lite_entry"):
            return value(_NAME)
        return _users_function(value)
    if type(value) in (list, tuple):
        return type(value)(without_gin(part) for part in value)
    if type(value) is dict:
        return {name: without_gin(part) for name, part in value.items()}
    return value


def _users_function(function: Callable) -> Callable:
    """A function decorated by `@gin.configurable`; it keeps in a worker what is bound to it."""
    if not hasattr(function, "__wrapped__"):
        return function
    try:
        values = gin.get_bindings(function)
    except ValueError:  # gin doesn't know it, or not in this form (with a scope)
        return function
    return Bound(function, values) if values else function


def implied(name: str, parameter: str, given: Mapping[str, Any]) -> Any:
    """What a parameter is that nothing is bound to, by implied.py; None if that says nothing."""
    rule = RULES.get(name, {}).get(parameter)
    wanted = rule(given) if callable(rule) else rule
    if wanted is None:
        return None
    wanted, arguments = wanted if isinstance(wanted, tuple) else (wanted, {})
    owner, _, bound = wanted.partition(".")
    if bound:
        return gin.get_bindings(f"{MODULE}.{owner}").get(bound)
    return gin.get_configurable(f"{MODULE}.{owner}")(**arguments)


# ----------------------------------------------------------------------------------- gin's side


def _add(entry: Entry, module: str) -> None:
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        if args and args[0] is _COLLECT:
            return entry.prepared(kwargs)
        if args and args[0] is _NAME:
            return Bound(entry.target, kwargs) if kwargs else entry.target
        if args:
            kwargs |= inspect.signature(entry.target).bind_partial(*args).arguments
        return entry.make(kwargs)

    stand_in.__name__ = stand_in.__qualname__ = entry.name
    stand_in.__doc__ = None
    stand_in._t5x_lite_entry = entry  # type: ignore[attr-defined]
    # gin refuses an unknown or hidden name by itself only where it sees the signature.
    gin.external_configurable(
        stand_in,
        name=entry.name,
        module=module,
        denylist=HIDDEN.get(entry.name) if module == MODULE else None,
        allowlist=SHOWN.get(entry.name) if module == MODULE else None,
    )
    _ENTRIES[entry.selector] = entry


def register(target: T, *, name: str | None = None, module: str | None = None) -> T:
    """Makes a class or function known to gin files, and returns it as it is.

    A decorator for parts of one's own, `@t5x_lite.register`: calls from Python stay plain, and
    `@NAME()` in a gin file is filled and checked as the shipped ones are.
    """
    name, module = name or target.__name__, module or target.__module__
    if NAMES.get(name) == f"{module}:{name}":  # in the table
        return target
    _add(Entry(name, target, module), module)
    return target


def entry(configurable: Any) -> Entry | None:
    """The entry behind gin's own record of a name; None if it isn't one of ours."""
    return getattr(configurable.wrapper, "_t5x_lite_entry", None)


def defaults(name: str) -> dict[str, Any]:
    """The parameters of a name in the table that need no value, and what they are without."""
    found = inspect.signature(_ENTRIES[f"{MODULE}.{name}"].target).parameters
    return {k: p.default for k, p in found.items() if p.default is not inspect.Parameter.empty}


def arguments(configurable: Any, given: Mapping[str, Any]) -> tuple[Callable, dict[str, Any]]:
    """What to call for a name, and with what: the config's values under those ``given``."""
    found = entry(configurable)
    if found is None:  # a user's, decorated: gin fills it when it is called
        return configurable.wrapper, dict(given)
    return found.target, configurable.wrapper(_COLLECT, **given)


_ENTRIES: dict[str, Entry] = {}
for _name, _target in NAMES.items():
    _add(Entry(_name, _target, MODULE), MODULE)
