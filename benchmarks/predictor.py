"""How well measured pieces predict stacks that were not measured.

    python benchmarks/predictor.py RECIPE TARGET --records campaign.jsonl --out predictor

The stacks are those that `campaign.py` measured on the target; they are held out. The pieces that a
table is made of are measured here: ends and halves of blocks of every mixer and feed-forward at
each width, in stacks of some copies. Prints, for each context, median error, rank correlation and
R² of decode, prefill and memory over the stacks of any size, and over those of one budget the rank
correlation beside that of one process with the next; how many pieces were measured; and a JSON
line. The table and what was measured stay in the folder, and an interrupted run goes on there.
Anything else that runs on the machine spoils it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

import campaign
import jobs
from archloop.profiling import ProfileConfig, Target, profile
from archloop.profiling.block_table import (
    BlockRow,
    BlockTable,
    copies,
    rows_of_ends,
    rows_of_piece,
)
from archloop.profiling.predictor import Predictor
from archloop.profiling.record import Profile
from archloop.runtimes import pieces
from archloop.search.recipe.recipe import load
from archloop.stack.spec import BlockSpec, StackSpec
from cost_proxies import repeated

FIGURES = ("decode_ms", "prefill_ms", "memory_bytes")


def main() -> None:
    asked = _arguments()
    recipe = load(asked.recipe)
    target = recipe.targets[asked.target]
    config = recipe.profile.model_copy(update={"processes": asked.processes})
    bench = _Bench(target, config, asked.out)
    table, num_measured = bench.table(asked.copies, asked.widths)
    table.write(asked.out / "blocks.json")
    held_out = [
        record for record in campaign.read(asked.records) if record["target"] == asked.target
    ]
    told: dict[str, object] = {"pieces": num_measured, "stacks": len(held_out)}
    print(f"{num_measured} pieces measured, {len(held_out)} stacks held out")
    for context in target.contexts:
        told[str(context)] = judged(table, held_out, asked.seed, context)
    print(json.dumps(told | {"target": target.model_dump(mode="json")}))


def judged(
    table: BlockTable, held_out: Sequence[jobs.Record], seed: int, context: int
) -> dict[str, object]:
    """What the table says of the stacks that were held out, at one context."""
    predictor = Predictor(table, table.rows[0].where, context)
    told: dict[str, object] = {}
    for is_of_any_size in (True, False):
        group = "any size" if is_of_any_size else "one budget"
        own = [
            record
            for record in held_out
            if campaign.is_of_any_size(record["number"]) == is_of_any_size
        ]
        if len(own) < 3:
            continue
        predictions = [predictor.predict(campaign.drawn(seed, at["number"])) for at in own]
        for name in FIGURES:
            each = [[one[name] for one in record["measured"][str(context)]] for record in own]
            found = np.array([getattr(one, f"{name}_estimate") for one in predictions])
            quality = _quality(found, np.array([np.mean(values) for values in each]))
            quality["repeated"] = repeated(each)[0]
            told[f"{name} {group}"] = quality
            print(f"{name} at {context}, {len(own)} of {group}: {_said(quality)}")
    return told


def _quality(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Median error, rank correlation and R² of the logarithms."""
    logs = np.log(truth)
    left = ((logs - np.log(found)) ** 2).sum() / ((logs - logs.mean()) ** 2).sum()
    return {
        "median_error": float(np.median(np.abs(found / truth - 1))),
        "rank_correlation": float(stats.spearmanr(found, truth).statistic),
        "r2": float(1 - left),
    }


def _said(quality: dict[str, float]) -> str:
    return (
        f"median error {quality['median_error']:.1%}, rank {quality['rank_correlation']:.3f} "
        f"(one process with the next {quality['repeated']:.3f}), R² {quality['r2']:.3f}"
    )


class _Bench:
    """Measures what is not in its folder yet."""

    def __init__(self, target: Target, config: ProfileConfig, folder: Path) -> None:
        self._target, self._config, self._folder = target, config, folder

    def table(self, count: int, widths: Sequence[int]) -> tuple[BlockTable, int]:
        """Rows of the pieces, and how many were measured."""
        rows: list[BlockRow] = []
        num_measured = 0
        halves = [BlockSpec(mixers=(mixer,)) for mixer in campaign.mixers()]
        halves += [BlockSpec(channel_mixer=each) for each in campaign.channel_mixers()]
        for width in widths:
            ends = StackSpec(d_model=width, vocab_size=campaign.VOCABULARY, blocks=())
            of_ends = rows_of_ends(ends, self._measured(ends))
            rows += of_ends
            for half in halves:
                piece = pieces.pieces(ends.replace(blocks=(half,)))[1].piece
                found = self._measured(copies(piece, ends, count))
                rows += rows_of_piece(piece, found, count, of_ends)
            num_measured += 1 + len(halves)
        return BlockTable(rows=tuple(rows)), num_measured

    def _measured(self, spec: StackSpec) -> Profile:
        """A stack's profile, from the folder where it is there."""
        home = self._folder / spec.digest
        kept = home / "profile.json"
        if kept.exists():
            return Profile.model_validate_json(kept.read_bytes())
        found = profile(spec, self._target, self._config, directory=home)
        kept.write_text(found.model_dump_json())
        print(f"{spec.d_model} {' '.join(spec.layout)}: {found.seconds:.1f} s", flush=True)
        return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="of the campaign")
    parser.add_argument("target", help="one that the campaign measured")
    parser.add_argument("--records", type=Path, required=True, help="of the campaign")
    parser.add_argument("--processes", type=int, default=2, help="of each piece")
    parser.add_argument("--copies", type=int, default=4, help="of a piece in a measured stack")
    parser.add_argument("--widths", type=int, nargs="+", default=list(campaign.WIDTHS))
    parser.add_argument("--seed", type=int, default=0, help="of the campaign")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
