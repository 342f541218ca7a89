"""gin without surprises: files found by name, every name checked, one line for every mistake.

gin by itself stops at the first problem with several lines of text, and lets a misspelt macro
pass in silence. Here all statements are read first (files in the order given, an include where it
stands, then the bindings of the command line: the last one wins), each name is checked against
what exists (config_checks.py), and only a config without mistakes reaches gin.
"""

import contextlib
import copy
import importlib
import os
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gin
from gin import config_parser

from t5x_lite import config_checks as checks
from t5x_lite import registry
from t5x_lite.config_checks import MACRO, Binding, Placeholders, Reference
from t5x_lite.errors import UserError
from t5x_lite.gin_files import find_gin_file, foreign, is_shipped, is_url, read_gin_file
from t5x_lite.moved_runs import relocated, run_folder

_KEY = re.compile(r"[A-Za-z_][\w./]*")
_PATH = re.compile(r"(/|\./|\.\./|~|[A-Za-z][A-Za-z0-9+.-]*://)")
_LITERALS = {"true": "True", "false": "False", "none": "None", "null": "None"}

_scopes: set[str] = set()  # scopes that Python code enters by itself: see declare_scope
_given: list[Binding] = []  # what the last parse() took from its `bindings`


def parse(
    gin_files: Iterable[str],
    bindings: Iterable[str] = (),
    search_paths: Iterable[str] = (),
    root: str | None = None,
    *,
    trust: bool = False,
) -> None:
    """Replaces the configuration by what the gin files and then the bindings say.

    Args:
      gin_files: names or paths, see `find_gin_file`.
      bindings: "MACRO=value" or "scope/name.parameter=value". The value is a gin literal, or a
        path (starting with /, ./, ../, ~ or scheme://), which needs no quotes.
      search_paths: folders searched for gin files after the current one.
      root: the configurable that will be called (or "name.parameter", for `evaluate`): values that
        nothing under it uses may be left out. None: all are needed.
      trust: let every file import any module: importing runs its code, and who wrote a file may
        not be who reads it. Otherwise that is for the files in ``gin_files`` alone, unless one is
        from a URL or lies in a run's folder; what they include by its path isn't trusted, wherever
        it lies, if it isn't named, too. All may import t5x_lite's modules.

    Raises:
      UserError: for a missing file, bad syntax, an unknown or ambiguous name, a macro or scope
        that nothing uses, or values that are needed and not given (all of them in one line).
    """
    clear()
    reader, names = _Reader(list(search_paths), trust), list(gin_files)
    reader.named = {os.path.realpath(find_gin_file(n, reader.search_paths)) for n in names}
    for name in names:
        reader.read_file(name)
    number_from_files = len(reader.bindings)
    for text in bindings:
        reader.read_binding(text)
    final = {binding.key: binding for binding in reader.bindings}
    checks.override_macros(final, reader.bindings[:number_from_files])
    checks.check_macros_used(reader.bindings)
    checks.check_scopes_used(reader.bindings, _scopes)
    checks.drop_unreferenced_macros(final)
    checks.drop_unused_scopes(final, _scopes)
    checks.check_all_given(final, reader.bindings, root)
    for binding in final.values():
        try:
            gin.bind_parameter(binding.gin_key, checks.to_gin(binding.value))
        except ValueError as error:  # a rule of gin's that the checks above don't know
            reason = str(error).split("\n")[0]
            raise UserError(f"{reason} ({binding.where})") from error
    _given[:] = [b for b in reader.bindings[number_from_files:] if final.get(b.key) is b]


def config_text() -> str:
    """The whole configuration as gin text, with all includes and bindings resolved."""
    return gin.config_str(max_line_length=100)


def operative_config() -> str:
    """The values that were used so far, defaults included, as gin text."""
    return gin.operative_config_str(max_line_length=100)


def clear() -> None:
    """Forgets all bindings; the configurables stay registered."""
    gin.clear_config()
    _given.clear()


