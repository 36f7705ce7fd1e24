"""Strategies on landscapes whose truth is known: what each finds with so many trials.

    python benchmarks/strategies.py --landscapes lfm random --trials 100 --seeds 12

A simulated study: stacks of 16 blocks of seven families; figures with the noise of a quiet or busy
machine; budgets of 1.15 x the reference's latency and 1.3 x its memory, by which a trial that is
clearly over is rejected untrained. Three presets and the reference are tried first. What is told
is what a real study tells.

Landscapes (one for each seed, the same for every strategy):

- lfm: text quality adds up over blocks; recall comes from mixers that see far, more so in the
  middle and apart from each other, and saturates; costs as measured on CPUs, shaken a little.
- random: every family's use and costs drawn at random, with strong effects of neighbours.
- rugged: as lfm, and every stack has a part of its quality of its own that no feature explains, a
  fifth of what stacks differ by.

Printed by strategy and number of trials: the true hypervolume of what was tried and keeps the
budgets in truth (mean and standard error over seeds); the
share of the true front's members found, the true front being that of all that any strategy tried on
the landscape; gain over random_uniform in paired standard errors. Then one JSON line. Shards of
seeds written with --out are merged by giving the files with --merge.
"""

import argparse
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archloop import registry
from archloop.ranking import front
from archloop.ranking.estimate import Estimate
from archloop.search.base import Strategy, Told
from archloop.space.config import SpaceConfig
from archloop.space.encoding import identity
from archloop.space.genome import Genome
from archloop.space.opening import open_space
from archloop.space.seeding import from_layout
from archloop.space.space import Space

FAMILIES = ("short_conv", "gqa", "swa", "gla", "mamba2", "s5", "gated_deltanet")
SPACE: dict[str, Any] = {
    "ship": {"d_model": 1024, "vocab_size": 65536},
    "proxy": {"d_model": 128},
    "num_blocks": [16],
    "mixers": {
        "short_conv": {"kernel": [3, 5, 7]},
        "gqa": {"head_dim": [32, 64]},
        "swa": {"head_dim": 32},
        **{name: {} for name in FAMILIES[3:]},
    },
    "channel_mixers": {"swiglu": {"expansion": [2.0, 3.0, 4.0]}},
    "scope": {"kernel": "block"},
}
REFERENCE = (["short_conv", "short_conv", "gqa"] * 6)[:16]
INITIAL = [["short_conv"] * 15 + ["gqa"], ["gqa"] * 16, ["mamba2"] * 16, REFERENCE]
LIMITS = {"latency": 1.15, "memory": 1.3}
WORST = {"quality": 0.0, "latency": 1.5, "memory": 1.5}
NOISE = {"none": (0.0, 0.0, 0.0), "quiet": (0.02, 0.008, 0.004), "busy": (0.04, 0.04, 0.008)}
COUNTS = (30, 50, 100, 300)
BASE = {
    "short_conv": (0.60, 0.00, 0.45, 0.03),
    "gqa": (0.55, 1.0, 1.0, 1.0),
    "swa": (0.55, 0.30, 0.75, 0.15),
    "gla": (0.60, 0.25, 1.05, 0.12),
    "mamba2": (0.64, 0.30, 1.30, 0.15),
    "s5": (0.52, 0.05, 0.95, 0.06),
    "gated_deltanet": (0.65, 0.40, 1.35, 0.15),
}
"""Text, recall, milliseconds and state of a block of each family."""
Truth = tuple[float, float, float]


