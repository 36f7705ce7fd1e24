"""The reference of commands, from the commands themselves: every verb, argument and option.

python -m archloop.cli.reference
"""

import inspect
import sys
from typing import Any

import typer

from archloop.cli import app

INTRODUCTION = """# Commands

Each listing and result takes `--json`: one value on stdout, all else on stderr. Exit status: 0
done, 1 failed (such as no feasible trial), 2 your input. `archloop --install-completion` completes
in your shell; `python -m archloop` is the command too. MODEL is a preset, a spec's `.json`, a
checkpoint's folder or hub id, a study's trial (`runs/x:7`, `runs/x:reference`), or an exported
artifact's folder.

`python -m archloop.cli.reference` prints this page.
"""


def markdown() -> str:
    """The page."""
    group: Any = typer.main.get_command(app)
    parts = [INTRODUCTION]
    for name, command in sorted(group.commands.items()):
        parts.append(_verb(name, command))
    return "\n".join(parts)


def _verb(name: str, command: Any) -> str:
    if hasattr(command, "commands"):
        inner = sorted(command.commands.items())
        return "\n".join(_verb(f"{name} {verb}", each) for verb, each in inner)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    usage = " ".join([f"archloop {name}", *map(_argument, arguments)])
    lines = [f"## {name}", "", "```", usage, "```", "", inspect.cleandoc(command.help or ""), ""]
    rows = [(_name(each), each) for each in (*arguments, *options) if each.name != "help"]
    if rows:
        lines += ["| | | default |", "|---|---|---|"]
        lines += [f"| `{label}` | {_cell(each.help)} | {_default(each)} |" for label, each in rows]
    return "\n".join(lines) + "\n"


def _argument(parameter: Any) -> str:
    label = _name(parameter).upper() + "..." * (parameter.nargs == -1)
    return label if parameter.required else f"[{label}]"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "must be given"
    value = parameter.default
    # By identity: 0 equals False, and is a default that a reader wants to know.
    if value is None or value is False or value in ((), []) or callable(value):
        return ""
    return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(markdown())
