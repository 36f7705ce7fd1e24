"""`archloop plugins`: what can be used by name, with its settings and genes."""

import inspect
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.table import Table

from archloop import registry
from archloop.cli.command import AsJson, command, print_json, stdout
from archloop.errors import UserError


@command()
def plugins(
    kind: Annotated[
        str | None, typer.Argument(help="One kind, in full; default all, in a line each.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what can be used by name, by kind: mixers, runtimes, devices, tasks, ...

    Of one kind: what each is, its settings with their defaults, and the values of its genes.
    """
    kinds = [kind] if kind else sorted(registry.KINDS)
    if as_json:
        print_json({each: [_told(each, name) for name in registry.names(each)] for each in kinds})
        return
    console = stdout()
    if kind is None:
        for each in kinds:
            console.print(f"{each}: {', '.join(registry.names(each))}", soft_wrap=True)
        console.print("archloop plugins KIND tells each one's settings and genes")
        return
    table = Table("name", "what it is", "settings", "genes", box=None, padding=(0, 2, 0, 0))
    for name in registry.names(kind):
        told = _told(kind, name)
        settings = "\n".join(f"{key}={value}" for key, value in told["settings"].items())
        genes = "\n".join(
            f"{key}: {', '.join(map(str, values))}" for key, values in told["genes"].items()
        )
        table.add_row(name, told["error"] or told["description"], settings, genes)
    console.print(table)


def _told(kind: str, name: str) -> dict[str, Any]:
    """One plug-in in plain data; what is wrong with one takes nothing from the others."""
    told: dict[str, Any] = {
        "name": name,
        "description": "",
        "settings": {},
        "genes": {},
        "error": None,
    }
    try:
        plugin = registry.get(kind, name)
    except UserError as error:
        return {**told, "error": str(error)}
    told["description"] = (inspect.getdoc(plugin) or "").partition("\n")[0].replace("``", "")
    config: Any = getattr(plugin, "Config", None)
    if inspect.isclass(config) and issubclass(config, BaseModel):
        told["settings"] = {
            field: "(must be given)" if about.is_required() else _plain(about.get_default())
            for field, about in config.model_fields.items()
        }
    if hasattr(config, "genes"):
        told["genes"] = {key: list(gene.values) for key, gene in config.genes().items()}
    return told


def _plain(value: Any) -> Any:
    """A default as JSON has it; what JSON has no word for, in Python's."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
