"""What `search` and `report` end with: the study's page and its outcome."""

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from archloop.cli.command import print_json, stderr, stdout

if TYPE_CHECKING:
    from archloop.store.record import StudyRecord


def show(record: "StudyRecord", folder: Path, as_json: bool, path: Path | None = None) -> None:
    """Write a study's report, and print its outcome, also where the page cannot be written.

    Args:
        record: of the study.
        folder: of the study.
        as_json: print it as JSON instead.
        path: of the page, if it is not to lie in the study's folder.
    """
    from archloop.report import html
    from archloop.report.outcome import print_outcome
    from archloop.report.summary import summarize
    from archloop.store.folder import StudyFolder

    path = path or StudyFolder(folder).report
    page: Path | None = None
    try:
        page = html.write(record, path, str(folder))
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        stderr.print(
            f"{path} is not written: {error.strerror}; see `archloop report --output`",
            markup=False,
            soft_wrap=True,
        )
    if as_json:
        print_json(summarize(record))
    else:
        print_outcome(record, page, stdout(), str(folder))
