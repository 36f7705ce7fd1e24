"""`archloop extend`: more trials for a study that has had its number."""

from pathlib import Path
from typing import Annotated

import typer

from archloop.cli.command import AsJson, command, stderr
from archloop.cli.outcome import show


@command(resumes=True, takes_plugins=False)
def extend(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")],
    trials: Annotated[int, typer.Option(min=1, help="How many more.")],
    as_json: AsJson = False,
) -> None:
    """Give a study more trials; what it has is not done again.

    They are begun whatever the recipe's max_hours and until_still say. Stopped, the same command
    goes on with what it began, and adds nothing.
    """
    from archloop.report.live import display
    from archloop.search.study import Study

    opened = Study.open(study)
    with display(stderr) as progress:
        record = opened.run(progress, more=trials)
    show(record, opened.folder / "report.html", as_json)
