"""gin without surprises: files found by name, every name checked, one line for every mistake.

gin by itself stops at the first problem with several lines of text, and lets a misspelt macro
pass in silence. Here all statements are read first (files in the order given, an include where it
stands, then the bindings of the command line: the last one wins), each name is checked against
what exists (config_checks.py), and only a config without mistakes reaches gin.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gin

from t5x_lite import config_checks as checks
from t5x_lite import registry
from t5x_lite.config_checks import Binding
from t5x_lite.config_reader import Reader
from t5x_lite.config_values import cycles, places, wrong_values
from t5x_lite.errors import UserError, raise_all
from t5x_lite.moved_runs import with_carried_vocabulary

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
      bindings: "MACRO=value" or "scope/name.parameter=value". A value that is no gin is text:
        books/*.txt needs no quotes.
      search_paths: folders searched for gin files after the current one.
      root: the configurable that will be called (or "name.parameter", for `evaluate`): values that
        nothing under it uses may be left out. None: all are needed.
      trust: let every file import any module: importing runs its code, and who wrote a file may
        not be who reads it. Otherwise that is for the files in ``gin_files`` alone, unless one is
        from a URL or lies in a run's folder; what they include by its path isn't trusted, wherever
        it lies, if it isn't named, too. All may import t5x_lite's modules.

    Raises:
      UserError: for missing files, bad syntax, unknown or ambiguous names, macros and scopes that
        nothing uses (all of them at once); if there are none, for values that are needed and not
        given, and values of a wrong type.
    """
    clear()
    reader, names = Reader(list(search_paths), trust), list(gin_files)
    reader.name(names)
    for name in names:
        reader.read_file(name)
    number_from_files = len(reader.bindings)
    for text in bindings:
        reader.read_binding(text)
    reader.bindings = with_carried_vocabulary(reader.bindings)
    final = {binding.key: binding for binding in reader.bindings}
    checks.override_macros(final, reader.bindings[:number_from_files])
    unused = checks.unused_macros(reader.bindings, only_of_t5x=reader.lacks_files)
    raise_all(reader.mistakes + unused + checks.unused_scopes(reader.bindings, _scopes))
    checks.drop_unreferenced_macros(final)
    checks.drop_unused_scopes(final, _scopes)
    raise_all(cycles(final))
    missing = checks.not_all_given(final, reader.bindings, root)
    raise_all(missing + wrong_values(final))
    registry.PLACES.update(places(final))
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
    registry.PLACES.clear()


@contextlib.contextmanager
def fresh() -> Iterator[None]:
    """An empty configuration inside the `with` block; the one from before comes back after it."""
    stores = (gin.config._CONFIG, gin.config._OPERATIVE_CONFIG, gin.config._SINGLETONS)
    saved = [{key: copy.copy(value) for key, value in store.items()} for store in stores]
    imports, given, found = set(gin.config._IMPORTS), list(_given), dict(registry.PLACES)
    clear()
    try:
        yield
    finally:
        clear()
        for store, content in zip(stores, saved, strict=True):
            store.update(content)
        gin.config._IMPORTS.update(imports)
        _given[:] = given
        registry.PLACES.update(found)


def call(name: str, **given: Any) -> Any:
    """Calls a configurable with what the config binds to it, and what the caller gives.

    Programs make what they need of a config by this, and by `evaluate`, alone: whatever Python
    calls by itself is what its arguments say.
    """
    configurable = checks.find_configurable(name, "a program")
    if configurable.name not in registry.HIDDEN:
        return configurable.wrapper(**given)
    # A verb runs for long, and its errors keep their kind: gin would raise copies of them.
    function, arguments = registry.arguments(configurable, given)
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
    value = registry.without_gin(copy.deepcopy(value))  # gin calls references in a copy
    name, _, parameter = key.rpartition("/")[2].rpartition(".")
    entry = registry.entry(checks.find_configurable(name, "a program"))
    if entry is not None and (wrong := entry.problem(parameter, value)):
        raise UserError(wrong)
    return value


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
