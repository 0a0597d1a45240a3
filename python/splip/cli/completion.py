"""``splip completion``: scripts for shells, made once from the parsers, so that completing starts no Python."""

import re
import shlex
from dataclasses import dataclass

from splip.cli import help, main
from splip.cli.config import CompletionConfig


@dataclass(frozen=True)
class Option:
    """An option of a verb: its names, the values it takes if these can be listed, whether it takes any, and its help."""

    names: tuple[str, ...]
    choices: tuple[str, ...]
    takes: bool
    help: str


def completion(config: CompletionConfig) -> None:
    """``splip completion``."""
    print({"bash": bash, "zsh": zsh, "fish": fish}[config.shell](), end="")


def options(verb: str) -> list[Option]:
    """All options of a verb, as its parser has them."""
    found = []
    for action in main.parser(verb)._actions:
        if not action.option_strings:
            continue
        names = [*action.option_strings, *(["-k"] if "--k" in action.option_strings else [])]
        text = re.sub(r"\x1b\[[0-9;]*m", "", action.help or "")
        said = re.split(
            r"(?<=[.;])\s(?=[A-Z])|;\s|\s\((?:default|required|optional|repeatable)", " ".join(text.split())
        )[0]
        choices = tuple(str(one) for one in action.choices or ())
        found.append(Option(tuple(names), choices, action.nargs != 0, said.rstrip(".:;")))
    if verb in main.FILES:
        found.append(Option(("--config",), (), True, "Settings from a file, or a shipped name"))
    if verb in help.COMMON:
        found.append(Option((help.ALL,), (), False, "All options"))
    return [*found, Option(("--plugin",), (), True, "Run a file that defines methods or losses first")]


def words() -> dict[str, list[str]]:
    """First words of verbs, with the second ones of those that have any."""
    found: dict[str, list[str]] = {}
    for verb in main.VERBS:
        first, *rest = verb.split()
        found.setdefault(first, []).extend(rest)
    return found


def bash() -> str:
    """Names of files complete wherever no list is known."""
    cases, values = [], []
    for verb in main.VERBS:
        made = options(verb)
        names = " ".join(name for one in made for name in one.names)
        cases.append(f"    {shlex.quote(verb)}) options={shlex.quote(names)} ;;")
        for one in made:
            if one.choices:
                pattern = "|".join(shlex.quote(f"{verb} {name}") for name in one.names)
                values.append(f"    {pattern}) values={shlex.quote(' '.join(one.choices))} ;;")
    groups = [f"    {first}) verbs={shlex.quote(' '.join(rest))} ;;" for first, rest in words().items() if rest]
    return _BASH.format(
        first=" ".join(words()), groups="\n".join(groups), cases="\n".join(cases), values="\n".join(values)
    )


def zsh() -> str:
    """The same functions, which zsh runs; the first time it has loaded the file as ``_splip`` itself."""
    first = "[[ $funcstack[1] = _splip ]] && _bash_complete -F _splip\n"
    return "#compdef splip\nautoload -U +X bashcompinit && bashcompinit\n" + bash() + first


def fish() -> str:
    """A line for each verb and option, with its help."""
    lines = ["complete -c splip -f -n __fish_use_subcommand"]
    for first, rest in words().items():
        said = main.VERBS[first][2] if first in main.VERBS else ", ".join(rest)
        lines.append(f"complete -c splip -f -n __fish_use_subcommand -a {first} -d {_fish(said)}")
        for second in rest:
            at = f"'__fish_seen_subcommand_from {first}; and not __fish_seen_subcommand_from {' '.join(rest)}'"
            lines.append(f"complete -c splip -f -n {at} -a {second} -d {_fish(main.VERBS[f'{first} {second}'][2])}")
    for verb in main.VERBS:
        at = "'" + "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.split()) + "'"
        for one in options(verb):
            names = " ".join(f"-{'s' if len(n) == 2 else 'l'} {n.lstrip('-')}" for n in one.names)
            value = f" -x -a {_fish(' '.join(one.choices))}" if one.choices else " -r -F" if one.takes else ""
            lines.append(f"complete -c splip -n {at} {names}{value} -d {_fish(one.help)}")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_BASH = """\
_splip() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  local verb=${{COMP_WORDS[1]}} verbs='' options='' values='' at=2
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W '{first} --help --version' -- "$current"))
    return
  fi
  case $verb in
{groups}
  esac
  if [[ -n $verbs ]]; then
    if ((COMP_CWORD == 2)); then
      COMPREPLY=($(compgen -W "$verbs --help" -- "$current"))
      return
    fi
    verb="$verb ${{COMP_WORDS[2]}}"
  fi
  case "$verb $before" in
{values}
  esac
  if [[ -n $values ]]; then
    COMPREPLY=($(compgen -W "$values" -- "$current"))
    return
  fi
  case $verb in
{cases}
  esac
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  else
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -F _splip splip
"""
