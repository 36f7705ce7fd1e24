"""What cheap proxies of cost are worth: how parameters, FLOPs and bytes order measured stacks.

    python benchmarks/cost_proxies.py recipes/many-targets.yaml --records proxies.jsonl --minutes 60
    python benchmarks/cost_proxies.py recipes/many-targets.yaml --records proxies.jsonl --plots .

Draws random stacks of a recipe's space, whose budget of parameters is left out so that sizes vary,
and measures each on each of the named targets, in a random order. A line of the file is one stack
on one target, so the command goes on where it was stopped. Then it prints, for each target and
context, Spearman's rank correlation of each proxy with the measured decode step, time to the first
token and memory, with 95% intervals over resampled stacks; the last column is what one measurement
says of the next, which no proxy can be asked to beat. Ends with a JSON line. Anything else that
runs on the machine spoils the times.
"""

import argparse
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import jobs
from archloop.profiling import profile, read_samples
from archloop.profiling.samples import ContextSamples, ProcessSamples
from archloop.search.recipe.recipe import Recipe, load
from archloop.space.opening import open_space
from archloop.space.specs import to_spec
from archloop.space.variation import sample
from archloop.stack.footprint import footprint
from archloop.stack.spec import StackSpec
from proxies_table import interval

FIGURES = {
    "decode_ms": ("decode step", "ms", 1.0),
    "ttft_ms": ("first token", "ms", 1.0),
    "memory_bytes": ("memory", "MB", 1e6),
}
"""What is measured of each process, memory less the empty engine's: name and unit."""


class Proxy(NamedTuple):
    """A figure that costs nothing, by a record and a context, with its unit for a plot."""

    name: str
    of: Callable[[jobs.Record, str], float]
    unit: str
    size: float


def _estimate(name: str) -> Callable[[jobs.Record, str], float]:
    return lambda record, context: record["footprint"]["estimated"][context][name]


PROXIES = (
    Proxy("parameters", lambda record, _: record["footprint"]["num_params"], "M", 1e6),
    Proxy("weight bytes", lambda record, _: record["weight_bytes"], "MB", 1e6),
    Proxy("state bytes", _estimate("state_bytes"), "MB", 1e6),
    Proxy("decode FLOPs", _estimate("decode_flops"), "MFLOP", 1e6),
    Proxy("prefill FLOPs", _estimate("prefill_flops"), "GFLOP", 1e9),
)


def main() -> None:
    asked = _arguments()
    recipe = load(asked.recipe)
    names = asked.targets or list(recipe.targets)
    if unknown := set(names) - set(recipe.targets):
        raise SystemExit(f"--targets {min(unknown)}: the recipe has {', '.join(recipe.targets)}")
    keys = [f"{target} {number}" for target in names for number in range(asked.stacks)]
    random.Random(asked.seed).shuffle(keys)
    measure = partial(measured, recipe=recipe, seed=asked.seed, processes=asked.processes)
    seconds = 60 * asked.minutes
    found = jobs.run(keys, measure, asked.records, workers=1, seconds=seconds)
    records = [record for record in found if record["key"] in keys and "failed" not in record]
    told = [row for target in names for row in rows(records, target)]
    for line in table(told):
        print(line)
    if asked.plots is not None:
        for target in names:
            plot(records, target, asked.plots / f"cost-proxies-{target}.svg")
    print(json.dumps({"benchmark": "cost_proxies", "rows": told}))


def drawn(recipe: Recipe, seed: int, number: int) -> StackSpec:
    """One of the campaign's stacks: the prior's sizes as they come."""
    space = open_space(recipe.space.model_copy(update={"budget": None}))
    rng = np.random.default_rng([seed, number])
    return to_spec(space, sample(space, rng), "ship")


