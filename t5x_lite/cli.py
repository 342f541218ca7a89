"""The command `t5x_lite VERB [flags]`: what is run, and what happens to mistakes.

Nothing heavy is imported here: --help answers at once, and a verb's program is imported only when
it is about to run. Exit status (exit_status.py): 0 done, 1 failed, 2 what the same command would
come to again (one line on stderr; --debug shows where it was found), 130 interrupted, 143 of
training that was asked to stop, and has saved.
"""

import argparse
import errno
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

import t5x_lite
from t5x_lite import exit_status, parent
from t5x_lite.background import BACKGROUND
from t5x_lite.errors import Mistakes, NotFinite, SaveError, Unreadable, UserError, did_you_mean
from t5x_lite.verbs import DEBUG, GIN_FLAGS, VERBS

ONE_LINE = (SaveError, Unreadable)  # what they say is enough
# The disk's or the user's rights', not the program's: a file's name and the system's words say it.
OF_THE_SYSTEM = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO,
    errno.ESTALE, errno.EMFILE, errno.ENFILE,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    if not sys.stdout.isatty() and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # a log shows each line when it is printed
    if argv is None:
        parent.follow()
    arguments = list(sys.argv[1:] if argv is None else argv)
    status = status_of(lambda: _run(arguments), debug="--debug" in arguments)
    if status and argv is None:
        _leave(status)
    return status


def _leave(status: int) -> None:
    """Ends the process now if something is still at work in the background, for nothing."""
    if any(thread.name.startswith(BACKGROUND) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(command: Callable[[], int | None], debug: bool = False) -> int:
    """Runs `command` and returns its exit status; what went wrong is said on stderr."""
    try:
        return command() or 0
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_first_line(error)}", file=sys.stderr)
        return exit_status.MISTAKE
    except NotFinite as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_first_line(error)}", file=sys.stderr)
        return exit_status.MISTAKE  # the same batches, the same numbers
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return exit_status.INTERRUPTED
    except BrokenPipeError:  # `t5x_lite infer ... | head`; python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if debug or not (isinstance(error, ONE_LINE) or _number(error) in OF_THE_SYSTEM):
            traceback.print_exc()
        print(f"error: {_first_line(error)}", file=sys.stderr)
        return exit_status.FAILED
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {_first_line(error)}", file=sys.stderr)
        return exit_status.FAILED


def _number(error: BaseException | None) -> int | None:
    """The system's number of an error; gin raises a copy of it that has lost its own."""
    while error is not None:
        if number := getattr(error, "errno", None):
            return number
        error = error.__cause__ or error.__context__
    return None


