"""What cheap proxies of cost are worth: how parameters, FLOPs and bytes order measured stacks.

    python benchmarks/cost_proxies.py campaign.jsonl --plots docs/figures

Reads what `campaign.py` measured. Prints, for each target and context, Spearman's rank correlation
of each proxy with the measured decode step, time to the first token and memory, with 95% intervals
over resampled stacks: first over all stacks, then over those of one budget of parameters. The last
column is what one process says of the next, over the stacks that have two, which no proxy can be
asked to beat. Ends with a JSON line.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import campaign
import jobs
from proxies_table import interval

FIGURES = {
    "decode_ms": ("decode step", "ms", 1.0),
    "prefill_ms": ("first token", "ms", 1.0),
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


REPEATED = "one process to another"
GROUPS = ("all", "one budget")
FEWEST = 4
"""Stacks that have a rank correlation."""


def main() -> None:
    asked = _arguments()
    records = campaign.read(asked.records)
    targets = sorted({record["target"] for record in records})
    told = [row for group in GROUPS for target in targets for row in rows(records, target, group)]
    for line in table(told):
        print(line)
    disturbed = sum(bool(record["flags"]) for record in records)
    print(f"{len(records)} measurements, {disturbed} of them flagged as disturbed")
    if asked.plots is not None:
        for target in targets:
            plot(records, target, asked.plots / f"cost-proxies-{target}.svg")
    print(json.dumps({"benchmark": "cost_proxies", "rows": told}))


def rows(records: list[jobs.Record], target: str, group: str) -> Iterator[dict[str, object]]:
    """Of each context and figure, the correlations with their intervals."""
    own = [record for record in records if record["target"] == target]
    if group == "one budget":
        own = [record for record in own if not campaign.is_of_any_size(record["number"])]
    if len(own) < FEWEST:
        return
    for context in own[0]["measured"]:
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
            found[REPEATED] = repeated(each)
            yield {
                "target": target,
                "group": group,
                "context": int(context),
                "figure": figure,
                "stacks": len(own),
                "spread": float(truth.max() / truth.min()),
                "rank": found,
            }


def repeated(each: list[list[float]]) -> tuple[float, float, float]:
    """How alike two processes order the stacks that have two."""
    pairs = np.array([values[:2] for values in each if len(values) > 1])
    if len(pairs) < FEWEST:
        return math.nan, math.nan, math.nan
    return interval(pairs[:, 0], pairs[:, 1])


def table(told: list[dict[str, object]]) -> Iterator[str]:
    """Markdown."""
    columns = [*(proxy.name for proxy in PROXIES), REPEATED]
    yield f"| stacks | target | context | figure | largest over least | {' | '.join(columns)} |"
    yield f"|{' --- |' * (5 + len(columns))}"
    for row in told:
        ranks = row["rank"]
        assert isinstance(ranks, dict)
        cells = [_cell(*ranks[name]) for name in columns]
        stacks = f"{row['stacks']}, {row['group']}"
        head = [stacks, row["target"], f"{row['context']:,}", FIGURES[str(row["figure"])][0]]
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
    parser.add_argument("records", type=Path, help="of campaign.py")
    parser.add_argument("--plots", type=Path, help="folder of scatter plots")
    return parser.parse_args()


if __name__ == "__main__":
    main()
