"""Do forked processes measure as started ones do, and is each one a sample of its own?

``python benchmarks/forked_noise.py RECIPE [--rounds 8]``

Forked processes share what their server's start decided, such as where libraries lie in memory. If
that moved a figure, processes of one server would resemble each other, and intervals that count
each as a sample would be too narrow. So the recipe's first initial stack is measured beside the
reference on its first target, in rounds with a new server each, in turns with rounds of started
processes. Printed for each figure at the longest context: the standard deviation of a process
within a round, the variance between rounds over what that alone would give (F; about 1 if a round's
processes share nothing) with its p-value, and how far the two ways' means lie apart. One JSON line
ends it.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from statistics import fmean, median, variance

from scipy.stats import f as f_distribution

from archloop.profiling import ProfileConfig, Target, profile
from archloop.profiling.nursery import Nursery
from archloop.profiling.samples import PairSamples, ProcessSamples, read_samples
from archloop.search import plan
from archloop.search.recipe import recipe as recipes
from archloop.space.specs import to_spec
from archloop.stack.spec import StackSpec

Rounds = list[list[float]]
"""Logarithms of a figure, by round and process."""

WAYS = {"forked": True, "started": False}


def readings(process: ProcessSamples) -> dict[str, float]:
    """A process's figures at its longest context."""
    at = process.contexts[-1]
    return {
        "first token": at.prefill_ms,
        "decode step": at.decode_quantile_ms(0.5),
        "memory": process.net_bytes(at),
    }


def logarithms(pair: PairSamples) -> dict[str, float]:
    """Of the stack's own figures, and of the ratios to the reference that a search decides on."""
    assert pair.reference is not None
    mine, beside = readings(pair.candidate), readings(pair.reference)
    ratios = {f"ratio of {name}": math.log(mine[name] / beside[name]) for name in mine}
    return ratios | {name: math.log(value) for name, value in mine.items()}


def within(rounds: Rounds) -> float:
    """Variance of a process within its round, pooled over rounds."""
    return fmean(variance(values) for values in rounds)


def between(rounds: Rounds) -> tuple[float, float]:
    """Variance of round means over what processes alone would give them, and its p-value."""
    size = len(rounds[0])
    found = size * variance([fmean(values) for values in rounds]) / within(rounds)
    freedom = (len(rounds) - 1, len(rounds) * (size - 1))
    return found, float(f_distribution.sf(found, *freedom))


def apart(one: Rounds, other: Rounds) -> tuple[float, float]:
    """Difference of two ways' means, and its standard error by the spread of round means."""
    means = [[fmean(values) for values in rounds] for rounds in (one, other)]
    error = math.sqrt(sum(variance(values) / len(values) for values in means))
    return fmean(means[0]) - fmean(means[1]), error


class Bench:
    """A stack and its reference, measured as often as one likes."""

    def __init__(
        self,
        stack: StackSpec,
        reference: StackSpec,
        target: Target,
        config: ProfileConfig,
        scratch: Path,
    ) -> None:
        self.stack, self.reference, self.target = stack, reference, target
        self.config, self.scratch = config, scratch

    def round(self, fork: bool) -> tuple[tuple[PairSamples, ...], float]:
        """Pairs of one measurement with a server of its own, and the seconds that it took."""
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        with Nursery() as nursery:
            profile(
                self.stack,
                self.target,
                self.config.model_copy(update={"fork": fork}),
                reference=self.reference,
                directory=folder,
                artifacts=self.scratch / "artifacts",
                nursery=nursery,
            )
            pairs = read_samples(folder).pairs
            if any(pair.forked != fork for pair in pairs):
                raise SystemExit(f"processes could not be forked: {nursery.reasons}")
        return pairs, time.monotonic() - began


def main() -> None:
    """Measure both ways in turns and compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    asked = parser.parse_args()
    planned = plan.resolve(recipes.load(asked.recipe))
    recipe = planned.recipe
    stack = to_spec(planned.space, planned.strategy.initial[0], "ship")
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, dict[str, Rounds]] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        target = next(iter(recipe.targets.values()))
        bench = Bench(stack, planned.reference, target, recipe.profile, Path(scratch))
        bench.round(fork=True)  # writes the reference's artifact, which later rounds find
        for number in range(asked.rounds):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                pairs, took = bench.round(WAYS[way])
                seconds[way].append(took)
                rows = [logarithms(pair) for pair in pairs]
                for name in rows[0]:
                    found[way].setdefault(name, []).append([row[name] for row in rows])
                print(f"round {number}, {way}: {took:.1f} s", flush=True)
    print("\n| figure | way | of a process | F between rounds (p) | forked - started |")
    print("|---|---|---|---|---|")
    told = {}
    for name in found["forked"]:
        difference, error = apart(found["forked"][name], found["started"][name])
        for way in WAYS:
            spread = math.sqrt(within(found[way][name]))
            ratio, chance = between(found[way][name])
            told[f"{name}, {way}"] = {"sd": spread, "f": ratio, "p": chance}
            last = f"{difference:+.2%} ± {error:.2%}" if way == "forked" else ""
            print(f"| {name} | {way} | {spread:.2%} | {ratio:.2f} ({chance:.2f}) | {last} |")
        told[name] = {"forked - started": difference, "se": error}
    medians = {way: median(values) for way, values in seconds.items()}
    print(f"\nseconds a measurement, median: {medians}")
    print(json.dumps({"seconds": seconds, "figures": told, "processes": recipe.profile.processes}))


if __name__ == "__main__":
    main()
