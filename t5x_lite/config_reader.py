"""The statements of gin files and of the command line, in order; mistakes are gathered."""

import contextlib
import importlib
import os
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from typing import Any

import gin
from gin import config_parser

from t5x_lite import config_checks as checks
from t5x_lite import t5x_names
from t5x_lite.config_checks import MACRO, Binding, Placeholders, Reference
from t5x_lite.errors import UserError
from t5x_lite.gin_files import find_gin_file, foreign, is_shipped, is_url, read_gin_file
from t5x_lite.moved_runs import relocated, run_folder

_KEY = re.compile(r"[A-Za-z_][\w./]*")
_LITERALS = {"true": "True", "false": "False", "none": "None", "null": "None"}
_BEGUN = ("[", "{", "(", "'", '"', "@", "%")  # what begins so was meant as gin


class Reader:
    """Collects bindings in order, checks the names in each as it comes, and goes on.

    mistakes: one line each. lacks_files: whether a file wasn't found, so that what it says is not
    among the bindings.
    """

    def __init__(self, search_paths: list[str], trust: bool):
        self.search_paths, self.trust = search_paths, trust
        self.bindings: list[Binding] = []
        self.mistakes: list[str] = []
        self.lacks_files = False
        self._open_files: list[str] = []
        self._block: str | None = None
        self._named: set[str] = set()  # by the user, who trusts them

    def name(self, names: Iterable[str]) -> None:
        """Notes the files that the user names: they may import modules."""
        for name in names:
            with contextlib.suppress(UserError):  # said when it is read
                self._named.add(os.path.realpath(find_gin_file(name, self.search_paths)))

    def read_file(self, name: str, where: str = "") -> None:
        beside = os.path.dirname(self._open_files[-1]) if self._open_files else None
        try:
            path = find_gin_file(name, self.search_paths, beside=beside, where=where)
            if path in self._open_files:
                raise UserError(f"'{name}' ({where}) includes itself")
            text, first = read_gin_file(path), len(self.bindings)
        except UserError as error:
            self.mistakes.append(f"{error}{t5x_names.hint(name)}")
            self.lacks_files = True
            return
        relative = path if is_url(path) else os.path.relpath(path)
        place = path if relative.startswith("..") else relative
        self._open_files.append(path)
        self._take_all(_statements(text, place), lambda s: f"{place}:{s.location.line_num}")
        if (folder := run_folder(path)) is not None:
            self.bindings[first:] = relocated(self.bindings[first:], folder)
        self._open_files.pop()

    def read_binding(self, text: str) -> None:
        """Takes one "key=value", or several gin statements on lines of their own."""
        if "\n" in text.strip():
            self._take_all(
                _statements(text, "bindings"), lambda s: f"bindings:{s.location.line_num}"
            )
        else:
            self._take_all(_binding_statements(text), lambda s: f"binding '{text}'")

    def _take_all(self, statements: Iterator[Any], place: Any) -> None:
        try:
            for statement in statements:
                self._take(statement, place(statement))
        except UserError as error:  # of the syntax: what comes after it can't be read
            self.mistakes.append(str(error))

    def _take(self, statement: Any, where: str) -> None:
        try:
            match statement:
                case config_parser.IncludeStatement():
                    self.read_file(statement.filename, where)
                case config_parser.ImportStatement():
                    self._import(statement, where)
                case config_parser.BlockDeclaration():
                    self._block = statement.selector  # if it is unknown, said once for all of it
                    checks.find_configurable(statement.selector, where)
                    self._block = None
                case config_parser.BindingStatement():
                    if statement.selector != self._block:
                        self._bind(statement, where)
        except UserError as error:
            self.mistakes.append(str(error))

    def _bind(self, statement: Any, where: str) -> None:
        scope, selector, parameter, value = (
            statement.scope, statement.selector, statement.arg_name, statement.value
        )  # fmt: skip
        for reference in checks.leaves(value, Reference):
            try:
                checks.find_configurable(reference.selector, where)
            except UserError as error:
                self.mistakes.append(str(error))
        if parameter:
            configurable = checks.find_configurable(selector, where, parameter)
            checks.check_parameter(configurable, parameter, where)
            binding = Binding(scope, configurable.selector, parameter, value, where)
        else:  # a macro; its scopes are part of its name
            name = f"{scope}/{selector}" if scope else selector
            binding = Binding("", MACRO, name, value, where)
        self.bindings.append(binding)

    def _import(self, statement: Any, where: str) -> None:
        if not self.trust and statement.module.split(".")[0] != "t5x_lite":
            self._check_import(statement.module, where)
        try:
            _import(statement, where)
        except UserError as error:
            raise UserError(f"{error}{t5x_names.hint(statement.module)}") from error

    def _check_import(self, module: str, where: str) -> None:
        for path in self._open_files:
            reason = foreign(path)
            named = os.path.realpath(path) in self._named
            if reason is None and not is_shipped(path) and not named:
                reason = "it is included by its path"
            if reason is not None:
                raise UserError(
                    f"'import {module}' ({where}) would run that module's code, and {path} may be "
                    f"somebody else's ({reason}): give --trust_config if you trust it"
                    + (f", or --gin_file={path}" if "included" in reason else "")
                )


def _statements(text: str, place: str) -> Iterator[Any]:
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


def _binding_statements(text: str) -> Iterator[Any]:
    """The statements of "key=value", where a value that is no gin is text."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not _KEY.fullmatch(key):
        raise UserError(f"binding '{text}': expected MACRO=value or name.parameter=value")
    try:
        yield from list(_statements(f"{key} = {value}", "binding"))
        return
    except UserError:
        if problem := _no_text(key, value):
            raise UserError(f"binding '{text}': {problem}") from None
    # The shell doesn't expand ~ after "=".
    yield from _statements(f"{key} = {os.path.expanduser(value)!r}", "binding")


def _no_text(key: str, value: str) -> str | None:
    """Why a value that isn't gin was hardly meant as text; None: it is text."""
    if value.lower() in _LITERALS:
        return f"{value} is no gin value; write --gin.{key}={_LITERALS[value.lower()]}"
    if not value:
        return f"nothing is given; write --gin.{key}=None, or text in quotes: \"''\""
    if value.startswith(_BEGUN):
        return (
            f"{value} is no gin value: a bracket or quote isn't closed, or a name is wrong; if it "
            f'is text, quote it twice: --gin.{key}="{value!r}"'
        )
    return None


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
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"'import {statement.module}' ({where}) failed: {reason}") from error
    try:
        gin.parse_config(statement.format())  # so that config_text() repeats it
    except Exception as error:  # `import a as b`
        raise UserError(
            f"'{statement.format()}' ({where}) isn't supported: write import {statement.module}"
        ) from error
