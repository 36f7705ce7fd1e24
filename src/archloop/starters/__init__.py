"""What `archloop init` writes: a recipe for each purpose, and a mixer to begin one's own from.

A line of a recipe that begins with ``#plugin `` stands there only where the mixer goes along.
"""

import importlib.resources
import re
from pathlib import Path

from archloop.errors import UserError
from archloop.files import write_atomic

PURPOSES = ("laptop", "phone", "gpu", "research")
MIXER = "my_mixer"
"""Name of the mixer that goes along, and of its file."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PLUGIN = "#plugin "


def files(purpose: str, name: str, *, plugin: bool = False) -> dict[str, str]:
    """What a folder begins with: text by path from the folder.

    Args:
        purpose: one of `PURPOSES`.
        name: of the study, and of the recipe's file.
        plugin: also a mixer of one's own, its tests, and its place in the recipe.

    Raises:
        UserError: the name cannot be a study's.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name {name!r}: a study's name is a folder's: letters, digits, '.', '_' and '-'"
        )
    home = importlib.resources.files(__name__)
    recipe = (home / f"{purpose}.yaml").read_text(encoding="utf-8")
    found = {f"{name}.yaml": _recipe(recipe, name, plugin)}
    if plugin:
        for part in (f"plugins/mixers/{MIXER}.py", f"test_{MIXER}.py"):
            found[part] = (home / part).read_text(encoding="utf-8")
    return found


def write(folder: Path, content: dict[str, str]) -> list[Path]:
    """Write files into a folder; none is written where one of them exists already.

    Raises:
        UserError: one exists.
    """
    paths = [folder / name for name in content]
    if there := next((path for path in paths if path.exists()), None):
        raise UserError(f"{there} exists already; name another folder, or give --name")
    for path, text in zip(paths, content.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    return paths


def _recipe(text: str, name: str, plugin: bool) -> str:
    lines = []
    for line in text.splitlines():
        before, mark, rest = line.partition(_PLUGIN)
        if not mark:
            lines.append(line)
        elif plugin:
            lines.append(before + rest)
    return "\n".join(lines).replace("NAME", name) + "\n"
