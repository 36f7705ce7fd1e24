"""`archloop search`: create or resume the study of a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from archloop.cli.command import AsJson, command, stderr
from archloop.cli.outcome import show


@command(resumes=True, takes_plugins=False)
def search(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    runs: Annotated[Path, typer.Option(help="Folder that holds the studies.")] = Path("runs"),
    redo: Annotated[
        bool, typer.Option("--redo", help="Also do again what lost files of trials told.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create or resume the study of a recipe, and write its report."""
    from archloop.report.live import display
    from archloop.search.errors import NoFeasibleTrial
    from archloop.search.recipe.recipe import load
    from archloop.search.study import Study

    study = Study(load(recipe), runs)
    try:
        with display(stderr) as progress:
            record = study.run(progress, redo=redo)
    except NoFeasibleTrial:
        show(study.read(), study.folder / "report.html", as_json)
        raise
    show(record, study.folder / "report.html", as_json)
