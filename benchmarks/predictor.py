"""How well measured stacks predict stacks that were not measured.

    python benchmarks/predictor.py RECIPE TARGET --records campaign.jsonl --out predictor

The stacks are those that `campaign.py` measured on the target. The first 20 of any size are held
out: no share is fitted to them. A table is made of pieces, which are measured here (ends, and
copies of halves of blocks of every mixer and feed-forward, at each width), and of the campaign's
other stacks. Prints, for each context and figure:

1. of the stacks that are held out: median error, rank correlation and R² of the logarithms;
2. of the stacks of one budget, each predicted without it and a fifth of the stacks (`FOLDS`): the
   rank correlation beside that of one process with the next;
3. what a perfect predictor would reach in 1, since the truth itself varies from process to process.

The table and what was measured stay in the folder, and an interrupted run goes on there. Anything
else that runs on the machine spoils it. With `--pieces-only` the table is of pieces alone.
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
from archloop.profiling.block_table import BlockRow, BlockTable, Where, copies, rows_of
from archloop.profiling.predictor import Prediction, Predictor
from archloop.profiling.record import Identity, Interval, Profile
from archloop.runtimes import pieces
from archloop.search.recipe.recipe import load
from archloop.stack.spec import BlockSpec, StackSpec
from cost_proxies import repeated

FIGURES = ("decode_ms", "prefill_ms", "memory_bytes")
HELD_OUT = 40
"""Stacks of any size with smaller numbers are held out."""
FOLDS = 5


def main() -> None:
    asked = _arguments()
    recipe = load(asked.recipe)
    target = recipe.targets[asked.target]
    config = recipe.profile.model_copy(update={"processes": asked.processes})
    of_target = [one for one in campaign.read(asked.records) if one["target"] == asked.target]
    of_pieces = _Bench(target, config, asked.out).table(asked.copies, asked.widths)
    held_out = [one for one in of_target if _is_held_out(one["number"])]
    others = [one for one in of_target if not _is_held_out(one["number"])]
    if asked.pieces_only:
        others = []
    bench = _Tables(of_pieces, asked.seed)
    bench.of(others).write(asked.out / "blocks.json")
    told: dict[str, object] = {"pieces": bench.num_pieces, "stacks": len(others)}
    print(f"table of {bench.num_pieces} pieces, {len(others)} stacks; {len(held_out)} held out")
    for context in target.contexts:
        found = bench.predicted(others, held_out, context)
        told[f"{context} held out"] = judged(held_out, found, context)
        if others:
            told[f"{context} one budget"] = of_one_budget(bench, others, context)
    print(json.dumps(told | {"target": target.model_dump(mode="json")}))


def of_one_budget(
    bench: "_Tables", others: Sequence[jobs.Record], context: int
) -> dict[str, object]:
    """What is said of stacks of one budget by tables without them, fold by fold."""
    found: dict[int, Prediction] = {}
    for fold in range(FOLDS):
        own = others[fold::FOLDS]
        rest = [one for one in others if one not in own]
        said = bench.predicted(rest, own, context)
        found |= {one["number"]: each for one, each in zip(own, said, strict=True)}
    group = [one for one in others if not campaign.is_of_any_size(one["number"])]
    return judged(group, [found[one["number"]] for one in group], context)


def judged(
    records: Sequence[jobs.Record], found: Sequence[Prediction], context: int
) -> dict[str, object]:
    """Predictions beside measurements, by figure."""
    told: dict[str, object] = {}
    if len(records) < 3:
        return told
    for name in FIGURES:
        each = [[one[name] for one in record["measured"][str(context)]] for record in records]
        values = np.array([getattr(one, f"{name}_estimate") for one in found])
        truth = np.array([_mean(own) for own in each])
        quality = _quality(values, truth) | _reachable(each)
        quality["repeated"] = repeated(each)[0]
        told[name] = quality
        print(f"{name} at {context}, {len(records)} stacks: {_said(quality)}")
    return told


def _mean(values: Sequence[float]) -> float:
    """Geometric, as the protocol's."""
    return float(np.exp(np.mean(np.log(values))))


