"""How decoding slows down with the context, for the shapes of models with published curves.

    PYTHONPATH=src python benchmarks/published_decode.py [--quant q4_0] [--processes 5]

The LFM2 report measured models in llama.cpp at Q4_0 on a Galaxy S25, at contexts of 1K and 4K
(arXiv 2511.23404, table 2). Here the same shapes have random weights. Each is opened in fresh
processes that take turns, one of each shape in every round; a process fills its state to either
context in alternating order and times decode steps there. The drop of a shape, the share of the
speed at the short context that is gone at the long one, is one number a process, with its 95%
t-interval of the logarithm.

Weights are drawn and exported before anything is timed, into a folder that can be kept
(`--artifacts`); those that are there are taken. `--minutes` ends the rounds earlier. Prints a table
and one JSON line.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from archloop import registry
from archloop.profiling.record import Interval
from archloop.profiling.statistics import ratio_interval
from archloop.profiling.turns import Subject, start, wait_started
from archloop.runtimes.exporting import build_random, export
from archloop.stack.spec import StackSpec
from archloop.workers import wire
from own_tools import read_spec, runner

PUBLISHED = {
    "lfm2-1.2b": (69.8, 55.5),
    "llama-3.2-1b": (54.6, 37.8),
    "qwen3-1.7b": (39.7, 26.9),
    "gemma-3-1b": (67.5, 67.1),
}
"""Tokens a second at 1K and at 4K on the Galaxy S25."""
LEAST = 2
"""Processes of each shape: fewer have no interval."""


def unslowed(spec: StackSpec) -> StackSpec:
    """The stack without slowed rotary pairs: our GGUF files cannot say them, they cost nothing."""
    slowing = ("rope_factor", "rope_trained", "rope_low", "rope_high")
    blocks = []
    for block in spec.blocks:
        mixers = tuple(
            mixer.model_copy(
                update={
                    "config": {k: v for k, v in mixer.config.items() if not k.startswith(slowing)}
                }
            )
            for mixer in block.mixers
        )
        blocks.append(block.model_copy(update={"mixers": mixers}))
    return spec.replace(blocks=tuple(blocks))


def exported(spec: StackSpec, folder: Path, quant: str) -> None:
    """Random weights, quantised by llama.cpp itself."""
    runtime = registry.get("runtimes", "llama_cpp")()
    export(runtime, build_random(spec, 0), folder, quant, parity=False)


def step_ms(asked: argparse.Namespace, spec: StackSpec, folder: Path, first: int) -> list[float]:
    """Median step at each context, in one fresh process; it begins with context `first`."""
    found = [0.0] * len(asked.contexts)
    with runner("llama_cpp", asked.threads, folder.parent) as worker:
        subject = Subject(worker, spec.vocab_size, seed=0)
        start([subject], asked.threads)
        wait_started([subject])
        room = max(asked.contexts) + asked.settle + asked.steps
        worker.send(wire.Open(directory=str(folder), max_context=room))
        subject.begin(max(asked.contexts))
        order = range(len(asked.contexts))
        for index in order if first == 0 else reversed(order):
            worker.ask(wire.Fill(num_tokens=asked.contexts[index], seed=0))
            subject.decode(asked.settle, asked.steps)
            found[index] = median(subject.decode_ms[-1])
    return found


def drop(times: list[list[float]]) -> Interval:
    """Share of the speed at the first context that is gone at the last."""
    ratio = ratio_interval([each[0] for each in times], [each[-1] for each in times])
    return Interval(value=1 - ratio.value, low=1 - ratio.high, high=1 - ratio.low)


def main() -> None:
    """Export the shapes, measure them in rounds, print."""
    asked = _arguments()
    specs = {name: unslowed(read_spec(name)) for name in asked.models}
    times: dict[str, list[list[float]]] = {name: [] for name in specs}
    with tempfile.TemporaryDirectory() as scratch:
        home = asked.artifacts or Path(scratch)
        folders = {name: home / Path(name).stem / asked.quant for name in specs}
        for name, spec in specs.items():
            if not folders[name].exists():
                exported(spec, folders[name], asked.quant)
                print(f"exported {name}", file=sys.stderr)
        begun = time.monotonic()
        for number in range(asked.processes):
            spent = (time.monotonic() - begun) / 60
            if number >= LEAST and spent * (number + 1) / number > asked.minutes:
                break
            names = list(specs) if number % 2 == 0 else list(reversed(specs))
            for name in names:
                times[name].append(step_ms(asked, specs[name], folders[name], number % 2))
            print(f"round {number + 1}: { {n: t[-1] for n, t in times.items()} }", file=sys.stderr)
    _print(asked, times)


def _print(asked: argparse.Namespace, times: dict[str, list[list[float]]]) -> None:
    ends = f"at {asked.contexts[0]:,}, ms | at {asked.contexts[-1]:,}, ms"
    print(f"| shape | {ends} | slower by | 95% | published |\n|---|---|---|---|---|---|")
    rows = {}
    for name, each in times.items():
        found, known = drop(each), PUBLISHED.get(name)
        first, last = (median(row[index] for row in each) for index in (0, -1))
        published = None if known is None else 1 - known[1] / known[0]
        rows[name] = {"ms": [first, last], "drop": found.model_dump(), "published": published}
        print(
            f"| {name} | {first:.2f} | {last:.2f} | {found.value:.1%} | {found.low:.1%} to "
            f"{found.high:.1%} | {'' if published is None else f'{published:.0%}'} |"
        )
    print(
        json.dumps({"decode": rows, "quant": asked.quant, "threads": asked.threads, "all": times})
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = parser.add_argument("models", nargs="*", help="presets, or .json files")
    models.default = list(PUBLISHED)
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--processes", type=int, default=5, help="of each shape")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all rounds")
    parser.add_argument("--artifacts", type=Path, help="folder to keep the exported shapes in")
    parser.add_argument("--contexts", type=int, nargs=2, default=[1024, 4096])
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--settle", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
