"""How often what a study says of its front is right, in simulated studies with known truth.

    python benchmarks/fronts.py [--studies 400] [--out FILE]

Every simulated study draws trainings and processes, estimates their noise from them as a real study
does (a pool over stacks), and asks `archloop.ranking` what may be said. Three tables: studies of
equal stacks, in which nothing may be found; studies of stacks that differ; and the gate's
decisions. The last line is one JSON object with all of it. The test suite runs the same functions,
smaller.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.ranking import looks, membership, variance
from archloop.ranking.estimate import Estimate
from archloop.ranking.front import hypervolume, nondominated
from archloop.ranking.membership import Standing
from archloop.ranking.record import Objective
from archloop.ranking.table import Table, table
from archloop.ranking.variance import Pool

Floats = NDArray[np.float64]

OBJECTIVES = (
    Objective(name="quality", direction="maximize"),
    Objective(name="latency", direction="minimize"),
    Objective(name="memory", direction="minimize"),
)
WORST = (0.0, 1.5, 1.5)
SPREAD = (0.113, 0.045, 0.02)
"""Standard deviation between stacks of quality, latency and memory, as a quickstart had it."""
RATIOS = (0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1)
"""True value over limit, at which the gate is tried."""


class Noise(NamedTuple):
    """Standard deviation of one training's quality; of one process's latency and memory ratios."""

    quality: float
    latency: float
    memory: float


NOISES = {
    "quiet machine, quiet seeds": Noise(0.009, 0.016, 0.008),
    "busy machine, quiet seeds": Noise(0.013, 0.08, 0.012),
    "measured seeds, quiet machine": Noise(0.1, 0.016, 0.008),
    "measured seeds, busy machine": Noise(0.1, 0.08, 0.012),
}


def observed(
    rng: np.random.Generator,
    truth_NM: Floats,
    noise: Noise,
    *,
    seeds: int = 1,
    processes: int = 4,
    noise_stacks: int = 3,
    noise_seeds: int = 3,
) -> Table:
    """What a study of these stacks would estimate; row 0 is the reference run.

    Args:
        truth_NM: true quality, latency and memory, the reference's first.
        seeds: trainings of each trial.
        processes: pairs of processes of each trial.
        noise_stacks: stacks, the reference among them, that are trained `noise_seeds` times.
    """
    count = len(truth_NM)
    replicates = noise.quality * rng.standard_normal((noise_stacks, noise_seeds))
    usual = variance.pooled([variance.of_values(list(row)) for row in replicates])
    own = [usual.of_stack().value / noise_seeds]
    cells = [[_estimate(truth_NM[0, 0] + replicates[0].mean(), own[0], noise_seeds, usual)]]
    for quality in truth_NM[1:, 0]:
        mean = quality + noise.quality * rng.standard_normal(seeds).mean()
        cells.append([_estimate(mean, usual.of_stack().value / seeds, seeds, usual)])
    for column, sd in ((1, noise.latency), (2, noise.memory)):
        readings = truth_NM[1:, column, None] + sd * rng.standard_normal((count - 1, processes))
        cells[0].append(Estimate(mean=truth_NM[0, column]))
        for row, estimate in zip(cells[1:], device_estimates(readings), strict=True):
            row.append(estimate)
    names = [objective.name for objective in OBJECTIVES]
    return table([dict(zip(names, row, strict=True)) for row in cells], OBJECTIVES)


def device_estimates(readings: Floats) -> list[Estimate]:
    """Means over processes with the variance of each stack shrunk towards the pool of all."""
    own = [variance.of_values(list(row)) for row in readings]
    usual = variance.pooled(own)
    estimates = []
    for row, variance_ in zip(readings, own, strict=True):
        shrunk = usual.of_stack(variance_)
        estimates.append(
            Estimate(
                mean=float(row.mean()),
                se=math.sqrt(shrunk.value / len(row)),
                df=shrunk.df,
                n=len(row),
                shared=shrunk.shared,
            )
        )
    return estimates


def _estimate(mean: float, square: float, count: int, pool: Pool) -> Estimate:
    usual = pool.of_stack()
    return Estimate(mean=mean, se=math.sqrt(square), df=usual.df, n=count, shared=usual.shared)


def stacks(rng: np.random.Generator, count: int, spread: Sequence[float] = (0, 0, 0)) -> Floats:
    """True values of a reference and `count` trials that differ by `spread`."""
    truth_NM = np.array([0.6, 1.0, 1.0]) + rng.standard_normal((count + 1, 3)) * spread
    truth_NM[0] = (0.6, 1.0, 1.0)
    return truth_NM


def minimised(truth_NM: Floats) -> Floats:
    """Less is better in every column."""
    return truth_NM * (-1, 1, 1)


def judged(rng: np.random.Generator, truth_NM: Floats, noise: Noise, **options: Any) -> Standing:
    """What a study of these stacks says."""
    estimates = observed(rng, truth_NM, noise, **options)
    seed = int(rng.integers(2**31))
    return membership.standing(estimates, WORST, reference=0, seed=seed, num_draws=400)


def equal(count: int, noise: Noise, studies: int, seed: int) -> dict[str, float]:
    """Shares of studies of equal stacks that claim anything, and what volume they state.

    Volumes are ratios to the true one, which is that of a single stack.
    """
    rng = np.random.default_rng(seed)
    front = different = either = naive = held = 0
    stated, points = [], []
    truth_NM = stacks(rng, count)
    volume = hypervolume(minimised(truth_NM[:1]), WORST)
    for _ in range(studies):
        estimates = observed(rng, truth_NM, noise)
        found = membership.standing(
            estimates, WORST, reference=0, seed=int(rng.integers(2**31)), num_draws=400
        )
        on_front = any(member.status == "front" for member in found.members[1:])
        differs = any(m.status == "dominated" or m.better_in for m in found.members)
        front += on_front
        different += differs
        either += on_front or differs
        naive += int(nondominated(estimates.mean_NM).sum())
        held += found.volume.low <= volume <= found.volume.high
        stated.append(found.volume.mean / volume)
        points.append(hypervolume(estimates.mean_NM, WORST) / volume)
    return {
        "front": front / studies,
        "different": different / studies,
        "either": either / studies,
        "naive_front": naive / studies,
        "volume": float(np.mean(stated)),
        "volume_of_points": float(np.mean(points)),
        "volume_covered": held / studies,
    }


def differing(
    count: int, noise: Noise, studies: int, seed: int, seeds: int = 1
) -> dict[str, float]:
    """How right statements are where stacks differ."""
    rng = np.random.default_rng(seed)
    said = right = members = dominated = wrongly = covered = 0
    widths, probabilities, hits = [], [], []
    for _ in range(studies):
        truth_NM = minimised(stacks(rng, count, SPREAD))
        found = judged(rng, minimised(truth_NM), noise, seeds=seeds)
        true_N = nondominated(truth_NM)
        for i, member in enumerate(found.members):
            probabilities.append(member.probability)
            hits.append(bool(true_N[i]))
            if i > 0:
                said += member.status == "front"
                right += member.status == "front" and bool(true_N[i])
                members += bool(true_N[i])
            dominated += member.status == "dominated"
            wrongly += member.status == "dominated" and bool(true_N[i])
        volume = hypervolume(truth_NM[list(found.reported)], WORST)
        covered += found.volume.low <= volume <= found.volume.high
        widths.append((found.volume.high - found.volume.low) / found.volume.mean)
    return {
        "said_on_front": said / studies,
        "of_them_right": right / said if said else 1.0,
        "of_true_members_found": right / members,
        "said_dominated": dominated / studies,
        "of_them_wrong": wrongly / dominated if dominated else 0.0,
        "mean_probability": float(np.mean(probabilities)),
        "true_share": float(np.mean(hits)),
        "volume_covered": covered / studies,
        "volume_width": float(np.mean(widths)),
    }


def gate(
    ratio: float, sd: float, num_looks: int, candidates: int, seed: int, budgets: int = 1
) -> tuple[float, float]:
    """(share rejected, mean processes) of candidates at true / limit, 4 processes a look.

    The noise is known as well as 10 earlier trials of 4 processes make it (30 degrees of freedom).
    """
    rng = np.random.default_rng(seed)
    pool_df = 30
    readings = math.log(ratio) + sd * rng.standard_normal((candidates, budgets, 4 * num_looks))
    scales = sd * np.sqrt(rng.chisquare(pool_df, candidates) / pool_df)
    rejected = used = 0
    for rows, scale in zip(readings, scales, strict=True):
        for look in range(1, num_looks + 1):
            count = 4 * look
            decision = looks.decide(
                [
                    Estimate(mean=row[:count].mean(), se=scale / math.sqrt(count), df=pool_df)
                    for row in rows
                ],
                look,
                num_looks,
            )
            if decision != "unsure":
                break
        rejected += decision == "broken"
        used += 4 * look
    return rejected / candidates, used / candidates


def quality_coverage(studies: int, seed: int, noise_stacks: int = 3, noise_seeds: int = 3) -> float:
    """Share of simulated studies in which the bar of one trial's quality holds the truth."""
    rng = np.random.default_rng(seed)
    held = 0
    for _ in range(studies):
        rows = rng.standard_normal((noise_stacks, noise_seeds))
        usual = variance.pooled([variance.of_values(list(row)) for row in rows]).of_stack()
        bar = Estimate(mean=rng.standard_normal(), se=math.sqrt(usual.value), df=usual.df)
        held += bar.interval()[0] <= 0 <= bar.interval()[1]
    return held / studies


