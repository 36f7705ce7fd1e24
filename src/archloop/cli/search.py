"""`archloop search`: create or resume the study of a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from archloop.cli.command import AsJson, command, stderr
from archloop.cli.outcome import show


@command(resumes=True, takes_plugins=False)
def search(
    recipe: Annotated[
        Path, typer.Argument(help="A recipe's YAML file, or the folder of a study to go on with.")
    ],
    runs: Annotated[Path, typer.Option(help="Folder that holds a recipe's study.")] = Path("runs"),
    redo: Annotated[
        bool, typer.Option("--redo", help="Also do again what lost files of trials told.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Stop by then, beginning nothing that would end later; the same command goes on.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create or resume the study of a recipe, and write its report."""
    from archloop.report import html
    from archloop.report.live import display
    from archloop.report.renewed import Renewed
    from archloop.search.deadline import OutOfTimeError
    from archloop.search.errors import NoFeasibleTrial
    from archloop.search.recipe.recipe import load
    from archloop.search.study import Study
    from archloop.store.folder import StudyFolder
    from archloop.store.progress import Event

    study = Study.open(recipe) if recipe.is_dir() else Study(load(recipe), runs)
    folder = study.folder
    page = StudyFolder(folder).report
    renewed = Renewed(lambda: html.write(study.read(), page, str(folder), is_running=True))
    try:
        with display(stderr) as progress:

            def listen(event: Event) -> None:
                progress(event)
                if event.phase == "told":
                    renewed()

            record = study.run(listen, redo=redo, minutes=minutes)
    except OutOfTimeError:
        stderr.print("its time is over; the same command goes on from here")
        record = study.read()
    except NoFeasibleTrial:
        show(study.read(), folder, as_json)
        raise
    show(record, folder, as_json)
