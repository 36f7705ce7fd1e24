"""`archloop compare --at-budget … --train`: a study of the designs, and what it tells of each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archloop.cli.command import stderr, stdout

if TYPE_CHECKING:
    from archloop.search.study import Study
    from archloop.stack.spec import StackSpec
    from archloop.store.record import StudyRecord


def study_of(
    recipe: Path,
    runs: Path,
    budget: int,
    designs: "Mapping[str, StackSpec]",
    proxied: "Callable[[str, int], StackSpec]",
    trainings: int,
) -> "Study":
    """The study, made of a recipe that can be run; nothing of it is begun.

    Args:
        recipe: its file.
        runs: folder of studies.
        budget: parameters of each design, which are part of the study's name.
        designs: by name, as they are measured.
        proxied: what is trained of a design, for its name and a vocabulary.
        trainings: of each.

    Raises:
        UserError: the recipe cannot be run so.
    """
    from archloop.search.designs import of_designs
    from archloop.search.recipe.recipe import load
    from archloop.search.study import Study

    base = load(recipe)
    name = f"{base.name}-designs-{budget}"
    return Study(of_designs(base, name, designs, proxied, trainings), runs)


def run(study: "Study") -> "tuple[StudyRecord, Path]":
    """Create or resume the study; what it has, and its page.

    Raises:
        UserError: the study's folder has another one.
    """
    from archloop.report import html
    from archloop.report.live import display

    with display(stderr) as progress:
        record = study.run(progress)
    return record, html.write(record, study.folder / "report.html", str(study.folder))


def show(record: "StudyRecord", page: Path) -> None:
    """Which trial is which design, and the study's outcome."""
    from archloop.report.outcome import print_outcome

    console = stdout()
    for trial in record.trials:
        console.print(f"trial {trial.number}: {trial.origin}", markup=False)
    print_outcome(record, page, console)


def plain(record: "StudyRecord") -> dict[str, Any]:
    """By design, as JSON has it: its trial, its place, its estimates, the scores of each seed."""
    from archloop.findings.verdict import verdict

    found = verdict(record)
    told: dict[str, Any] = {}
    for trial in record.trials:
        row = None if found is None else found.row(trial.number)
        estimates = row.place.estimates if row else {}
        told[trial.origin] = {
            "trained": {
                "trial": trial.number,
                "state": trial.state,
                "place": found.place_in_words(row) if found and row else None,
                "ranks_quality": found is not None and found.ranks_quality,
                "reliability": None if found is None else found.comparison.reliability,
                "estimates": {
                    objective: {"mean": each.mean, "se": each.se}
                    for objective, each in estimates.items()
                },
                "scores_by_seed": [
                    {task: score.value for task, score in scores.items()}
                    for scores in trial.scores_by_seed.get(0, ())
                ],
            }
        }
    return told