class Landscape:
    """The true quality, latency and memory of every stack.

    Args:
        kind: lfm, random or rugged.
        seed: of what is drawn of it.
    """

    def __init__(self, kind: str, seed: int, space: Space) -> None:
        rng = np.random.default_rng([77, seed])
        self.space, self.seed, self.own = space, seed, 0.05 if kind == "rugged" else 0.0
        table = np.array([BASE[name] for name in FAMILIES])
        self.text, self.recall, self.time, self.state = table.T.copy()
        count = len(FAMILIES)
        if kind in ("lfm", "rugged"):
            self.text += 0.03 * rng.standard_normal(count)
            self.time *= np.exp(0.08 * rng.standard_normal(count))
            self.pairs = 0.01 * rng.standard_normal((count, count))
            self.saturation, self.depth_effect = 0.9, 0.06
        else:
            self.text = rng.uniform(0.4, 0.75, count)
            self.recall = rng.uniform(0, 1, count) ** 2
            self.time = rng.uniform(0.4, 1.5, count)
            self.state = rng.uniform(0.02, 1, count)
            self.pairs = 0.05 * rng.standard_normal((count, count))
            self.saturation, self.depth_effect = 0.6, 0.1
        self.early = rng.standard_normal(count)
        self.unit = (1.0, 1.0)
        _, latency, memory = self.truth(from_layout(space, REFERENCE))
        self.unit = (latency, memory)

    def truth(self, genome: Genome) -> Truth:
        """Quality, latency and memory, the last two as ratios to the reference."""
        index = np.array([FAMILIES.index(name) for name in genome.layout])
        depth = np.linspace(-1, 1, len(index))
        kernels = [float(str(b.mixers[0].genes.get("kernel", 0))) for b in genome.blocks]
        expansion = float(str(genome.family_genes["swiglu"]["expansion"]))
        text = self.text[index].mean() - self.depth_effect * (self.early[index] * depth).mean()
        text += self.pairs[index[:-1], index[1:]].mean()
        text += 0.004 * np.mean([k or 3.0 for k in kernels]) + 0.06 * math.log(expansion / 3)
        far = self.recall[index]
        reach = (far * (1 - 0.5 * np.abs(depth))).sum() - 0.5 * (far[:-1] * far[1:]).sum()
        recall = 1 - math.exp(-self.saturation * max(0.0, reach))
        quality = 0.5 * min(max(text, 0.0), 1.0) + 0.5 * recall + self.own * self._luck(genome)
        latency = 24 + self.time[index].sum() + 0.35 * (expansion - 3) * len(index)
        latency += 0.01 * sum(k or 3.0 for k in kernels)
        return quality, latency / self.unit[0], (2 + self.state[index].sum()) / self.unit[1]

    def _luck(self, genome: Genome) -> float:
        """What a stack has of its own, by its spec."""
        if not self.own:
            return 0.0
        text = repr((self.seed, identity(self.space, genome))).encode()
        return float(np.random.default_rng(zlib.crc32(text)).standard_normal())


def study(
    name: str, landscape: Landscape, seed: int, num_trials: int, noise: str
) -> list[tuple[Truth, int]]:
    """What was tried in turn: its truth, and a number that tells specs apart."""
    space = landscape.space
    initial = [from_layout(space, layout) for layout in INITIAL]
    strategy: Strategy = registry.get("strategies", name)(space, None, initial)
    strategy.worst = WORST
    told: list[Told] = []
    tried: list[tuple[Truth, int]] = []
    for number in range(num_trials):
        proposal = strategy.ask(number, seed, told)
        truth = landscape.truth(proposal.genome)
        told.append(answer(number, seed, proposal.genome, truth, noise, proposal.replicates))
        key = zlib.crc32(repr(identity(space, proposal.genome)).encode())
        tried.append((truth, key))
    return tried


def answer(
    number: int, seed: int, genome: Genome, truth: Truth, noise: str, replicates: int | None
) -> Told:
    """What a study would tell of a trial: quality adds noise, ratios multiply with it."""
    sd = NOISE[noise]
    error = np.random.default_rng([9, seed, number]).standard_normal(3) * sd
    figures = {
        "latency": Estimate(mean=truth[1] * math.exp(error[1]), se=truth[1] * sd[1]),
        "memory": Estimate(mean=truth[2] * math.exp(error[2]), se=truth[2] * sd[2]),
    }
    margins = {
        key: Estimate(mean=math.log(figures[key].mean / limit), se=sd[index])
        for index, (key, limit) in enumerate(LIMITS.items(), start=1)
    }
    # The gate rejects what is over by more than two standard errors.
    if any(margin.mean > 2 * margin.se for margin in margins.values()):
        return Told(number, genome, "rejected", figures, margins, replicates)
    figures["quality"] = Estimate(mean=truth[0] + error[0], se=sd[0])
    return Told(number, genome, "complete", figures, margins, replicates)


# --- what came of it ----------------------------------------------------------------------------


def points(tried: Sequence[tuple[Truth, int]]) -> NDArray[np.float64]:
    """True points that keep the budgets, less being better."""
    kept = [t for t, _ in tried if t[1] <= LIMITS["latency"] and t[2] <= LIMITS["memory"]]
    return np.array([(-q, latency, memory) for q, latency, memory in kept]).reshape(-1, 3)


def volume(tried: Sequence[tuple[Truth, int]]) -> float:
    """True hypervolume."""
    return front.hypervolume(points(tried), (0.0, 1.5, 1.5))


