"""An A/A study: every candidate is the reference under another name, measured and trained for real.

``python benchmarks/equal_stacks.py RECIPE [--trials 8] [--seed 1] [--runs runs] [--read]``

Takes the reference, targets, budgets and trainings of a recipe. Whatever is called better, worse,
faster or smaller than another is wrong: all are one stack. Prints what was called so, and one JSON
line. With ``--read`` the study that is there is read and nothing is run.
"""

import argparse
import json
from pathlib import Path

from archloop.findings.verdict import verdict
from archloop.search import plan
from archloop.search.recipe import recipe as recipes
from archloop.search.recipe.recipe import Recipe
from archloop.search.study import Study
from archloop.store.record import StudyRecord


def of_equals(recipe: Recipe, trials: int, seed: int) -> Recipe:
    """The recipe with nothing to try but its reference, so many times."""
    spec = plan.resolve(recipe).reference.model_dump(mode="json")
    changes = {
        "name": f"{recipe.name}-equal-{seed}",
        "seed": seed,
        "num_trials": trials,
        "initial": [],
        "specs": [spec] * trials,
        "max_hours": None,
    }
    return recipes.parse({**recipe.plain(), **changes}, f"{recipe.label}, equal stacks")


def claims(record: StudyRecord) -> dict[str, object]:
    """What is said of stacks that are all equal."""
    found = verdict(record)
    states = [trial.state for trial in record.trials if trial.replicates is None]
    told = {
        "trials": len(states),
        "rejected": [t.number for t in record.trials if t.state == "rejected"],
        "failed": [t.number for t in record.trials if t.state == "failed"],
        "seconds": record.seconds_by_phase,
    }
    if found is None:
        return told
    rows = found.rows
    return {
        **told,
        "compared": len(rows),
        "on the front": [row.trial.number for row in found.front],
        "dominated": [r.trial.number for r in rows if r.place.member.status == "dominated"],
        "beyond doubt": [r.trial.number for r in rows if r.place.member.better_in],
        "reliability": found.comparison.reliability,
        "ranks quality": found.ranks_quality,
        "estimates": {
            row.trial.number: {n: [e.mean, e.se] for n, e in row.place.estimates.items()}
            for row in (found.reference, *rows)
        },
    }


def main() -> None:
    """Run the study and print what it claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--read", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    recipe = of_equals(recipes.load(arguments.recipe), arguments.trials, arguments.seed)
    study = Study(recipe, arguments.runs)
    record = study.read() if arguments.read else study.run()
    found = claims(record)
    for name, value in found.items():
        print(f"{name}: {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