def device_coverage(trials: int, processes: int, unequal: bool, studies: int, seed: int) -> float:
    """Share of bars of a device figure that hold the truth; noise equal or unequal over stacks."""
    rng = np.random.default_rng(seed)
    held = 0
    for _ in range(studies):
        sd = np.sqrt(8 / rng.chisquare(8, (trials, 1))) if unequal else np.ones((trials, 1))
        for bar in device_estimates(sd * rng.standard_normal((trials, processes))):
            held += bar.interval()[0] <= 0 <= bar.interval()[1]
    return held / (studies * trials)


def equal_table(studies: int) -> dict[str, Any]:
    """Print and return what studies of equal stacks claim."""
    print("Equal stacks: share of studies that call a trial on the front, or two stacks different")
    print(
        f"{'noise':32} {'N':>4}  front  different  either   front of the estimates  "
        "volume / true: of the estimates, stated (held)"
    )
    results = {}
    for name, noise in NOISES.items():
        for count in (8, 30, 100):
            row = results[f"{name}, {count}"] = equal(count, noise, studies, count)
            print(
                f"{name:32} {count:4}  {row['front']:.3f}  {row['different']:9.3f}  "
                f"{row['either']:6.3f}   {row['naive_front']:22.1f}  "
                f"{row['volume_of_points']:.2f}, {row['volume']:.2f} ({row['volume_covered']:.2f})"
            )
    return results


