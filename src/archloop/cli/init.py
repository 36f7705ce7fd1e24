"""`archloop init`: a commented recipe for a purpose, and a mixer to begin one's own from."""

from pathlib import Path
from typing import Annotated

import typer

from archloop import starters
from archloop.cli.command import AsJson, command, print_json, stdout
from archloop.errors import UserError, suggest


@command(takes_plugins=False)
def init(
    folder: Annotated[Path, typer.Argument(help="Gets the files; made if missing.")] = Path(),
    purpose: Annotated[
        str, typer.Option("--for", help=f"One of {', '.join(starters.PURPOSES)}.")
    ] = "laptop",
    name: Annotated[
        str | None, typer.Option(help="Of the study and the recipe's file; default the purpose.")
    ] = None,
    plugin: Annotated[
        bool, typer.Option("--plugin", help="Add a mixer of your own, with its tests.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe to begin from; what exists is never overwritten."""
    if purpose not in starters.PURPOSES:
        raise UserError(f"--for {purpose}: {suggest(purpose, starters.PURPOSES)}")
    content = starters.files(purpose, name or purpose, plugin=plugin)
    paths = starters.write(folder, content)
    recipe, test = paths[0], paths[-1]
    following = [f"archloop plan {recipe}", f"archloop search {recipe}"]
    if plugin:
        following.insert(0, f"pytest {test}")
    if as_json:
        print_json({"files": [str(path) for path in paths], "next": following})
        return
    console = stdout()
    for path in paths:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    for line in following:
        console.print(f"next: {line}", markup=False, soft_wrap=True)
