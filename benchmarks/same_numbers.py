"""Whether two checkouts of archloop propose the same stacks and train them to the same numbers.

A refactoring must move no number. Each checkout runs the start of the quickstart with its own
sources, in processes of its own: the reference preset's trainings and the trials that no
measurement has a say in (the initial layouts and the first random ones). What is searched and
trained is that of the first checkout's quickstart in both, so that a recipe which was changed on
purpose moves nothing; how it is measured, each checkout says in its own way. Compared bit by bit:

1. the specs, ship and proxy, without the settings that have their default value (so that a setting
   which only one of the two knows does not count while nobody uses it);
2. the training losses, and each score's value and standard error, of every rung that both reached.

Measured times differ from run to run, so budgets are left out and nothing measured is compared.

    git worktree add ../before b08d690
    python benchmarks/same_numbers.py ../before .

prints a table and one JSON line, and exits 1 when a number differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

NUM_TRIALS = 4
"""Three initial layouts and one drawn at random; from the next on, parents play a part."""

SHARED = ("seed", "reference", "initial", "space", "strategy", "proxy", "promote_share", "threads")
"""Keys of the first checkout's recipe that both run."""

_DEFAULTS = """
import json, sys
from archloop.stack.spec import StackSpec
specs = json.load(sys.stdin)
print(json.dumps([StackSpec.model_validate(s).model_dump(mode="json", exclude_defaults=True)
                  for s in specs]))
"""


def quickstart(checkout: Path) -> dict[str, Any]:
    """The checkout's quickstart as it is."""
    found: dict[str, Any] = yaml.safe_load((checkout / "recipes/quickstart.yaml").read_text())
    return found


def recipe_of(checkout: Path, numbers: Path) -> dict[str, Any]:
    """The checkout's quickstart with another's numbers, and as little measuring as it takes."""
    recipe, shared = quickstart(checkout), quickstart(numbers)
    own = recipe["proxy"].get("text_parts")
    recipe = {key: value for key, value in recipe.items() if key not in SHARED}
    recipe |= {key: shared[key] for key in SHARED if key in shared}
    if own is not None:
        # More scores of the same text: a checkout that knows them may need them to begin.
        recipe["proxy"] = {**recipe["proxy"], "text_parts": own}
    recipe |= {"num_trials": NUM_TRIALS, "budgets": []}
    if "replicates" in recipe:
        recipe["replicates"] = 0
    measuring = {"contexts": [64], "processes": 2, "timed_steps": 20, "prefill_repeats": 1}
    for settings in (recipe.get("profile"), recipe.get("measuring"), recipe.get("protocol")):
        if isinstance(settings, dict):
            settings |= {key: value for key, value in measuring.items() if key in settings}
    for target in recipe.get("targets", {}).values():
        target |= {key: value for key, value in measuring.items() if key in target}
    return recipe


def run(checkout: Path, numbers: Path, runs: Path, cache: Path) -> dict[str, Any]:
    """Specs by trial, and losses and scores by stage file, of one checkout."""
    recipe = recipe_of(checkout, numbers)
    file = runs / "recipe.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout.resolve() / "src"),
        "XDG_CACHE_HOME": str(cache),
        "OMP_NUM_THREADS": "1",
    }

    def python(*arguments: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            env=environment,
            input=stdin,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    program = "from archloop.cli import main; main()"
    python("-c", program, "search", str(file), "--runs", str(runs))
    study = runs / recipe["name"]
    summary = json.loads(python("-c", program, "report", str(study), "--json"))
    trials = [summary["reference"], *summary["trials"]]
    specs = json.loads(python("-c", _DEFAULTS, stdin=json.dumps([t["spec"] for t in trials])))
    return {
        "specs": {str(t["number"]): spec for t, spec in zip(trials, specs, strict=True)},
        "trainings": {
            str(path.relative_to(study)): _training(json.loads(path.read_text())["data"])
            for path in sorted(study.rglob("rung-*.json"))
        },
    }


def _training(data: dict[str, Any]) -> dict[str, Any]:
    scores = {
        name: {key: score[key] for key in ("value", "standard_error")}
        for name, score in sorted(data["scores"].items())
    }
    return {"losses": data["losses"], "scores": scores}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """In words, what differs.

    Stage files that only one checkout has do not count but for rung 0 of a trial: which trials
    climb a rung hangs on measured times, and how often the reference preset and other stacks are
    trained before trial 0, on the checkout.
    """
    found = []
    for number in sorted(set(before["specs"]) | set(after["specs"]), key=int):
        if before["specs"].get(number) != after["specs"].get(number):
            found.append(f"spec of trial {number}")
    first = {
        name
        for side in (before, after)
        for name in side["trainings"]
        if name.startswith("trials/") and name.endswith("rung-0.json")
    }
    both = set(before["trainings"]) & set(after["trainings"])
    for name in sorted(first | both):
        one, other = before["trainings"].get(name), after["trainings"].get(name)
        if one is None or other is None:
            found.append(f"{name} is there once")
            continue
        if one["losses"] != other["losses"]:
            found.append(f"{name}: losses")
        # A score that only one of the two knows says nothing of the other.
        shared = set(one["scores"]) & set(other["scores"])
        found += [
            f"{name}: score {score}"
            for score in sorted(shared)
            if one["scores"][score] != other["scores"][score]
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sides = [
            run(checkout, given.before, Path(scratch) / name, Path(scratch) / "cache" / name)
            for name, checkout in (("before", given.before), ("after", given.after))
        ]
    before, after = sides
    found = differences(before, after)
    for name in sorted(before["trainings"]):
        state = "differs" if any(line.startswith(name) for line in found) else "equal"
        print(f"{name:40} {state}")
    for line in found:
        print("DIFFERENT:", line)
    count = {"specs": len(before["specs"]), "trainings": len(before["trainings"])}
    print(json.dumps({"compared": count, "different": found}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