def differing_table(studies: int) -> dict[str, Any]:
    """Print and return how right statements are where stacks differ."""
    print("\nStacks that differ: what is said of a study, and how often it is right")
    print(
        f"{'noise, trainings a stack':40} {'N':>4}  on front (right; of true)  dominated (wrong)  "
        "mean P (true share)  volume in interval (width)"
    )
    results = {}
    for name, noise in NOISES.items():
        for seeds in (1, 3):
            for count in (8, 30, 100):
                label = f"{name}, {seeds}"
                row = results[f"{label}, {count}"] = differing(count, noise, studies, count, seeds)
                print(
                    f"{label:40} {count:4}  {row['said_on_front']:5.2f} "
                    f"({row['of_them_right']:.2f}; {row['of_true_members_found']:.2f})  "
                    f"{row['said_dominated']:14.1f} ({row['of_them_wrong']:.3f})  "
                    f"{row['mean_probability']:9.3f} ({row['true_share']:.3f})  "
                    f"{row['volume_covered']:14.2f} ({row['volume_width']:.2f})"
                )
    return results


def bars_table(studies: int) -> dict[str, float]:
    """Print and return how often bars hold the truth."""
    print("\nBars that hold the truth")
    bars = {
        "quality, 3 stacks x 3 trainings": quality_coverage(20 * studies, 0),
        "device, 10 trials, equal noise": device_coverage(10, 4, False, studies, 0),
        "device, 10 trials, unequal noise": device_coverage(10, 4, True, studies, 0),
        "device, 100 trials, unequal noise": device_coverage(100, 4, True, studies // 4, 0),
    }
    for name, share in bars.items():
        print(f"{name:40} {share:.3f}")
    return bars


def gate_table(candidates: int) -> dict[str, Any]:
    """Print and return the gate's error rates."""
    print("\nThe gate: share rejected (mean processes) by true value / limit, 4 processes a look")
    print(f"{'looks, sd of a process, budgets':32} " + "  ".join(f"{r:>12}" for r in RATIOS))
    results = {}
    for num_looks in (1, 2, 4):
        for sd in (0.01, 0.03, 0.1):
            for budgets in (1, 3):
                cells = [gate(ratio, sd, num_looks, candidates, 0, budgets) for ratio in RATIOS]
                label = f"{num_looks}, {sd}, {budgets}"
                results[label] = dict(zip(map(str, RATIOS), cells, strict=True))
                print(f"{label:32} " + "  ".join(f"{a:.3f} ({u:4.1f})" for a, u in cells))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    studies: int = arguments.studies
    results = {
        "studies": studies,
        "equal": equal_table(studies),
        "differing": differing_table(studies),
        "bars": bars_table(studies),
        "gate": gate_table(10 * studies),
    }
    line = json.dumps(results)
    if arguments.out:
        arguments.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
