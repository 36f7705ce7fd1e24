"""What lowering once is worth: seconds to a new stack's artifact, and whether its times are right.

    python benchmarks/composed.py --part seconds
    python benchmarks/composed.py --part ranks

`seconds` draws stacks of about 80M parameters from a few mixers and feed-forwards. Their pieces are
lowered first, which is counted apart; then each stack is put together, compared with eager PyTorch
and opened, as before a measurement. An engine that lowers no pieces exports each stack whole.
`ranks` lowers small varied stacks both as a whole and from pieces, and times decode steps and
passes of prefill of both in turns, in one process: the ratio of each stack with its 95% interval
over rounds, and whether both order the stacks alike, stacks whose intervals overlap aside. Both
print a table and a JSON line; a machine that does anything else spoils them.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from itertools import combinations
from pathlib import Path
from statistics import fmean, median, stdev

import numpy as np
from scipy import stats

from archloop import registry
from archloop.runtimes import pieces
from archloop.runtimes.base import Runtime, Session
from archloop.runtimes.block_cache import BlockCache
from archloop.runtimes.exporting import build_random, compose, export, export_random
from archloop.stack import cost
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

MIXERS = ("short_conv", "gqa", "swa", "mamba2", "gla", "gated_deltanet")
EXPANSIONS = (2.0, 2.5, 3.0)
CONTEXT = 1024


def main() -> None:
    asked = _arguments()
    runtime: Runtime = registry.get("runtimes", asked.runtime)()
    runtime.check(asked.quant)
    runtime.start(asked.threads)
    part = seconds if asked.part == "seconds" else ranks
    with tempfile.TemporaryDirectory() as scratch:
        told = part(runtime, asked, Path(scratch))
    settings = {"runtime": asked.runtime, "version": runtime.version(), "quant": asked.quant}
    print(json.dumps({"part": asked.part, **settings, "threads": asked.threads, **told}))


def drawn(rng: random.Random, d_model: int, num_blocks: int, vocab_size: int) -> StackSpec:
    """A random stack."""
    blocks = []
    for _ in range(num_blocks):
        mixer = MixerSpec(name=rng.choice(MIXERS))
        channel = ChannelMixerSpec(name="swiglu", config={"expansion": rng.choice(EXPANSIONS)})
        blocks.append(BlockSpec(mixers=(mixer,), channel_mixer=channel))
    return StackSpec(d_model=d_model, vocab_size=vocab_size, blocks=tuple(blocks))


def seconds(runtime: Runtime, asked: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Seconds from a spec to an open session."""
    if not runtime.lowers_pieces:
        return seconds_whole(runtime, asked, scratch)
    rng = random.Random(asked.seed)
    cache = BlockCache(runtime.name, runtime.written_by(), asked.quant, asked.cache)
    specs = [drawn(rng, 768, 8, 16_384) for _ in range(asked.stacks)]
    wanted = {placed.piece for spec in specs for placed in pieces.pieces(spec)}

    def lower(piece: pieces.Piece, home: Path) -> dict[str, int]:
        return runtime.lower(pieces.build(piece), piece.part, home, asked.quant)

    start = time.perf_counter()
    for piece in sorted(wanted, key=lambda each: each.digest):
        cache.get(piece, lower)
    lowering_s = time.perf_counter() - start
    print(f"{len(wanted)} pieces: {cache.misses} lowered in {lowering_s:.1f} s", flush=True)
    lowered, cache.hits, cache.misses = cache.misses, 0, 0
    found = []
    for index, spec in enumerate(specs):
        home, start = scratch / str(index), time.perf_counter()
        compose(runtime, spec, home, asked.quant, cache=cache)
        runtime.open(home, asked.threads, CONTEXT + 64).close()
        found.append(time.perf_counter() - start)
        print(f"{' '.join(spec.layout)}: {found[-1]:.2f} s", flush=True)
    hit_rate = cache.hits / (cache.hits + cache.misses)
    print(f"median {median(found):.2f} s, hit rate {hit_rate:.3f}")
    return {
        "median_s": median(found),
        "largest_s": max(found),
        "hit_rate": hit_rate,
        "pieces": len(wanted),
        "lowered": lowered,
        "lowering_s": lowering_s,
        "million_params": fmean(cost.num_params(spec) for spec in specs) / 1e6,
        "stacks": len(specs),
    }


