"""Scripts that let a shell complete the command line; `t5x_lite --completion SHELL` prints one."""

import argparse
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Verbs = Mapping[str, argparse.ArgumentParser]

_BASH = """# Completion of t5x_lite. For this shell: source <(t5x_lite --completion {shell})
_t5x_lite() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" flag="" lead="" words=""
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W {verbs} -- "$cur"))
    return
  fi
  # --flag=value is one word in zsh, three in bash; --flag value is two in both.
  if [[ $cur == --*=* ]]; then flag="${{cur%%=*}}" lead="$flag=" cur="${{cur#*=}}"
  elif [[ $cur == "=" ]]; then flag="${{COMP_WORDS[COMP_CWORD-1]}}" cur=""
  elif [[ ${{COMP_WORDS[COMP_CWORD-1]}} == "=" ]]; then flag="${{COMP_WORDS[COMP_CWORD-2]}}"
  elif [[ $cur != -* ]]; then flag="${{COMP_WORDS[COMP_CWORD-1]}}"
  fi
  case "${{COMP_WORDS[1]}} $flag" in
{values}
  esac
  if [[ -n $words || $cur != -* ]]; then
    COMPREPLY=($(compgen -P "$lead" -W "$words" -- "$cur") $(compgen -P "$lead" -f -- "$cur"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{flags}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o nosort -F _t5x_lite t5x_lite
"""


def script(shell: str, verbs: Verbs, helps: Mapping[str, str], gin_files: Iterable[str]) -> str:
    """The script for "bash", "zsh" or "fish".

    Args:
      verbs: each verb's parser. helps: a line on each verb.
      gin_files: names that --gin_file is known to take, besides files that are there.
    """
    return SHELLS[shell](verbs, helps, list(gin_files))


def shipped_recipes() -> list[str]:
    """As `gin_files.shipped_gin_configs` finds them, without importing gin."""
    package = Path(__file__).resolve().parent
    for folder in (package / "gin_configs", package.parent / "gin_configs"):
        if folder.is_dir():
            return sorted(f"recipes/{path.name}" for path in folder.glob("recipes/*.gin"))
    return []


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    found = {name: action for action in parser._actions for name in action.option_strings}
    return {name: a for name, a in found.items() if name.startswith("--") and name != "--gin.NAME"}


def _values(name: str, action: argparse.Action, gin_files: list[str]) -> list[str]:
    return gin_files if name == "--gin_file" else list(action.choices or ())


def _bash(verbs: Verbs, helps: Mapping[str, str], gin_files: list[str]) -> str:
    values, flags = [], []
    for verb, parser in verbs.items():
        for name, action in _flags(parser).items():
            if known := _values(name, action, gin_files):
                values.append(f"    {shlex.quote(f'{verb} {name}')}) words={_quoted(known)};;")
        flags.append(f"    {verb}) words={_quoted(_flags(parser))};;")
    return _BASH.format(
        shell="bash", verbs=_quoted(verbs), values="\n".join(values), flags="\n".join(flags)
    )


def _zsh(verbs: Verbs, helps: Mapping[str, str], gin_files: list[str]) -> str:
    bash = _bash(verbs, helps, gin_files).replace("--completion bash", "--completion zsh")
    load = "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n"
    return load + bash.replace("-o nosort ", "")


def _fish(verbs: Verbs, helps: Mapping[str, str], gin_files: list[str]) -> str:
    lines = ["# Completion of t5x_lite. For this shell: t5x_lite --completion fish | source"]
    for verb, parser in verbs.items():
        lines.append(
            f"complete -c t5x_lite -f -n __fish_use_subcommand -a {verb} -d "
            f"{shlex.quote(helps[verb])}"
        )
        for name, action in _flags(parser).items():
            line = f"complete -c t5x_lite -n '__fish_seen_subcommand_from {verb}' -l {name[2:]}"
            if action.nargs != 0:
                known = _values(name, action, gin_files)
                line += " -r" + (f" -a {_quoted(known)}" if known else "")
            lines.append(line)
    return "\n".join(lines) + "\n"


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


SHELLS: dict[str, Callable[[Verbs, Mapping[str, str], list[str]], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
