"""`archloop rerank`: a study under other budgets, objectives, targets or weights, unmeasured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from archloop.cli.command import AsJson, command, print_json, stdout
from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.findings.preference import Preferred
    from archloop.store.record import StudyRecord


Budgets = Annotated[
    list[str] | None,
    typer.Option(
        help="In place of the study's: 'ttft_ms <= 400 at 4096 on phone', 'decode_p50_ms <= 1.1x', "
        "'peak_memory_bytes <= 2GiB'; none for none. May be repeated."
    ),
]
Others = Annotated[
    list[str] | None,
    typer.Option(
        help="Beside quality and latency, in place of the study's: memory, ttft_ms@worst, "
        "quality:recall, ... May be repeated."
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        help="What an objective's gain is worth, as in quality=1 or latency=0.5: of a standard "
        "deviation over the anchor stacks, or of a halving. May be repeated."
    ),
]


@command(takes_plugins=False)
def rerank(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")],
    budget: Budgets = None,
    objective: Others = None,
    targets: Annotated[
        str | None, typer.Option(help="Those that count, by commas; default all.")
    ] = None,
    weight: Weights = None,
    output: Annotated[Path | None, typer.Option(help="Also write the study's page so.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of the study's database, if that takes a password.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank a study's stacks by other budgets, objectives, targets or weights, measuring nothing.

    The study stays as it is. What would need a new measurement is said in a line.
    """
    from archloop.findings.rerank import reranked
    from archloop.ranking import phrases
    from archloop.report.summary import summarize
    from archloop.store.reading import read

    given = None if budget is None else [each for each in budget if each != "none"]
    if budget is not None and given and len(given) < len(budget):
        raise UserError("--budget none leaves no budget; leave it out, or the others")
    weights = _weights(weight or [])
    found = reranked(
        read(study, storage),
        budgets=None if given is None else [phrases.budget(each) for each in given],
        objectives=None if objective is None else [phrases.objective(each) for each in objective],
        targets=None if targets is None else targets.split(","),
    )
    order = _order(found.record, weights) if weights else []
    if output is not None:
        from archloop.report import html

        html.write(found.record, output, str(study))
    if as_json:
        told = {"unknown": list(found.unknown), "preferred": [_told(each) for each in order]}
        print_json({**summarize(found.record), **told})
        return
    _show(found.record, found.unknown, order, output)


def _told(preferred: "Preferred") -> dict[str, Any]:
    low, high = preferred.worth.interval()
    return {
        "number": preferred.row.trial.number,
        "worth": preferred.worth.mean,
        "low": low,
        "high": high,
        "ties_with_best": preferred.ties_with_best,
    }


def _show(
    record: "StudyRecord", unknown: tuple[str, ...], order: "list[Preferred]", page: Path | None
) -> None:
    from archloop.report.outcome import print_outcome

    console = stdout()
    print_outcome(record, page, console)
    for line in unknown:
        console.print(line, markup=False, soft_wrap=True)
    if not order:
        return
    table = Table("trial", "worth", "95%", "", "stack", box=None)
    for each in order:
        low, high = each.worth.interval()
        tie = "ties with the best" if each.ties_with_best and each is not order[0] else ""
        worth = f"{each.worth.mean:+.3f}"
        layout = " ".join(each.row.trial.spec.layout)
        table.add_row(str(each.row.trial.number), worth, f"{low:+.3f} to {high:+.3f}", tie, layout)
    console.print("by these weights, beyond the reference:")
    console.print(table)


def _order(record: "StudyRecord", weights: dict[str, float]) -> "list[Preferred]":
    from archloop.findings.preference import preferred
    from archloop.findings.verdict import verdict

    found = verdict(record)
    return [] if found is None else preferred(found, record.objectives, weights)


def _weights(given: list[str]) -> dict[str, float]:
    found: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(
                f"--weight {pair!r} must be an objective and a number, as in quality=1"
            ) from None
        assert equals
    return found