def run(kind: str, seed: int, names: Sequence[str], num_trials: int, noise: str) -> dict[str, Any]:
    """Every strategy on one landscape."""
    landscape = Landscape(kind, seed, open_space(SpaceConfig(**SPACE)))
    tried = {name: study(name, landscape, seed, num_trials, noise) for name in names}
    return {"landscape": kind, "seed": seed, "noise": noise, "tried": tried}


def outcomes(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[int, list[list[float]]]]]:
    """Hypervolume and share of the front by landscape, strategy, number of trials and seed.

    The front of a landscape is that of all that any of the strategies tried on it.
    """
    by_seed: dict[tuple[str, int], dict[str, list[tuple[Truth, int]]]] = {}
    for each in runs:
        tried = {n: [(tuple(t), k) for t, k in ts] for n, ts in each["tried"].items()}
        by_seed.setdefault((each["landscape"], each["seed"]), {}).update(tried)
    found: dict[str, dict[str, dict[int, list[list[float]]]]] = {}
    for (kind, _), tried in sorted(by_seed.items()):
        everything = points([entry for entries in tried.values() for entry in entries])
        best = {tuple(p) for p in np.unique(everything[front.nondominated(everything)], axis=0)}
        for name, entries in tried.items():
            for count in (c for c in COUNTS if c <= len(entries)):
                mine = {tuple(p) for p in points(entries[:count])}
                row = [volume(entries[:count]), len(mine & best) / len(best)]
                found.setdefault(kind, {}).setdefault(name, {}).setdefault(count, []).append(row)
    return found


def table(
    found: dict[str, dict[str, dict[int, list[list[float]]]]], base: str
) -> list[dict[str, Any]]:
    """Rows to print: means, standard errors, paired gains over a strategy."""
    rows = []
    for kind, by_name in found.items():
        for count in COUNTS:
            for name, by_count in by_name.items():
                if count not in by_count:
                    continue
                values = np.array(by_count[count])
                row = {"landscape": kind, "trials": count, "strategy": name, "seeds": len(values)}
                row["hypervolume"], row["front"] = (round(float(v), 4) for v in values.mean(0))
                row["hypervolume_se"], row["front_se"] = (
                    round(float(v), 4) for v in values.std(0, ddof=1) / math.sqrt(len(values))
                )
                for other in (base, "random"):
                    against = np.array(by_name.get(other, {}).get(count, []))
                    if other != name and len(against) == len(values):
                        row[f"gain_over_{other}"] = paired(values[:, 0], against[:, 0])
                rows.append(row)
    return rows


def paired(values: NDArray[np.float64], others: NDArray[np.float64]) -> list[float]:
    """Mean difference and how many standard errors it is."""
    gains = values - others
    error = gains.std(ddof=1) / math.sqrt(len(gains))
    return [round(float(gains.mean()), 4), round(float(gains.mean() / max(error, 1e-12)), 1)]


def show(rows: Sequence[dict[str, Any]], base: str) -> None:
    """The table."""
    print(f"{'landscape':9} {'trials':>6} {'strategy':15} {'hypervolume':>16} {'front found':>15} "
          f"{'over ' + base:>24} {'over random':>18}")  # fmt: skip
    for row in rows:
        gains = [row.get(f"gain_over_{other}") for other in (base, "random")]
        words = [f"{g[0]:+.4f} ({g[1]:+.1f} se)" if g else "" for g in gains]
        print(
            f"{row['landscape']:9} {row['trials']:>6} {row['strategy']:15} "
            f"{row['hypervolume']:>8.4f} ±{row['hypervolume_se']:.4f} "
            f"{row['front']:>7.1%} ±{row['front_se']:.1%} {words[0]:>24} {words[1]:>18}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--landscapes", nargs="+", default=["lfm", "random", "rugged"])
    parser.add_argument("--strategies", nargs="+", default=registry.names("strategies"))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--noise", choices=list(NOISE), default="quiet")
    parser.add_argument("--out", type=Path, help="JSON lines of what was tried, added to")
    parser.add_argument("--merge", type=Path, nargs="+", help="files of shards, instead of running")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if arguments.merge:
        lines = [line for file in arguments.merge for line in file.read_text().splitlines()]
        runs = [json.loads(line) for line in lines]
    else:
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            for kind in arguments.landscapes:
                each = run(kind, seed, arguments.strategies, arguments.trials, arguments.noise)
                runs.append(each)
                if arguments.out:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(each) + "\n")
    rows = table(outcomes(runs), "random_uniform")
    show(rows, "random_uniform")
    print(json.dumps({"benchmark": "strategies", "noise": arguments.noise, "rows": rows}))


if __name__ == "__main__":
    main()
