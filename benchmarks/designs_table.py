"""Designs of one size, measured one command each: one table of them all, and their picture.

    archloop compare --at-budget 350M lfm2-1.2b llama --profile --json > llama.json
    archloop compare --at-budget 350M lfm2-1.2b lfm3-1.7b --profile --json > lfm3.json
    python benchmarks/designs_table.py llama.json lfm3.json --plot docs/figures/designs.svg

Every file holds designs that were measured beside the same first one on the same target, so a run
that stops loses none that ended. A cell is the design's value and its ratio to the first one with
its 95% interval, from processes that took turns.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from archloop.cli.comparing import FIGURES, Compared, Comparison
from archloop.profiling.record import Profile
from archloop.report import designs as picture
from archloop.stack.footprint import Footprint


def read(files: list[Path]) -> tuple[dict[str, Footprint], Comparison]:
    """Estimates by design, and what was measured of all of them."""
    footprints: dict[str, Footprint] = {}
    found: list[Compared] = []
    firsts = set()
    for file in files:
        rows: list[dict[str, Any]] = json.loads(file.read_text())
        for row in rows:
            told = {name: row[name] for name in Footprint.model_fields}
            footprint = footprints.setdefault(row["name"], Footprint.model_validate(told))
            if "measured" in row:
                firsts.add(row["beside"])
                profile = Profile.model_validate(row["measured"])
                found.append(Compared(row["name"], footprint, profile))
    if len(firsts) != 1 or len({each.profile.identity for each in found}) != 1:
        sys.exit("the files were not measured beside one design on one target")
    return footprints, Comparison(firsts.pop(), found, {})


def printed(found: Comparison, name: str) -> None:
    """One figure's table: designs by contexts."""
    label, unit = FIGURES[name]
    contexts = found.others[0].profile.identity.contexts
    print(f"\n{label[0].upper()}{label[1:]}:\n")
    print(f"| design | {' | '.join(f'{context:,}' for context in contexts)} |")
    print(f"|---{'|---' * len(contexts)}|")
    curve = found.curves()[name][found.first]
    rows = {found.first: {at: f"{point.value / unit:,.2f}" for at, point in curve.items()}}
    for each in found.others:
        rows[each.name] = {
            at: f"{own.value / unit:,.2f}; {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            for at, figure, own, ratio in each.figures()
            if figure == name
        }
    # A device need not tell each figure at each context.
    for design, cells in rows.items():
        print(f"| {design} | {' | '.join(cells.get(context, '') for context in contexts)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    footprints, found = read(given.files)
    at = found.others[0].profile
    told = f"{at.identity.runtime} {at.identity.runtime_version}, {at.identity.quant}"
    print(f"{at.identity.device}; {told}, {at.identity.in_threads}, {at.num_processes} processes")
    for name in FIGURES:
        if name in found.curves():
            printed(found, name)
    for flag in sorted({flag for each in found.others for flag in each.profile.flags}):
        print(f"flag: {flag}")
    if given.plot:
        picture.write(footprints, told, given.plot, found.curves())


if __name__ == "__main__":
    main()
