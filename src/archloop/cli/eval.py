"""`archloop eval`: train and test a layout on a suite."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from archloop import registry
from archloop.cli.command import AsJson, command, print_json, stderr
from archloop.cli.models import load_spec
from archloop.errors import UserError


@command(resumes=True)
def eval(  # noqa: A001  (a command has its function's name)
    model: Annotated[str, typer.Argument(help="A preset's name or a spec's .json file.")],
    suite: Annotated[str, typer.Option(help="Only 'mad' so far.")] = "mad",
    tasks: Annotated[str | None, typer.Option(help="Some of the suite, by commas.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Baselines only, short training.")] = False,
    output: Annotated[Path, typer.Option(help="Keeps finished trainings.")] = Path("runs/mad"),
    device: Annotated[str, typer.Option(help="PyTorch device.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train and test a layout on MAD's tasks by their own protocol, one training a setting.

    A spec file is taken as it is; of a preset, the order of mixers, at MAD's width of 128.
    """
    from archloop.proxy.mad import CHANGES, MadConfig, RunResult, mad_spec, run_mad
    from archloop.training.loop import torch_device

    if suite != "mad":
        raise UserError(f"unknown suite {suite!r}; {registry.suggest(suite, ['mad'])}")
    chosen = tuple(CHANGES) if tasks is None else tuple(dict.fromkeys(tasks.split(",")))
    torch_device(device)
    config = MadConfig.quick(chosen) if quick else MadConfig(tasks=chosen)

    def tell(done: int, total: int, result: RunResult) -> None:
        stderr.print(f"{done}/{total} {result.task}: accuracy {result.macro:.3f}", markup=False)

    spec = load_spec(model)
    if not model.endswith(".json"):
        spec = mad_spec(spec.layout)
    found = run_mad(spec, config, output, device=device, on_run=tell)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    table = Table("task", "accuracy by class", "accuracy by token", box=None)
    for name, score in found.tasks.items():
        table.add_row(name, f"{score.macro:.3f}", f"{score.micro:.3f}")
    table.add_row("mean", f"{found.macro:.3f}", f"{found.micro:.3f}")
    Console().print(table)