def seconds_whole(runtime: Runtime, asked: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """The same of a runtime that exports each stack as a whole: no cache, so no hit."""
    rng = random.Random(asked.seed)
    found = []
    for index in range(asked.stacks):
        spec = drawn(rng, 768, 8, 16_384)
        home, start = scratch / str(index), time.perf_counter()
        export_random(runtime, spec, 0, home, asked.quant)
        runtime.open(home, asked.threads, CONTEXT + 64).close()
        found.append(time.perf_counter() - start)
        shutil.rmtree(home)
        print(f"{' '.join(spec.layout)}: {found[-1]:.2f} s", flush=True)
    print(f"median {median(found):.2f} s, each exported as a whole: hit rate 0")
    return {"median_s": median(found), "largest_s": max(found), "hit_rate": 0.0}


def ranks(runtime: Runtime, asked: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Whether stacks from pieces are ordered as stacks that were lowered whole."""
    rng = random.Random(asked.seed)
    cache = BlockCache(runtime.name, runtime.written_by(), asked.quant, asked.cache)
    kept = scratch if asked.keep is None else asked.keep / f"{runtime.name}-{asked.quant}"
    sessions: list[dict[str, Session]] = []
    whole_s = []
    for index in range(asked.varied):
        spec = drawn(rng, rng.choice((256, 384)), rng.choice((2, 3, 4)), 4096)
        homes = {name: kept / f"{index}-{name}" for name in ("whole", "composed")}
        if not homes["whole"].exists():
            start = time.perf_counter()
            # Not of `pieces.assembled`: engines keep equal weights of two blocks once.
            export(runtime, build_random(spec, index), homes["whole"], asked.quant)
            whole_s.append(time.perf_counter() - start)
            print(f"{' '.join(spec.layout)}: whole lowered in {whole_s[-1]:.1f} s", flush=True)
        if not homes["composed"].exists():
            compose(runtime, spec, homes["composed"], asked.quant, cache=cache)
        if asked.rounds:
            sessions.append(
                {
                    name: runtime.open(home, asked.threads, 2 * CONTEXT)
                    for name, home in homes.items()
                }
            )
    if not asked.rounds:
        return {"whole_s": whole_s}
    told: dict[str, object] = {"whole_s": whole_s}
    for figure, timed in (("decode", decode_ms), ("prefill", prefill_ms)):
        times = {
            name: np.array(
                [[timed(pair[name]) for pair in sessions] for _ in range(asked.rounds + 1)]
            )[1:].T
            for name in ("whole", "composed")
        }
        told[figure] = compared(figure, times["whole"], times["composed"])
    return told


def decode_ms(session: Session) -> float:
    """Median of some steps at `CONTEXT`."""
    session.fill(CONTEXT, seed=0)
    found = []
    for _ in range(24):
        start = time.perf_counter()
        session.decode_step(1)
        found.append(time.perf_counter() - start)
    return 1000 * median(found[4:])


def prefill_ms(session: Session) -> float:
    """A prompt of 256 tokens."""
    session.reset()
    prompt = session.prepare([1] * 256)
    start = time.perf_counter()
    session.prefill(prompt)
    return 1000 * (time.perf_counter() - start)


def compared(figure: str, whole: np.ndarray, composed: np.ndarray) -> dict[str, object]:
    """Ratios by stack, and pairs of stacks that both tell apart but order differently."""
    logs = np.log(composed / whole)
    half = stats.t.ppf(0.975, logs.shape[1] - 1) * logs.std(1, ddof=1) / logs.shape[1] ** 0.5
    for index, (mean, width) in enumerate(zip(logs.mean(1), half, strict=True)):
        print(f"{figure} of stack {index}: composed / whole {np.exp(mean):.3f} ± {width:.3f}")
    swapped = [
        (a, b)
        for a, b in combinations(range(len(logs)), 2)
        if told_apart(whole[a], whole[b]) * told_apart(composed[a], composed[b]) < 0
    ]
    correlation = float(stats.spearmanr(np.median(whole, 1), np.median(composed, 1)).statistic)
    bias = float(np.exp(logs.mean()))
    print(f"{figure}: bias {bias:.3f}, rank correlation {correlation:.3f}, swapped {swapped}")
    return {
        "ratios": np.exp(logs.mean(1)).tolist(),
        "half_widths": half.tolist(),
        "bias": bias,
        "rank_correlation": correlation,
        "swapped": swapped,
    }


def told_apart(a: np.ndarray, b: np.ndarray) -> int:
    """-1 or 1 where one is smaller in all likelihood, by round; 0 for a tie."""
    differ = np.log(a / b)
    width = stats.t.ppf(0.975, len(differ) - 1) * stdev(differ) / len(differ) ** 0.5
    return 0 if abs(differ.mean()) <= width else int(np.sign(differ.mean()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("seconds", "ranks"), default="seconds")
    parser.add_argument("--runtime", default="executorch")
    parser.add_argument("--quant", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stacks", type=int, default=20)
    parser.add_argument("--varied", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10, help="0 only lowers")
    parser.add_argument("--keep", type=Path, help="folder that keeps the artifacts of ranks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="of pieces; default: the user's")
    return parser.parse_args()


if __name__ == "__main__":
    main()
