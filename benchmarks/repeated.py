"""Do studies of one recipe that differ in the seed alone agree on what they claim?

``python benchmarks/repeated.py RECIPE --seeds 5,6,7,8,9 [--runs runs] [--read]``

Runs the recipe once a seed, one study after another, as ``<name>-seed-<seed>``; with ``--read``
studies that are there, of another machine or stopped too, are read and nothing is run. A claim is
what a study says of a stack beyond doubt: that it breaks a budget, that it is faster or smaller
than the reference, that it is on the front, that it is dominated. Two studies agree on a stack if
neither claims what the other's claims exclude; only stacks that both tried can be compared. Prints
each study's minutes, reliability and claims, then agreement by pair, and one JSON line.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from archloop.findings.verdict import verdict
from archloop.search.recipe import recipe as recipes
from archloop.search.study import Study
from archloop.store import reading
from archloop.store.record import StudyRecord

OPPOSITE = {"kept": "broken", "broken": "kept", "front": "dominated", "dominated": "front"}


class Said(NamedTuple):
    """What a study said.

    Attributes:
        claims: by the stack's spec (its digest), what is claimed of it.
        layouts: of these stacks, in words.
        reliability: of each objective.
        minutes: of all its stages.
    """

    claims: dict[str, frozenset[str]]
    layouts: dict[str, str]
    reliability: dict[str, float]
    minutes: float


def said(record: StudyRecord) -> Said:
    """All claims of a study."""
    found = verdict(record)
    claims: dict[str, set[str]] = {}
    layouts = {}
    for trial in record.trials:
        digest = trial.spec.digest
        layouts[digest] = "-".join(trial.spec.layout)
        if trial.state == "rejected":
            # Only what no interval leaves open; the others are the estimate's word.
            certain = any(broken.low > broken.limit for broken in trial.broken)
            claims.setdefault(digest, set()).update({"broken"} if certain else set())
        elif trial.state == "complete" and not trial.straddles:
            claims.setdefault(digest, set()).add("kept")
    for row in () if found is None else found.rows:
        mine = claims.setdefault(row.trial.spec.digest, set())
        names = list(row.place.estimates)
        mine.update(f"better in {names[column]}" for column in row.place.member.better_in)
        if found is not None and found.ranks_quality:
            status = found.status(row)
            mine.update({status} - {"tied"})
    reliability = {} if found is None else found.comparison.reliability
    minutes = sum(record.seconds_by_phase.values()) / 60
    return Said({k: frozenset(v) for k, v in claims.items()}, layouts, reliability, minutes)


def compared(one: Said, other: Said) -> tuple[int, list[str]]:
    """Stacks that both tried and claim something of, and those on which they contradict."""
    both = [k for k in one.claims if k in other.claims and (one.claims[k] or other.claims[k])]
    against = [
        one.layouts[k]
        for k in both
        if any(OPPOSITE.get(claim) in other.claims[k] for claim in one.claims[k])
    ]
    return len(both), against


def study_of(path: Path, seed: int, runs: Path, read: bool) -> StudyRecord:
    """The study of a seed, run if it is not there whole and is not only to be read."""
    recipe = recipes.load(path)
    if read:
        return reading.read(runs / f"{recipe.name}-seed-{seed}")
    changes = {"name": f"{recipe.name}-seed-{seed}", "seed": seed}
    own = recipes.parse({**recipe.plain(), **changes}, f"{path}, seed {seed}")
    began = time.monotonic()
    Study(own, runs).run()
    print(f"seed {seed}: {(time.monotonic() - began) / 60:.1f} min by the clock", flush=True)
    return reading.read(runs / own.name)


def summed_up(found: dict[int, Said]) -> dict[str, Any]:
    """Print what was said and where studies agree."""
    for seed, each in found.items():
        shares = ", ".join(f"{name} {share:.2f}" for name, share in each.reliability.items())
        print(f"seed {seed}: stages {each.minutes:.1f} min; reliability {shares}")
        for digest, claims in each.claims.items():
            if claims:
                print(f"  {each.layouts[digest]}: {', '.join(sorted(claims))}")
    pairs = list(itertools.combinations(found, 2))
    results = {f"{a}, {b}": compared(found[a], found[b]) for a, b in pairs}
    agree = sum(not against for _, against in results.values())
    stacks = sum(count for count, _ in results.values())
    wrong = sum(len(against) for _, against in results.values())
    print(f"{agree} of {len(pairs)} pairs of studies agree on all stacks that both tried")
    print(f"{stacks - wrong} of {stacks} pairs of claims on one stack agree")
    for pair, (_, against) in results.items():
        if against:
            print(f"  seeds {pair} contradict each other on {', '.join(against)}")
    return {"pairs": len(pairs), "agree": agree, "stacks": stacks, "against": wrong}


def main() -> None:
    """Run what is missing, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", default="5,6,7,8,9")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--read", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    read = arguments.read
    found = {seed: said(study_of(arguments.recipe, seed, arguments.runs, read)) for seed in seeds}
    print(json.dumps(summed_up(found)))


if __name__ == "__main__":
    main()
