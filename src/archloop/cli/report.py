"""`archloop report`: a study's page, figure or record, from its store alone."""

from pathlib import Path
from typing import Annotated

import typer

from archloop.cli.command import AsJson, command, print_json
from archloop.cli.outcome import show


@command(takes_plugins=False)
def report(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")],
    figure: Annotated[
        Path | None, typer.Option(help="Also draw the front into this .svg, .png or .pdf.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of the study's database, if that takes a password.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the page here, not into the study's folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a study's report.html anew, or print its content as JSON."""
    from archloop.store.reading import read

    record = read(study, storage)
    if figure is not None:
        from archloop.report import static

        static.write(record, figure)
    if as_json:
        from archloop.report.summary import summarize

        # Nothing is written, so that a copy to read only will do.
        print_json(summarize(record))
        return
    show(record, study, as_json, output)