def _quality(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Median error, rank correlation and R² of the logarithms."""
    logs = np.log(truth)
    left = ((logs - np.log(found)) ** 2).sum() / ((logs - logs.mean()) ** 2).sum()
    return {
        "median_error": float(np.median(np.abs(found / truth - 1))),
        "rank_correlation": float(stats.spearmanr(found, truth).statistic),
        "r2": float(1 - left),
    }


def _reachable(each: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of a perfect predictor, by the spread of processes of one stack where it has several."""
    several = [np.log(own) for own in each if len(own) > 1]
    if len(several) < 3:
        return {}
    degrees = sum(len(own) - 1 for own in several)
    noise = sum(((own - own.mean()) ** 2).sum() for own in several) / degrees
    of_means = noise * np.mean([1 / len(own) for own in each])
    spread = np.var([np.log(_mean(own)) for own in each], ddof=1)
    return {
        "one_process": float(noise**0.5),
        "reachable_error": float(stats.norm.ppf(0.75) * of_means**0.5),
        "reachable_r2": float(1 - of_means / spread),
    }


def _said(quality: dict[str, float]) -> str:
    said = (
        f"median error {quality['median_error']:.1%}, rank {quality['rank_correlation']:.3f} "
        f"(one process with the next {quality['repeated']:.3f}), R² {quality['r2']:.3f}"
    )
    if "one_process" in quality:
        said += (
            f"; a process varies by {quality['one_process']:.1%}, so a perfect predictor would "
            f"have {quality['reachable_error']:.1%} and {quality['reachable_r2']:.3f}"
        )
    return said


def _is_held_out(number: int) -> bool:
    return number < HELD_OUT and campaign.is_of_any_size(number)


class _Tables:
    """Tables of the pieces and some of the campaign's stacks."""

    def __init__(self, of_pieces: BlockTable, seed: int) -> None:
        self._pieces, self._seed = of_pieces, seed
        self.num_pieces = len({row.spec for row in of_pieces.rows})
        self.where = of_pieces.rows[0].where

    def of(self, records: Sequence[jobs.Record]) -> BlockTable:
        """With those stacks."""
        rows = [row for record in records for row in self._rows(record)]
        return BlockTable(rows=(*self._pieces.rows, *rows))

    def predicted(
        self, known: Sequence[jobs.Record], asked: Sequence[jobs.Record], context: int
    ) -> list[Prediction]:
        """What a table with the known stacks says of others."""
        predictor = Predictor(self.of(known), self.where, context)
        return [predictor.predict(campaign.drawn(self._seed, one["number"])) for one in asked]

    def _rows(self, record: jobs.Record) -> list[BlockRow]:
        where = Where.of(Identity.model_validate(record["identity"]))
        assert where == self.where, f"pieces are of {self.where}, stacks of {where}"
        return [
            BlockRow(
                where=where,
                spec=campaign.drawn(self._seed, record["number"]),
                context=int(context),
                # The campaign's memory is above the empty engine, whose own it does not keep.
                engine_empty_bytes=self._pieces.rows[0].engine_empty_bytes,
                **{name: Interval.point(_mean([one[name] for one in own])) for name in FIGURES},
            )
            for context, own in record["measured"].items()
        ]


class _Bench:
    """Measures what is not in its folder yet."""

    def __init__(self, target: Target, config: ProfileConfig, folder: Path) -> None:
        self._target, self._config, self._folder = target, config, folder

    def table(self, count: int, widths: Sequence[int]) -> BlockTable:
        """Rows of the pieces."""
        rows: list[BlockRow] = []
        halves = [BlockSpec(mixers=(mixer,)) for mixer in campaign.mixers()]
        halves += [BlockSpec(channel_mixer=each) for each in campaign.channel_mixers()]
        for width in widths:
            ends = StackSpec(d_model=width, vocab_size=campaign.VOCABULARY, blocks=())
            alone = [pieces.pieces(ends.replace(blocks=(half,)))[1].piece for half in halves]
            for spec in (ends, *(copies(piece, ends, count) for piece in alone)):
                rows += rows_of(spec, self._measured(spec))
        return BlockTable(rows=tuple(rows))

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
    parser.add_argument("--pieces-only", action="store_true")
    parser.add_argument("--seed", type=int, default=0, help="of the campaign")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
