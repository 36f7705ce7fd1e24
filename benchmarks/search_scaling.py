"""How the time per trial grows with the number of trials: proposing, ranking and storing.

    python benchmarks/search_scaling.py --trials 10000

A stand-in takes the place of devices and trainings, so all that is timed is the search itself: the
strategy, budgets, hypervolume, promotion, stage files and the database. Prints a table, then one
JSON line.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from archloop.search.study import Study
from archloop.store.progress import Event
from search.stand_in import StandIn, recipe

SPACE = {
    "ship": {"d_model": 256, "vocab_size": 4096},
    "proxy": {"d_model": 64},
    "num_blocks": [12, 16],
    "mixers": {
        "short_conv": {"kernel": [3, 5, 7]},
        "gqa": {"head_dim": 32},
        "swa": {"head_dim": 32, "window": [16, 32]},
    },
    "channel_mixers": {"swiglu": {"expansion": [2.0, 2.5, 3.0, 3.5]}},
    "scope": {"kernel": "block", "expansion": "block"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10, help="rows of the table")
    parser.add_argument("--strategy", default="nsga2")
    parser.add_argument("--folder", type=Path, help="keeps the study; a temporary one otherwise")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="search-scaling-"))
    told: list[float] = []

    def listen(event: Event) -> None:
        if event.phase == "told":
            told.append(time.perf_counter())
            if len(told) % (arguments.trials // arguments.rows or 1) == 0:
                show(len(told), event)

    def show(count: int, event: Event) -> None:
        step = max(1, arguments.trials // arguments.rows)
        first = max(1, count - step)
        per_trial_ms = (told[count - 1] - told[first - 1]) / (count - first) * 1000
        rows.append({"trials": count, "ms_per_trial": round(per_trial_ms, 2)})
        print(f"{count:>8} {per_trial_ms:>13.2f} {event.front_size:>7} {event.hypervolume:>12.5f}")

    rows: list[dict[str, float]] = []
    study = Study(
        recipe(
            name="scaling",
            num_trials=arguments.trials,
            space=SPACE,
            reference={"layout": ["short_conv", "gqa"] * 6},
            initial=[],
            strategy={"name": arguments.strategy},
        ),
        folder,
        evaluator=StandIn(),
    )
    print(f"{'trials':>8} {'ms per trial':>13} {'front':>7} {'hypervolume':>12}")
    began = time.perf_counter()
    try:
        record = study.run(listen)
        total_s = time.perf_counter() - began
        began = time.perf_counter()
        study.read()
        read_s = time.perf_counter() - began
        database = study.folder / "study.db"
        summary = {
            "benchmark": "search_scaling",
            "strategy": arguments.strategy,
            "trials": len(record.trials),
            "total_s": round(total_s, 1),
            "read_s": round(read_s, 1),
            "database_mb": round(database.stat().st_size / 1e6, 1),
            "rows": rows,
        }
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
