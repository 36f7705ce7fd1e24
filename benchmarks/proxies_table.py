"""The reliability table: how far scores of one training tell stacks apart. jobs.Records to tables.

    python benchmarks/proxies_table.py RECORDS [--measures]

Reads the lines that `proxies.py` writes. An aggregate is the mean over categories of the mean of
normalised scores (0 at chance, 1 at perfect). Intervals are of 2,000 resamplings of the stacks.
`--measures` also prints every stack's figures.

Shape suffixes: S stacks, R seeds.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import jobs

Floats = NDArray[np.float64]
NUM_RESAMPLES = 2000
SIGNAL_P = 0.01
"""A score carries signal where so few reorderings of its seeds agree as well as the seeds do."""
ALIKE = 0.9
"""Scores whose rank correlation over stacks is above this are merged."""
BITS = "bits_per_byte"
CHEAP = ("params", "state_bytes", "decode_flops")


class Reliability(NamedTuple):
    """How well one training's score tells stacks apart.

    Attributes:
        share: of the variance that is the stacks', 0 to 1.
        low, high: its 95% interval.
        p: how often seeds put in another order agree as well.
    """

    share: float
    low: float
    high: float
    p: float


def matrix(
    records: list[jobs.Record], figure: Callable[[jobs.Record], float], share: float
) -> Floats:
    """A figure of every stack that has all seeds, (S, R), in the order of the stacks' names."""
    by_stack: dict[str, dict[int, float]] = defaultdict(dict)
    for record in records:
        if record["share"] == share and not record["diverged"]:
            by_stack[record["stack"]][record["seed"]] = figure(record)
    seeds = sorted({seed for each in by_stack.values() for seed in each})
    whole = [by_stack[s] for s in sorted(by_stack) if len(by_stack[s]) == len(seeds)]
    return np.array([[each[seed] for seed in seeds] for each in whole], dtype=float)


def aggregate(record: jobs.Record, names: set[str] | None = None) -> float:
    """Mean over categories of the mean normalised score, of some scores or of all."""
    categories: dict[str, list[float]] = defaultdict(list)
    for name, (_, _, normalized, category) in record["scores"].items():
        if names is None or name in names:
            categories[category].append(normalized)
    return float(np.mean([np.mean(each) for each in categories.values()]))


def ranks(values: Floats) -> Floats:
    """Ranks, ties sharing their mean."""
    order = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(order[2])
    return np.asarray((ends - (order[2] - 1) / 2)[order[1]], dtype=float)


def rank_correlation(x: Floats, y: Floats) -> float:
    """Spearman's."""
    a, b = ranks(x), ranks(y)
    if a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def interval(x: Floats, y: Floats) -> tuple[float, float, float]:
    """A rank correlation with its 95% interval over stacks."""
    if x.std() == 0 or y.std() == 0:
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(x), size=len(x)) for _ in range(NUM_RESAMPLES)]
    found = [rank_correlation(x[rows], y[rows]) for rows in drawn]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return rank_correlation(x, y), float(low), float(high)


def share_of_stacks(values_SR: Floats) -> float:
    """Variance between stacks over the sum of that and the variance between seeds."""
    num_seeds = values_SR.shape[1]
    within = float(values_SR.var(1, ddof=1).mean())
    between = float(values_SR.mean(1).var(ddof=1)) - within / num_seeds
    total = max(0.0, between) + within
    return max(0.0, between) / total if total > 0 else 0.0


def reliability(values_SR: Floats) -> Reliability:
    """Of a score, from stacks that each were trained with the same number of seeds."""
    # A seed moves all stacks alike through the order of its text, which does not disturb a ranking.
    centred_SR = values_SR - values_SR.mean(0)
    rng = np.random.default_rng(0)
    found = share_of_stacks(centred_SR)
    drawn = [
        share_of_stacks(centred_SR[rng.integers(len(centred_SR), size=len(centred_SR))])
        for _ in range(NUM_RESAMPLES)
    ]
    mixed = [share_of_stacks(rng.permuted(centred_SR, axis=0)) for _ in range(NUM_RESAMPLES)]
    p = (1 + sum(each >= found for each in mixed)) / (1 + NUM_RESAMPLES)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Reliability(found, float(low), float(high), p if found > 0 else 1.0)


def merged(means: dict[str, Floats]) -> list[list[str]]:
    """Scores in groups: each joins the first group to whose first score it is alike."""
    groups: list[list[str]] = []
    for name, values in means.items():
        for group in groups:
            if abs(rank_correlation(values, means[group[0]])) > ALIKE:
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