@contextlib.contextmanager
def fresh() -> Iterator[None]:
    """An empty configuration inside the `with` block; the one from before comes back after it."""
    stores = (gin.config._CONFIG, gin.config._OPERATIVE_CONFIG, gin.config._SINGLETONS)
    saved = [{key: copy.copy(value) for key, value in store.items()} for store in stores]
    imports, given = set(gin.config._IMPORTS), list(_given)
    clear()
    try:
        yield
    finally:
        clear()
        for store, content in zip(stores, saved, strict=True):
            store.update(content)
        gin.config._IMPORTS.update(imports)
        _given[:] = given


def call(name: str, **given: Any) -> Any:
    """Calls a configurable with what the config binds to it, and what the caller gives.

    Programs make what they need of a config by this, and by `evaluate`, alone: whatever Python
    calls by itself is what its arguments say.
    """
    function, arguments = registry.arguments(checks.find_configurable(name, "a program"), given)
    return function(**arguments)


def evaluate(key: str, given: Mapping[str, Any] | None = None) -> Any:
    """The value bound to "name.parameter", with its references called, or what is implied.

    Only this parameter is built, not its neighbours: a vocabulary can be trained from the task of
    a config whose model would already need that vocabulary.

    given: other arguments, by which implied.py decides where nothing is bound.

    Raises:
      UserError: if nothing is bound to it, and nothing implied.
    """
    try:
        value = gin.query_parameter(key)
    except ValueError as error:
        owner, _, parameter = key.rpartition("/")[2].rpartition(".")
        value = registry.implied(owner.rpartition(".")[2], parameter, given or {})
        if value is None:
            raise UserError(f"the config gives no {key}: bind it in a gin file") from error
        return value
    return registry.without_gin(copy.deepcopy(value))  # gin calls references in a copy


def bound(parameter: str) -> Iterator[str]:
    """The keys, "scope/name.parameter", under which the config binds a parameter of this name."""
    for (scope, selector), values in list(gin.config._CONFIG.items()):
        if parameter in values:
            yield f"{scope}/{selector}.{parameter}" if scope else f"{selector}.{parameter}"


def require(name: str, given: Iterable[str] = ()) -> None:
    """Raises a UserError that lists the parameters of a configurable that have no value at all.

    Args:
      name: the configurable that a program is about to call.
      given: parameters which the program passes itself.
    """
    configurable = checks.find_configurable(name, "called by the program")
    has_value = set(given)
    for (_, selector), parameters in gin.config._CONFIG.items():
        has_value.update(parameters if selector == configurable.selector else ())
    missing = [p for p in checks.needed_parameters(configurable) if p not in has_value]
    if missing:
        raise checks.not_given(f"{name}.{parameter}" for parameter in missing)


def unused_bindings() -> list[str]:
    """The command line's bindings that no call has used so far; worth an error after building."""
    return [b.label for b in _given if not checks.is_used(b, gin.config._OPERATIVE_CONFIG)]


def declare_scope(name: str) -> None:
    """Allows bindings under a scope that no gin file names, as Python code enters it itself."""
    _scopes.add(name)


# -------------------------------------------------------------------------- reading statements


