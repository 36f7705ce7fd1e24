"""`archloop compare --at-budget … --train`: a study of the designs, and what it tells of each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from archloop.cli.command import stderr

if TYPE_CHECKING:
    from archloop.stack.spec import StackSpec


def run(
    recipe: Path,
    runs: Path,
    budget: str,
    designs: "Mapping[str, StackSpec]",
    proxied: "Callable[[str, int], StackSpec]",
    trainings: int,
    show: bool,
) -> dict[str, Any]:
    """Create or resume the study; by design, what JSON has of it.

    Args:
        recipe: its file.
        runs: folder of studies.
        budget: as it was given, which is part of the study's name.
        designs: by name, as they are measured.
        proxied: what is trained of a design, for its name and a vocabulary.
        trainings: of each.
        show: print the study's outcome, and which trial is which design.

    Raises:
        UserError: the recipe cannot be run so.
    """
    from archloop.findings.verdict import verdict
    from archloop.report import html
    from archloop.report.live import display
    from archloop.report.outcome import print_outcome
    from archloop.search.designs import of_designs
    from archloop.search.recipe.recipe import load
    from archloop.search.study import Study

    base = load(recipe)
    name = f"{base.name}-designs-{budget.lower()}"
    study = Study(of_designs(base, name, designs, proxied, trainings), runs)
    with display(stderr) as progress:
        record = study.run(progress)
    page = html.write(record, study.folder / "report.html")
    found = verdict(record)
    if show:
        console = Console(highlight=False)
        for trial in record.trials:
            console.print(f"trial {trial.number}: {trial.origin}", markup=False)
        print_outcome(record, page, console)
    told: dict[str, Any] = {}
    for trial in record.trials:
        row = None if found is None else found.row(trial.number)
        told[trial.origin] = {
            "trained": {
                "trial": trial.number,
                "state": trial.state,
                "place": found.place_in_words(row) if found and row else None,
                "ranks_quality": found is not None and found.ranks_quality,
                "reliability": None if found is None else found.comparison.reliability,
                "estimates": {
                    objective: {"mean": each.mean, "se": each.se}
                    for objective, each in (row.place.estimates if row else {}).items()
                },
                "scores_by_seed": [
                    {task: score.value for task, score in scores.items()}
                    for scores in trial.scores_by_seed.get(0, ())
                ],
            }
        }
    return told
