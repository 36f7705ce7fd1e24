"""`archloop plugins`: what can be used by name."""

from typing import Annotated

import typer
from rich.console import Console

from archloop import registry
from archloop.cli.command import AsJson, command, print_json


@command()
def plugins(
    kind: Annotated[str | None, typer.Argument(help="One kind; default all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what can be used by name, by kind: mixers, runtimes, devices, tasks, ..."""
    kinds = [kind] if kind else sorted(registry.KINDS)
    listing = {each: registry.names(each) for each in kinds}
    if as_json:
        print_json(listing)
        return
    for each, names in listing.items():
        Console().print(f"{each}: {', '.join(names)}", highlight=False)