# --- tables -------------------------------------------------------------------------------------


def value_of(name: str) -> Callable[[jobs.Record], float]:
    return lambda record: float(record["scores"][name][0])


def normalized_of(name: str) -> Callable[[jobs.Record], float]:
    return lambda record: float(record["scores"][name][2])


def print_reliability(records: list[jobs.Record]) -> None:
    """The whole table of a plan of stacks and seeds."""
    sure = [r for r in records if r["share"] == 1 and not r["diverged"]]
    full_SR = matrix(records, aggregate, 1)
    if full_SR.ndim != 2 or full_SR.shape[0] < 4 or full_SR.shape[1] < 2:
        print("fewer than four stacks have two seeds; no reliability")
        first = min((r["seed"] for r in sure), default=0)
        print_spread([r for r in sure if r["seed"] == first])
        return
    stacks, seeds = full_SR.shape
    names = list(sure[0]["scores"])
    found = {name: reliability(matrix(records, normalized_of(name), 1)) for name in names}
    order = sorted(names, key=lambda name: -found[name].share)
    with_signal = [name for name in order if found[name].p < SIGNAL_P]
    print(
        f"\n{stacks} stacks, {seeds} seeds, {sure[0]['million']:g}M tokens, {sure[0]['device']}\n"
    )
    print("| score | category | mean, sd over stacks, over seeds | reliability (95%) | p |")
    print("|---|---|---|---|---|")
    for name in order:
        values_SR = matrix(records, value_of(name), 1)
        within = math.sqrt(float(values_SR.var(1, ddof=1).mean()))
        r = found[name]
        print(
            f"| {name} | {sure[0]['scores'][name][3]} | {values_SR.mean():.3f}, "
            f"{values_SR.mean(1).std(ddof=1):.3f}, {within:.3f} | "
            f"{r.share:.2f} ({r.low:.2f} to {r.high:.2f}) | {r.p:.4f} |"
        )
    means = {n: matrix(records, normalized_of(n), 1).mean(1) for n in with_signal}
    groups = merged(means)
    print(
        f"\nOf {len(names)} scores {len(with_signal)} carry signal (p < {SIGNAL_P}); merged above "
        f"{ALIKE} they are {len(groups)}: {'; '.join(', '.join(g) for g in groups)}"
    )
    print(f"Without signal: {', '.join(n for n in order if n not in with_signal)}\n")
    print_correlations(records, {"all scores": None, "scores with signal": set(with_signal)})


def beyond_sampling(values_S: Floats, errors_S: Floats) -> float:
    """Share of a score's variance over stacks that its examples' sampling does not explain, 0 to 1.

    No reliability of one seed can be larger but by chance, since another seed's variance is in it.
    """
    spread = float(values_S.var(ddof=1))
    return max(0.0, 1 - float(np.mean(errors_S**2)) / spread) if spread > 0 else 0.0


def print_spread(records: list[jobs.Record]) -> None:
    """Of one seed: what stacks differ by beside the sampling of examples, and what agrees."""
    if len(records) < 4:
        return
    names = list(records[0]["scores"])
    values = {n: np.array([r["scores"][n][0] for r in records], dtype=float) for n in names}
    errors = {n: np.array([r["scores"][n][1] for r in records], dtype=float) for n in names}
    shares = {n: beyond_sampling(values[n], errors[n]) for n in names}
    print(f"\n{len(records)} stacks, one seed, {records[0]['million']:g}M tokens\n")
    print("| score | category | mean | sd over stacks | error of sampling | beyond sampling |")
    print("|---|---|---|---|---|---|")
    for name in sorted(names, key=lambda name: -shares[name]):
        error = math.sqrt(float(np.mean(errors[name] ** 2)))
        print(
            f"| {name} | {records[0]['scores'][name][3]} | {values[name].mean():.3f} | "
            f"{values[name].std(ddof=1):.3f} | {error:.3f} | {shares[name]:.2f} |"
        )
    print("\n| rank correlation over stacks (95%) | bits per byte, less is better |")
    print("|---|---|")
    bits_S = -values[BITS]
    figures: dict[str, Floats] = {"all scores": np.array([aggregate(r) for r in records])}
    figures |= {name: np.array([float(r[name]) for r in records]) for name in CHEAP}
    for name, figure_S in figures.items():
        r, low, high = interval(figure_S, bits_S)
        print(f"| {name} | {r:.2f} ({low:.2f} to {high:.2f}) |")


