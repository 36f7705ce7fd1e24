"""What `search` and `report` end with: the study's page and its outcome."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from archloop.cli.command import print_json

if TYPE_CHECKING:
    from archloop.store.record import StudyRecord


def show(record: "StudyRecord", folder: Path, as_json: bool) -> None:
    """Write a study's report, and print its outcome."""
    from archloop.report import html
    from archloop.report.outcome import print_outcome
    from archloop.report.summary import summarize

    page = html.write(record, folder / "report.html")
    if as_json:
        print_json(summarize(record))
    else:
        print_outcome(record, page, Console(highlight=False))
