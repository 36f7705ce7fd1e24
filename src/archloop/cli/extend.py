"""`archloop extend`: more trials for a study that has had its number, or more trainings of each."""

from pathlib import Path
from typing import Annotated

import typer

from archloop.cli.command import AsJson, command, stderr
from archloop.cli.outcome import show
from archloop.errors import UserError


@command(resumes=True, takes_plugins=False)
def extend(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")],
    trials: Annotated[int, typer.Option(min=0, help="How many more.")] = 0,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings of each trial, of those that have fewer too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a study more trials, or its trials more trainings; what it has is not done again.

    Trials are begun whatever the recipe's max_hours and until_still say. Stopped, the same command
    goes on with what it began, and adds nothing.
    """
    from archloop.report.live import display
    from archloop.search.errors import NoFeasibleTrial
    from archloop.search.study import Study

    if not trials and seeds is None:
        raise UserError("say what to add: --trials, or --seeds (trainings of each trial)")
    opened = Study.open(study)
    try:
        with display(stderr) as progress:
            record = opened.run(progress, more=trials, seeds=seeds)
    except NoFeasibleTrial:
        show(opened.read(), opened.folder, as_json)
        raise
    show(record, opened.folder, as_json)