class _Reader:
    """Collects bindings in order, and checks the names in each as it comes."""

    def __init__(self, search_paths: list[str], trust: bool):
        self.search_paths, self.trust = search_paths, trust
        self.bindings: list[Binding] = []
        self.open_files: list[str] = []
        self.named: set[str] = set()  # by the user, who trusts them

    def read_file(self, name: str, where: str = "") -> None:
        beside = os.path.dirname(self.open_files[-1]) if self.open_files else None
        path = find_gin_file(name, self.search_paths, beside=beside, where=where)
        if path in self.open_files:
            raise UserError(f"'{name}' ({where}) includes itself")
        text, first = read_gin_file(path), len(self.bindings)
        relative = path if is_url(path) else os.path.relpath(path)
        place = path if relative.startswith("..") else relative
        self.open_files.append(path)
        for statement in _statements(text, place):
            self.take(statement, f"{place}:{statement.location.line_num}")
        if (folder := run_folder(path)) is not None:
            self.bindings[first:] = relocated(self.bindings[first:], folder)
        self.open_files.pop()

    def _check_import(self, module: str, where: str) -> None:
        for path in self.open_files:
            reason = foreign(path)
            if reason is None and not is_shipped(path) and os.path.realpath(path) not in self.named:
                reason = "it is included by its path"
            if reason is not None:
                raise UserError(
                    f"'import {module}' ({where}) would run that module's code, and {path} may be "
                    f"somebody else's ({reason}): give --trust_config if you trust it"
                    + (f", or --gin_file={path}" if "included" in reason else "")
                )

    def read_binding(self, text: str) -> None:
        """Takes one "key=value", or several gin statements on lines of their own."""
        if "\n" in text.strip():
            for statement in _statements(text, "bindings"):
                self.take(statement, f"bindings:{statement.location.line_num}")
        else:
            for statement in _binding_statements(text):
                self.take(statement, f"binding '{text}'")

    def take(self, statement, where: str) -> None:
        match statement:
            case config_parser.IncludeStatement():
                self.read_file(statement.filename, where)
            case config_parser.ImportStatement():
                if not self.trust and statement.module.split(".")[0] != "t5x_lite":
                    self._check_import(statement.module, where)
                _import(statement, where)
            case config_parser.BlockDeclaration():
                checks.find_configurable(statement.selector, where)
            case config_parser.BindingStatement(scope, selector, parameter, value):
                if parameter:
                    configurable = checks.find_configurable(selector, where)
                    checks.check_parameter(configurable, parameter, where)
                    binding = Binding(scope, configurable.selector, parameter, value, where)
                else:  # a macro; its scopes are part of its name
                    name = f"{scope}/{selector}" if scope else selector
                    binding = Binding("", MACRO, name, value, where)
                for reference in checks.leaves(value, Reference):
                    checks.find_configurable(reference.selector, where)
                self.bindings.append(binding)


def _statements(text: str, place: str):
    """Yields gin's statements; bad syntax is a UserError with its line."""
    try:
        yield from config_parser.ConfigParser(text, Placeholders())
    except (SyntaxError, tokenize.TokenError) as error:
        number = getattr(error, "lineno", None) or error.args[1][0]
        lines = text.split("\n")
        line = lines[min(number, len(lines)) - 1].strip()
        raise UserError(
            f"{place}:{number}: cannot read '{line}' as gin; expected NAME.PARAMETER = VALUE, with "
            "'text in quotes', a number, True, None, a list, dict, %MACRO or @NAME as the value"
        ) from error


def _binding_statements(text: str) -> list:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not _KEY.fullmatch(key):
        raise UserError(f"binding '{text}': expected MACRO=value or name.parameter=value")
    try:
        return list(_statements(f"{key} = {value}", "binding"))
    except UserError:
        if _PATH.match(value):
            # The shell doesn't expand ~ after "=".
            return list(_statements(f"{key} = {os.path.expanduser(value)!r}", "binding"))
        if value.lower() in _LITERALS:
            hint = f"write --gin.{key}={_LITERALS[value.lower()]}"
        else:
            hint = f"if it is text, quote it twice: --gin.{key}=\"'{value}'\""
        raise UserError(f"binding '{text}': {value or 'nothing'} is no gin value; {hint}") from None


def _import(statement, where: str) -> None:
    """`import my_tasks`: a module of the user's that registers configurables."""
    if statement.module.startswith("__gin__."):
        raise UserError(
            f"'{statement.format()}' ({where}) isn't supported: `import module` is enough, its "
            "configurables are known by their names"
        )
    # A console script, unlike `python -m`, doesn't see modules in the current folder.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(statement.module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"no Python module '{error.name}' ({where}): run from its folder or set PYTHONPATH"
        ) from error
    gin.parse_config(statement.format())  # so that config_text() repeats it