def measured(key: str, recipe: Recipe, seed: int, processes: int) -> jobs.Record:
    """A stack on a target: what it is, and each process's figures by context."""
    name, number = key.split(" ")
    spec, target = drawn(recipe, seed, int(number)), recipe.targets[name]
    config = recipe.profile.model_copy(update={"processes": processes})
    with tempfile.TemporaryDirectory() as folder:
        found = profile(spec, target, config, directory=Path(folder))
        samples = read_samples(Path(folder))
    return {
        "target": name,
        "layout": spec.layout,
        "footprint": footprint(spec, target.contexts).model_dump(mode="json"),
        "weight_bytes": sum(samples.weight_bytes.values()),
        "measured": {
            str(context): [figures(pair.candidate, index) for pair in samples.pairs]
            for index, context in enumerate(target.contexts)
        },
        "identity": found.identity.model_dump(mode="json"),
        "flags": found.flags,
        "seconds": found.seconds,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def figures(process: ProcessSamples, index: int) -> dict[str, float]:
    at: ContextSamples = process.contexts[index]
    return {
        "decode_ms": at.decode_quantile_ms(0.5),
        "ttft_ms": at.prefill_ms,
        "memory_bytes": float(process.net_bytes(at)),
    }


def rows(records: list[jobs.Record], target: str) -> Iterator[dict[str, object]]:
    """Of each context and figure, the correlations with their intervals."""
    own = [record for record in records if record["target"] == target]
    for context in own[0]["measured"] if own else ():
        for figure in FIGURES:
            each = [[one[figure] for one in record["measured"][context]] for record in own]
            truth = np.array([np.mean(values) for values in each])
            proxies = {
                proxy.name: np.array([proxy.of(record, context) for record in own])
                for proxy in PROXIES
            }
            found = {name: interval(values, truth) for name, values in proxies.items()}
            # The mean of all processes is steadier than one: a proxy may come nearer to it than
            # this, but never nearer than 1.
            found["one process to another"] = interval(
                np.array([values[0] for values in each]), np.array([values[1] for values in each])
            )
            yield {
                "target": target,
                "context": int(context),
                "figure": figure,
                "stacks": len(own),
                "spread": float(truth.max() / truth.min()),
                "rank": found,
            }


def table(told: list[dict[str, object]]) -> Iterator[str]:
    """Markdown."""
    columns = [*(proxy.name for proxy in PROXIES), "one process to another"]
    yield f"| target | context | figure | largest over least | {' | '.join(columns)} |"
    yield f"|{' --- |' * (4 + len(columns))}"
    for row in told:
        ranks = row["rank"]
        assert isinstance(ranks, dict)
        cells = [_cell(*ranks[name]) for name in columns]
        head = [row["target"], f"{row['context']:,}", FIGURES[str(row["figure"])][0]]
        yield f"| {' | '.join(map(str, head))} | {row['spread']:.2f} | {' | '.join(cells)} |"


def _cell(value: float, low: float, high: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f} ({low:.2f} to {high:.2f})"


def plot(records: list[jobs.Record], target: str, file: Path) -> None:
    """Each proxy against each figure at the longest context, a dot a stack."""
    own = [record for record in records if record["target"] == target]
    if not own:
        return
    context = max(own[0]["measured"], key=int)
    figure = Figure(figsize=(2.3 * len(PROXIES), 6.6), layout="constrained")
    panels = figure.subplots(len(FIGURES), len(PROXIES))
    for line, (name, (label, unit, size)) in zip(panels, FIGURES.items(), strict=True):
        for axes, proxy in zip(line, PROXIES, strict=True):
            truth = [np.mean([one[name] for one in each["measured"][context]]) for each in own]
            guess = [proxy.of(each, context) / proxy.size for each in own]
            axes.scatter(guess, np.array(truth) / size, s=9)
            axes.locator_params(nbins=4)
            axes.tick_params(labelsize=7)
            if axes in panels[-1]:
                axes.set_xlabel(f"{proxy.name}, {proxy.unit}", fontsize=8)
            if axes is line[0]:
                axes.set_ylabel(f"{label} at {int(context):,}, {unit}", fontsize=8)
    figure.suptitle(f"{len(own)} stacks on {target}", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--stacks", type=int, default=40)
    parser.add_argument("--targets", nargs="+", help="of the recipe; all by default")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=0.0, help="of measuring; 0 only tells")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plots", type=Path, help="folder of scatter plots")
    return parser.parse_args()


if __name__ == "__main__":
    main()