def _first_line(error: Exception) -> str:
    if isinstance(error, Mistakes):
        return str(error)
    # gin adds lines on the calls it was in; the message itself is the first.
    return str(error).partition("\n")[0]


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of `VERB [flags]`, with all gin bindings in their order in `gin_bindings`.

    Raises:
      UserError: for an unknown verb or flag, with the nearest one, or a bad value.
      SystemExit: after --help.
    """
    verb, rest = argv[0], list(argv[1:])
    if verb not in VERBS:
        if verb.startswith("-"):
            raise UserError(f"the verb comes first: t5x_lite {'|'.join(VERBS)} {verb} ...")
        known = ", ".join(VERBS)
        raise UserError(f"unknown verb '{verb}'.{did_you_mean(verb, VERBS) or f' Known: {known}.'}")
    bindings = []
    if VERBS[verb].gin:
        bindings, rest = _take_bindings(rest)
    parser = verb_parser(verb)
    args, unknown = parser.parse_known_args(rest)
    if unknown:
        raise UserError(_unknown_argument(verb, unknown[0], parser))
    args.verb = verb
    if VERBS[verb].gin:
        args.gin_bindings = bindings
        args.gin_search_paths = [p for paths in args.gin_search_paths for p in paths.split(",")]
    if getattr(args, "output", None) and not getattr(args, "overwrite", False):
        _refuse_to_overwrite(args.output, hasattr(args, "overwrite"))
    return args


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of one verb's flags."""
    entry = VERBS[verb]
    parser = _Parser(
        prog=f"t5x_lite {verb}",
        description=f"{entry.help[0].upper()}{entry.help[1:]}.",
        epilog="\n  ".join(["example:", *entry.example.split("\n")]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    gin_flags = GIN_FLAGS if entry.gin else ()
    for name, options in (*entry.flags, *gin_flags, DEBUG):
        parser.add_argument(name, **options)
    return parser


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"t5x_lite {t5x_lite.__version__}")
        return 0
    if argv[0].partition("=")[0] == "--completion":
        print(_completion(*"=".join(argv).split("=")[1:]), end="")
        return 0
    args = parse_args(argv)
    verb = VERBS[args.verb]
    if getattr(args, "restart", 0):
        from t5x_lite.programs import supervisor

        return supervisor.supervise(supervisor.train_command(argv), args.restart)
    if verb.root:
        from t5x_lite import config, gin_files

        if not args.gin_file and not args.gin_bindings:
            shipped = gin_files.shipped_gin_configs()
            raise UserError(f"{args.verb} needs --gin_file=FILE (shipped ones are in {shipped})")
        config.parse(
            args.gin_file,
            args.gin_bindings,
            args.gin_search_paths,
            verb.root,
            trust=args.trust_config,
        )
        if args.verb == "train":  # with a few rows, as in decoding, the other products are faster
            from t5x_lite.parallel import xla_flags

            xla_flags.apply_defaults()  # before jax starts a backend
    return importlib.import_module(verb.module).main(args)


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        f"usage: t5x_lite VERB [flags]\n\n{verbs}\n\n"
        "t5x_lite VERB --help shows the flags of a verb, t5x_lite --version the version;\n"
        "source <(t5x_lite --completion bash) lets the shell complete them (zsh, fish: as well)."
    )


def _completion(shell: str = "", *more: str) -> str:
    from t5x_lite import completion

    if shell not in completion.SHELLS or more:
        known = ", ".join(completion.SHELLS)
        raise UserError(f"--completion is for a shell: {known}; found '{shell}'.")
    parsers = {name: verb_parser(name) for name in VERBS}
    helps = {name: verb.help for name, verb in VERBS.items()}
    return completion.script(shell, parsers, helps, completion.shipped_recipes())


def _take_bindings(argv: list[str]) -> tuple[list[str], list[str]]:
    """Splits off --gin.NAME=VALUE, --gin.NAME VALUE and --gin_bindings, in their order.

    argparse cannot: it neither knows the names nor accepts a value such as -1.
    """
    bindings, rest = [], []
    queue = iter(argv)
    for argument in queue:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--gin.") and flag != "--gin_bindings":
            rest.append(argument)
            continue
        if not equals:
            value = next(queue, None)
            if value is None or value.startswith("--"):
                raise UserError(f"{flag} needs a value: {flag}=VALUE")
        name = flag.removeprefix("--gin.")
        bindings.append(value if flag == "--gin_bindings" else f"{name}={value}")
    return bindings, rest


def _unknown_argument(verb: str, argument: str, parser: argparse.ArgumentParser) -> str:
    flag = argument.partition("=")[0]
    known = [name for action in parser._actions for name in action.option_strings]
    hint = did_you_mean(flag, known)
    if flag.endswith(".gin"):
        hint = f" Did you mean '--gin_file={argument}'?"
    elif flag.startswith("-") and VERBS[verb].gin:
        # A forgotten or misspelt "gin.": --train.steps=5, --MODEL_DIR=/x, --gni.train.steps=5
        name = flag.lstrip("-")
        first, dot, others = name.partition(".")
        if dot and did_you_mean(first, ["gin"]):
            name = others
        if dot or name.isupper():
            hint = f" Did you mean '--gin.{name}'?"
    if not hint:
        owners = [v for v in VERBS if flag in [name for name, _ in VERBS[v].flags]]
        hint = f" It is a flag of {', '.join(owners)}." if owners else f" See t5x_lite {verb} -h."
    return f"{verb} has no argument '{flag}'.{hint}"


def _refuse_to_overwrite(path: str, can_overwrite: bool) -> None:
    if os.path.exists(path):
        way_out = "give --overwrite or another name" if can_overwrite else "give another name"
        raise UserError(f"--output={path} exists already; {way_out}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}. See {self.prog} --help.")


if __name__ == "__main__":
    sys.exit(main())