def print_correlations(records: list[jobs.Record], aggregates: dict[str, set[str] | None]) -> None:
    """Rank correlations of aggregates and bits per byte: seeds, a tenth, cheap measures."""

    def bits(record: jobs.Record) -> float:
        return -value_of(BITS)(record)

    print("| rank correlation over stacks (95%) |" + " | ".join([*aggregates, BITS]) + " |")
    print("|---|" + "---|" * (len(aggregates) + 1))
    figures = [lambda r, chosen=chosen: aggregate(r, chosen) for chosen in aggregates.values()]
    figures.append(bits)
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for figure in figures:
        full_SR = matrix(records, figure, 1)
        rows["one seed and the other"].append(interval(full_SR[:, 0], full_SR[:, 1]))
        short = [r for r in records if r["share"] < 1]
        both = {r["stack"] for r in short} & {r["stack"] for r in records if r["share"] == 1}
        if short:
            kept = [r for r in records if r["stack"] in both]
            short_SR = matrix(kept, figure, short[0]["share"])
            if short_SR.shape == full_SR.shape:
                label = f"{short[0]['share']:g} of the training and the whole"
                # Of different seeds, so that no noise is shared.
                rows[f"{label}, one seed each"].append(interval(short_SR[:, 0], full_SR[:, 1]))
                rows[f"{label}, means of seeds"].append(interval(short_SR.mean(1), full_SR.mean(1)))
        for name in CHEAP:
            cheap_S = matrix(records, lambda r, name=name: float(r[name]), 1)[:, 0]
            rows[f"{name} and the score"].append(interval(cheap_S, full_SR.mean(1)))
        rows["bits per byte (less) and the score"].append(
            interval(matrix(records, bits, 1).mean(1), full_SR.mean(1))
        )
    for label, found in rows.items():
        cells = [f"{r:.2f} ({low:.2f} to {high:.2f})" for r, low, high in found]
        print(f"| {label} | " + " | ".join(cells) + " |")


def print_ratios(records: list[jobs.Record]) -> None:
    """Bits per byte of each share of attention, and every pair's difference."""
    by_stack: dict[str, list[float]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r["seed"]):
        if not record["diverged"]:
            by_stack[record["stack"]].append(value_of(BITS)(record))
    usable = {stack: np.array(v) for stack, v in by_stack.items() if len(v) > 1}
    if len(usable) < 2:
        print("fewer than two stacks have two seeds; no table")
        return
    degrees = sum(len(v) - 1 for v in usable.values())
    squares = sum(float(v.var(ddof=1)) * (len(v) - 1) for v in usable.values())
    sd = math.sqrt(squares / degrees)
    print(f"\nsd over seeds {sd:.4f} bits a byte, {degrees} degrees of freedom\n")
    print("| attention : mamba2 | seeds | bits per byte |\n|---|---|---|")
    for stack, v in usable.items():
        print(f"| {stack} | {len(v)} | {v.mean():.4f} |")
    print("\n| pair | difference (standard error) | seeds that it needs |\n|---|---|---|")
    names = list(usable)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = usable[one], usable[other]
            difference = float(a.mean() - b.mean())
            error = sd * math.sqrt(1 / len(a) + 1 / len(b))
            print(
                f"| {one} - {other} | {difference:+.4f} ({error:.4f}) | "
                f"{needed_seeds(difference, sd)} |"
            )


def needed_seeds(difference: float, sd: float) -> int:
    """Seeds of each to find a difference at 5% (two-sided) with 80% power: (1.96 + 0.84)^2."""
    return max(2, math.ceil(2 * (2.80 * sd / max(abs(difference), 1e-9)) ** 2))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("--measures", action="store_true")
    asked = parser.parse_args(argv)
    records = jobs.read(asked.records)
    if asked.measures:
        for r in records:
            bits = r["scores"].get(BITS, [math.nan])[0]
            print(f"{r['stack']:16} {r['seed']} {r['share']:g} {bits:.4f} {aggregate(r):.4f}")
    scored = [r for r in records if r["plan"] == "reliability"]
    if scored:
        print_reliability(scored)
    ratios = [r for r in records if r["plan"] == "ratios"]
    if ratios:
        print_ratios(ratios)


if __name__ == "__main__":
    main()
