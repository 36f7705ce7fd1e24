"""What the page tells of contributions: of families, places in the stack and genes, as tables."""

from typing import NamedTuple

from archloop.errors import UserError
from archloop.findings.attribution import Contribution, Factor, Share, attribution
from archloop.store.record import StudyRecord

NUM_DRAWS = 50
"""Behind the intervals of shares: a page is written while its study runs, so it must be quick."""
_TITLES: dict[Factor, str] = {
    "family": "one block more of a family, in place of an average one",
    "gene": "a gene from its least value to its largest",
    "position": "a block of a family there, in place of anywhere",
}


class Cell(NamedTuple):
    """A contribution to one objective.

    Attributes:
        text: value and interval.
        is_clear: the interval leaves 0 out.
        importance: in percent, the share of the spread between stacks that goes with it.
    """

    text: str
    is_clear: bool
    importance: int


class Table(NamedTuple):
    """Contributions of one kind; a row has its name, a cell an objective and a count of stacks."""

    title: str
    rows: tuple[tuple[str, tuple[Cell | None, ...], int], ...]


class Attributed(NamedTuple):
    """All tables, and the families' shares of the hypervolume.

    Attributes:
        missing: why there is nothing to show; empty: there is.
    """

    objectives: tuple[str, ...]
    tables: tuple[Table, ...]
    shares: tuple[Share, ...]
    volume: float
    missing: str = ""


def attributed(study: StudyRecord) -> Attributed:
    """What a study's own trials tell; with few of them, why they tell nothing."""
    try:
        found = attribution(study, num_draws=NUM_DRAWS)
    except UserError as error:
        return Attributed((), (), (), 0.0, str(error))
    objectives = tuple(dict.fromkeys(each.objective for each in found.contributions))
    tables = []
    for factor, title in _TITLES.items():
        by_what: dict[str, dict[str, Contribution]] = {}
        for each in found.contributions:
            if each.factor == factor:
                by_what.setdefault(each.what, {})[each.objective] = each
        if by_what:
            rows = (_row(what, row, objectives) for what, row in by_what.items())
            tables.append(Table(title, tuple(rows)))
    return Attributed(objectives, tuple(tables), found.shares, found.volume)


def in_words(each: Contribution) -> str:
    """Value and interval: points of quality, percent of a ratio."""
    if not each.is_ratio:
        return f"{each.value:+.2f} ({each.low:+.2f} to {each.high:+.2f})"
    return f"{each.value:+.1%} ({each.low:+.1%} to {each.high:+.1%})"


def _row(
    what: str, row: dict[str, Contribution], objectives: tuple[str, ...]
) -> tuple[str, tuple[Cell | None, ...], int]:
    cells = tuple(
        None
        if (each := row.get(name)) is None
        else Cell(in_words(each), each.is_clear, round(100 * max(0.0, each.importance)))
        for name in objectives
    )
    return what, cells, max(each.num_stacks for each in row.values())
