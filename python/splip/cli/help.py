"""The first of two levels of ``--help``: what most people set, of verbs that have far more."""

import re
import shutil
import textwrap
from typing import Any

ALL = "--help-all"
# Long names of options; what is not here stands behind --help-all.
COMMON: dict[str, tuple[str, ...]] = {
    "train": (
        "--data.root", "--data.dataset", "--data.split", "--data.sketches", "--data.augment", "--data.cache",
        "--backbone.name", "--backbone.pretrained", "--method", "--setting", "--out", "--resume", "--epochs", "--steps",
        "--batch-size", "--lr", "--precision", "--eval-every", "--seed", "--device", "--tensorboard",
    ),
    "eval": (
        "--model", "--root", "--dataset", "--split", "--protocol", "--gallery", "--k", "--metrics", "--baselines",
        "--features", "--labels", "--out", "--json", "--per-query", "--grid", "--device",
    ),
    "serve": (
        "--gallery", "--model", "--host", "--port", "--open", "--engine", "--device", "--token-file", "--protect",
        "--allow-root", "--behind-proxy", "--log",
    ),
}  # fmt: skip


def short(verb: str, parser: Any) -> str:
    """The common options of a verb of ``COMMON`` in the parser's own words, and where the others are."""
    actions = [action for action in parser._actions if action.option_strings and "--help" not in action.option_strings]
    of = {name: action for action in actions for name in action.option_strings}
    width = min(shutil.get_terminal_size().columns, 100)
    about, *more = re.split(r"\n{2,}(?=--)", parser.description)
    lines = [f"usage: splip {verb} [OPTIONS]", "", about, ""]
    for part in more:
        lines += [*textwrap.wrap(part, width, break_on_hyphens=False), ""]
    lines.append("common options:")
    for name in COMMON[verb]:
        action = of[name]
        lines.append(f"  {_spelled(action, name)}")
        said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", action.help or "").split())
        said = re.sub(r" \(default: (None|False)?\)$", "", said)
        lines += textwrap.wrap(said, width, initial_indent=" " * 8, subsequent_indent=" " * 8, break_on_hyphens=False)
    lines += ["", f"all {len(actions)} options: splip {verb} {ALL}"]
    return "\n".join(lines)


def _spelled(action: Any, name: str) -> str:
    names = ", ".join([name, *(one for one in action.option_strings if ".no-" in one or one.startswith("--no-"))])
    if action.nargs == 0 or not action.metavar:
        return names
    value = str(action.metavar).replace("{None}|", "").replace("{None,", "{")
    several = re.fullmatch(r"\[(\S+) \[.*\.\.\.\]+", value)
    return f"{names} {f'{several[1]} ...' if several else value}"
