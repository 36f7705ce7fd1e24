"""A study in Python and in notebooks: its trials, its front, a data frame, a table.

>>> study = archloop.Study.open("runs/quickstart")  # doctest: +SKIP
>>> study.front[0].spec, study.to_frame().sort_values("latency")  # doctest: +SKIP
>>> study.rerank(budgets=["decode_p50_ms <= 1.05x"]).front  # doctest: +SKIP
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from archloop.errors import UserError
from archloop.findings.rerank import reranked
from archloop.findings.rows import rows
from archloop.findings.verdict import Verdict, verdict
from archloop.ranking import phrases
from archloop.ranking.budgets import Budget
from archloop.ranking.record import Objective
from archloop.store.record import StudyRecord, TrialRecord

if TYPE_CHECKING:
    import pandas


class Shown(ABC):
    """What can be asked of a study's records, whoever has them; each answer reads them anew."""

    @abstractmethod
    def read(self) -> StudyRecord:
        """The record."""

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials by number, replicates too."""
        return self.read().trials

    @property
    def verdict(self) -> Verdict | None:
        """What may be said of its stacks; None until a trial and the reference run are scored."""
        return verdict(self.read())

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """The trials that may be called on the front, fastest first."""
        found = self.verdict
        return () if found is None else tuple(row.trial for row in found.front)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a trial, the reference preset's first (`findings.rows`)."""
        return rows(self.read())

    def to_frame(self) -> "pandas.DataFrame":
        """`rows` as a data frame, by trial.

        Raises:
            UserError: pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise UserError("to_frame needs pandas; pip install pandas, or take .rows()")
        import pandas

        return pandas.DataFrame(self.rows()).set_index("trial")

    def rerank(
        self,
        *,
        budgets: Sequence[Budget | str] | None = None,
        objectives: Sequence[Objective | str] | None = None,
        targets: Sequence[str] | None = None,
    ) -> "Findings":
        """The study under other terms, as `archloop rerank`; nothing is measured.

        Args:
            budgets: in place of the study's; as they are, or in words such as
                ``decode_p50_ms <= 1.1x at 1024``.
            objectives: beside quality and latency, likewise.
            targets: names of those that count.

        Raises:
            UserError: something that was not measured is asked for.
        """
        found = reranked(
            self.read(),
            budgets=None if budgets is None else [_budget(each) for each in budgets],
            objectives=None if objectives is None else [_objective(each) for each in objectives],
            targets=targets,
        )
        return Findings(found.record, found.unknown)

    def _repr_html_(self) -> str:
        """A notebook's table: the reference preset and the trials, fastest first."""
        study = self.read()
        wanted = [objective.name for objective in study.objectives]
        told = rows(study)
        names = ["trial", "status", *wanted, "state", "layout"]
        told.sort(key=lambda row: (row.get("latency") is None, row.get("latency") or 0.0))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td>{_cell(row, name, wanted)}</td>" for name in names) + "</tr>"
            for row in told
        )
        return (
            f"<p>{html.escape(study.name)}: {len(study.trials)} trials; ratios to the reference, "
            f"95% intervals</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


class Findings(Shown):
    """A study's record in memory.

    Args:
        record: of the study.
        unknown: what its measurements do not tell, a line each.
    """

    def __init__(self, record: StudyRecord, unknown: tuple[str, ...] = ()) -> None:
        self._record = record
        self.unknown = unknown

    def read(self) -> StudyRecord:
        """The record."""
        return self._record


def _cell(row: dict[str, Any], name: str, wanted: Sequence[str]) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if name == "status":
        return f"{value} ({row['probability']:.0%})"
    if name in wanted:
        return f"{value:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    return html.escape(str(value))


def _budget(given: Budget | str) -> Budget:
    return phrases.budget(given) if isinstance(given, str) else given


def _objective(given: Objective | str) -> Objective:
    return phrases.objective(given) if isinstance(given, str) else given
