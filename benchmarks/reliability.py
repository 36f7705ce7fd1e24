"""How far do a recipe's trainings rank stacks? Several stacks, each trained several times.

``python benchmarks/reliability.py RECIPE --seeds 3 --jobs 2 [--layouts CCACAC,CCCCCA]``

Layouts are letters: C short_conv, A gqa, W swa, G gla, M mamba2. The anchor stacks and the
reference are trained too. Prints a JSON line for each training as it ends, then each stack's
quality, the standard deviation of one training and the reliability of one (the share of variance
between stacks). A run that is cut short has its lines; ``--read FILE`` sums up such lines.
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from archloop.evals.base import Score
from archloop.proxy import mixture
from archloop.proxy.proxy import train_and_score
from archloop.proxy.record import TrainJob
from archloop.ranking import objectives
from archloop.ranking.estimates import pools
from archloop.ranking.reliability import seeds_needed
from archloop.search import anchoring, outlook, plan
from archloop.search.recipe import recipe as recipes
from archloop.space import seeding
from archloop.space.specs import to_spec

LETTERS = {"C": "short_conv", "A": "gqa", "W": "swa", "G": "gla", "M": "mamba2"}


class Task(NamedTuple):
    """One training: of which stack, by its name, with which seed."""

    recipe: Path
    name: str
    seed: int


def train(task: Task) -> dict[str, Any]:
    """Scores of a training, with its processor time."""
    torch.set_num_threads(1)
    resolved = plan.resolve(recipes.load(task.recipe))
    known = outlook.probed(resolved)
    spec = known.get(task.name)
    if spec is None:
        layout = [LETTERS[letter] for letter in task.name]
        genome = seeding.from_layout(resolved.space, layout)
        spec = to_spec(resolved.space, genome, "proxy", resolved.vocab_size)
    proxy = resolved.recipe.proxy
    data = mixture.prepare(proxy, None, resolved.recipe.root)
    began = time.process_time()
    job = TrainJob(spec=spec, num_steps=proxy.rungs[0], seed=task.seed)
    rung = train_and_score(job, data, proxy)
    return {
        "stack": task.name,
        "seed": task.seed,
        "cpu_s": round(time.process_time() - began, 1),
        "scores": {name: score.model_dump() for name, score in rung.scores.items()},
    }


def summed_up(recipe: Path, found: list[dict[str, Any]]) -> str:
    """Lines on what the trainings rank."""
    by_stack: dict[str, list[dict[str, Score]]] = {}
    for each in found:
        scores = {name: Score.model_validate(s) for name, s in each["scores"].items()}
        by_stack.setdefault(each["stack"], []).append(scores)
    resolved = plan.resolve(recipes.load(recipe))
    anchors = {n: s for n, s in by_stack.items() if n in outlook.probed(resolved)}
    scale, dropped = anchoring.measured(resolved, anchors)
    lines = [f"{name} does not count: {reason}" for name, reason in dropped.items()]
    if scale is None:
        return "\n".join([*lines, "no score tells the anchor stacks apart"])
    stacks = {}
    for name, trainings in by_stack.items():
        values = [scale.quality(scores) for scores in trainings]
        stacks[name] = objectives.readings(values)
        raw = ", ".join(
            f"{score} {' '.join(f'{scores[score].value:.3f}' for scores in trainings)}"
            for score in trainings[0]
        )
        lines.append(f"{name}: quality {' '.join(f'{v:.2f}' for v in values)}; {raw}")
    pool = pools([{"": readings} for readings in stacks.values()])[""]
    share, _ = outlook.reliability(stacks)
    lines.append(
        f"standard deviation of one training {pool.value**0.5:.3f} ({pool.total_df:.0f} degrees of "
        f"freedom); reliability of one training over {len(stacks)} stacks {share:.2f}; trainings "
        f"a stack that rank: {seeds_needed(share)}"
    )
    return "\n".join(lines)


def main() -> None:
    """Train, print, sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--layouts", default="CCCCCA,CWCCCA,CCGCCA")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--read", type=Path)
    arguments = parser.parse_args()
    if arguments.read is not None:
        lines = arguments.read.read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        print(summed_up(arguments.recipe, found))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    resolved = plan.resolve(recipes.load(arguments.recipe))
    mixture.prepare(resolved.recipe.proxy, None, resolved.recipe.root)
    names = [*outlook.probed(resolved), *filter(None, arguments.layouts.split(","))]
    tasks = [Task(arguments.recipe, n, seed) for seed in range(arguments.seeds) for n in names]
    found = []
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        for each in pool.imap_unordered(train, tasks):
            print(json.dumps(each), flush=True)
            found.append(each)
    print(summed_up(arguments.recipe, found))


if __name__ == "__main__":
    main()
