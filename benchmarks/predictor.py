"""How well measured pieces predict stacks that were not measured.

    python benchmarks/predictor.py --out predictor

Draws stacks of 20M to 120M parameters from a few widths, mixers and feed-forwards, and measures
them: they are held out. Then the pieces that a table is made of are measured, at most so many: ends
and halves of blocks of every mixer at some widths, chosen without looking at the stacks. Prints
median error, rank correlation and R² of decode, prefill and memory, how many pieces were measured,
and a JSON line; the table and what was measured stay in the folder, and an interrupted run goes on
there. Anything else that runs on the machine spoils it.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from scipy import stats

from archloop.profiling import ProfileConfig, Target, profile
from archloop.profiling.block_table import (
    BlockRow,
    BlockTable,
    Where,
    copies,
    rows_of_ends,
    rows_of_piece,
)
from archloop.profiling.predictor import Predictor
from archloop.profiling.record import Profile
from archloop.runtimes import pieces
from archloop.stack import cost
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

WIDTHS = (384, 512, 640, 768)
MEASURED_WIDTHS = (384, 768)
MIXERS = ("short_conv", "gqa", "swa", "mamba2", "gla", "gated_deltanet")
EXPANSIONS = (2.0, 2.5, 3.0)
VOCABULARY = 16_384
SMALLEST, LARGEST = 20e6, 120e6


def main() -> None:
    asked = _arguments()
    target = Target(
        runtime=asked.runtime, quant=asked.quant, contexts=(asked.context,), threads=asked.threads
    )
    config = ProfileConfig(processes=asked.processes, timed_steps=60, prefill_repeats=1)
    bench = _Bench(target, config, asked.out)
    rng = random.Random(asked.seed)
    held_out = [(spec, bench.measured(spec)) for spec in (drawn(rng) for _ in range(asked.stacks))]
    table, num_measured = bench.table(asked.copies, asked.pieces)
    table.write(asked.out / "blocks.json")
    where = Where.of(held_out[0][1].identity)
    predictor = Predictor(table, where, asked.context)
    told: dict[str, object] = {"pieces": num_measured, "stacks": len(held_out)}
    predictions = [predictor.predict(spec) for spec, _ in held_out]
    for name, truth in (
        ("decode_ms", [at.figures[0].decode_p50_ms.value for _, at in held_out]),
        ("prefill_ms", [at.figures[0].ttft_ms.value for _, at in held_out]),
        ("memory_bytes", [net_bytes(at) for _, at in held_out]),
    ):
        found = [getattr(each, f"{name}_estimate") for each in predictions]
        told[name] = quality(name, np.array(found), np.array(truth))
    print(json.dumps(told | {"target": target.model_dump(mode="json")}))


def drawn(rng: random.Random) -> StackSpec:
    """A random stack in the range."""
    while True:
        width, depth = rng.choice(WIDTHS), rng.randint(4, 16)
        blocks = tuple(
            BlockSpec(
                mixers=(MixerSpec(name=rng.choice(MIXERS)),),
                channel_mixer=ChannelMixerSpec(
                    name="swiglu", config={"expansion": rng.choice(EXPANSIONS)}
                ),
            )
            for _ in range(depth)
        )
        spec = StackSpec(d_model=width, vocab_size=VOCABULARY, blocks=blocks)
        if SMALLEST <= cost.num_params(spec) <= LARGEST:
            return spec


def net_bytes(profile: Profile) -> float:
    at = profile.figures[0]
    return at.peak_memory_bytes.value - at.engine_empty_bytes.value


def quality(name: str, found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Median error, rank correlation and R² of the logarithms."""
    error = float(np.median(np.abs(found / truth - 1)))
    correlation = float(stats.spearmanr(found, truth).statistic)
    logs = np.log(truth)
    left = ((logs - np.log(found)) ** 2).sum() / ((logs - logs.mean()) ** 2).sum()
    print(f"{name}: median error {error:.1%}, rank {correlation:.3f}, R² {1 - left:.3f}")
    return {"median_error": error, "rank_correlation": correlation, "r2": float(1 - left)}


class _Bench:
    """Measures what is not in its folder yet."""

    def __init__(self, target: Target, config: ProfileConfig, folder: Path) -> None:
        self._target, self._config, self._folder = target, config, folder

    def measured(self, spec: StackSpec) -> Profile:
        """A stack's profile, from the folder where it is there."""
        home = self._folder / spec.digest
        kept = home / "profile.json"
        if kept.exists():
            return Profile.model_validate_json(kept.read_bytes())
        found = profile(spec, self._target, self._config, directory=home)
        kept.write_text(found.model_dump_json())
        print(f"{spec.d_model} {' '.join(spec.layout)}: {found.seconds:.1f} s", flush=True)
        return found

    def table(self, count: int, most: int) -> tuple[BlockTable, int]:
        """Rows of the pieces, and how many were measured."""
        rows: list[BlockRow] = []
        num_measured = 0
        for width in MEASURED_WIDTHS:
            halves = [BlockSpec(mixers=(MixerSpec(name=name),)) for name in MIXERS]
            halves += [
                BlockSpec(
                    channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": expansion})
                )
                for expansion in EXPANSIONS
            ]
            ends = StackSpec(d_model=width, vocab_size=VOCABULARY, blocks=())
            of_ends = rows_of_ends(ends, self.measured(ends))
            rows += of_ends
            num_measured += 1
            for half in halves:
                if num_measured == most:
                    break
                piece = pieces.pieces(ends.replace(blocks=(half,)))[1].piece
                found = self.measured(copies(piece, ends, count))
                rows += rows_of_piece(piece, found, count, of_ends)
                num_measured += 1
        return BlockTable(rows=tuple(rows)), num_measured


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtime", default="executorch")
    parser.add_argument("--quant", default="fp32")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--stacks", type=int, default=20)
    parser.add_argument("--pieces", type=int, default=100, help="most to measure")
    parser.add_argument("--copies", type=int, default=4, help="of a piece in a measured stack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
