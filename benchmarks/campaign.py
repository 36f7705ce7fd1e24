"""Random stacks measured on several targets: one campaign for two questions.

    python benchmarks/campaign.py RECIPE --records campaign.jsonl --targets A B --prepare 30
    python benchmarks/campaign.py RECIPE --records campaign.jsonl --targets A B --minutes 40

What cheap proxies of cost are worth (`cost_proxies.py`) and how well pieces predict stacks
(`predictor.py`) is asked of the same stacks. Every second one is of any size from 20M to 120M, the
others are of one budget, where parameters tell nothing any more. Both are drawn from two widths,
six mixers and three feed-forwards.

1. `--prepare` exports what is not there yet, for so many minutes; it may do so on a busy machine.
2. A fresh process measures one stack on one target at all of the target's contexts, as a study
   does (`profiling.turns`), without a reference beside it. A line of the file is such a process,
   so the command goes on where it was stopped.
3. Stack by stack all targets have their turn, in random order: a campaign that is cut off has
   every target for the stacks that it came to. With `--processes 2` all of it comes a second time,
   the stacks of one budget first. `--first`, `--stacks` and `--only` choose stacks.
4. With `--again` those come last whose every process was disturbed, once more each. Where a stack
   has undisturbed processes, only they count; the others stay in the file.

Anything else that runs on the machine spoils the times; a line says so in its flags.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import jobs
from archloop import registry
from archloop.errors import UserError
from archloop.profiling.config import ProfileConfig
from archloop.profiling.record import Identity
from archloop.profiling.samples import PairSamples, ProcessSamples
from archloop.profiling.summary import load_flags
from archloop.profiling.target import Target
from archloop.profiling.turns import Subject, measure_context, start, wait_started
from archloop.runtimes.artifact import read_manifest
from archloop.runtimes.exporting import export_random
from archloop.search.recipe.recipe import Recipe, load
from archloop.stack import cost
from archloop.stack.footprint import footprint
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from own_tools import runner

WIDTHS = (512, 768)
DEPTHS = (4, 16)
MIXERS = ("short_conv", "gqa", "swa", "mamba2", "gla", "gated_deltanet")
EXPANSIONS = (2.0, 2.5, 3.0)
VOCABULARY = 16_384
SMALLEST, LARGEST = 20e6, 120e6
BUDGET = 32e6
TOLERANCE = 0.03
"""Of the parameters asked for."""


def main() -> None:
    asked = _arguments()
    recipe = load(asked.recipe)
    names = asked.targets or list(recipe.targets)
    if unknown := set(names) - set(recipe.targets):
        raise SystemExit(f"--targets {min(unknown)}: the recipe has {', '.join(recipe.targets)}")
    if asked.prepare:
        prepare(recipe, names, asked)
    if asked.minutes:
        keys = order(names, numbers(asked), asked.processes, asked.seed)
        if asked.again:
            keys += disturbed(jobs.read(asked.records), keys)
        measure = partial(measured, recipe=recipe, seed=asked.seed, artifacts=asked.artifacts)
        jobs.run(keys, measure, asked.records, workers=1, seconds=60 * asked.minutes)
    done = read(asked.records)
    counts = {name: sum(each["target"] == name for each in done) for name in names}
    print(json.dumps({"benchmark": "campaign", "stacks": counts}))


def numbers(asked: argparse.Namespace) -> list[int]:
    """Of the stacks that are measured."""
    chosen = range(asked.first, asked.stacks)
    return [n for n in chosen if asked.only in (None, _group(n))]


def _group(number: int) -> str:
    return "any-size" if is_of_any_size(number) else "one-budget"


def order(names: Sequence[str], stacks: Sequence[int], processes: int, seed: int) -> list[str]:
    """Keys of all processes, in the order in which they are measured."""
    rng, keys = random.Random(seed), []
    for process in range(processes):
        for number in stacks if process == 0 else sorted(stacks, key=is_of_any_size):
            keys += [f"{name} {number} {process}" for name in rng.sample(names, len(names))]
    return keys


def disturbed(lines: Iterable[jobs.Record], keys: Iterable[str]) -> list[str]:
    """A further process of each stack and target that has no undisturbed one yet."""
    found: dict[tuple[str, int], list[jobs.Record]] = {}
    for line in lines:
        found.setdefault((line["target"], line["number"]), []).append(line)
    wanted = {tuple(key.split(" ")[:2]) for key in keys}
    return [
        f"{name} {number} {max(int(line['key'].split(' ')[2]) for line in own) + 1}"
        for (name, number), own in found.items()
        if all(line["flags"] for line in own) and (name, str(number)) in wanted
    ]


def is_of_any_size(number: int) -> bool:
    """Whether a stack is one of those whose sizes differ; the others are of one budget."""
    return number % 2 == 0


def drawn(seed: int, number: int) -> StackSpec:
    """One of the campaign's stacks."""
    rng = random.Random(f"{seed} {number}")
    goal = SMALLEST * (LARGEST / SMALLEST) ** rng.random() if is_of_any_size(number) else BUDGET
    while True:
        width, depth = rng.choice(WIDTHS), rng.randint(*DEPTHS)
        halves = zip(
            rng.choices(mixers(), k=depth), rng.choices(channel_mixers(), k=depth), strict=True
        )
        blocks = tuple(BlockSpec(mixers=(mixer,), channel_mixer=each) for mixer, each in halves)
        spec = StackSpec(d_model=width, vocab_size=VOCABULARY, blocks=blocks)
        if abs(cost.num_params(spec) / goal - 1) <= TOLERANCE:
            return spec


def mixers() -> list[MixerSpec]:
    """What the stacks' blocks mix time with."""
    return [MixerSpec(name=name) for name in MIXERS]


def channel_mixers() -> list[ChannelMixerSpec]:
    """Their feed-forwards."""
    return [ChannelMixerSpec(name="swiglu", config={"expansion": e}) for e in EXPANSIONS]


def prepare(recipe: Recipe, names: Iterable[str], asked: argparse.Namespace) -> None:
    """Export artifacts that are not there yet, in the order in which they are measured."""
    end = time.monotonic() + 60 * asked.prepare
    for key in order(list(names), numbers(asked), 1, asked.seed):
        if time.monotonic() > end:
            return
        name, number, _ = key.split(" ")
        before = time.monotonic()
        try:
            artifact(drawn(asked.seed, int(number)), recipe.targets[name], asked.artifacts)
        except UserError as error:
            # The measurement will be refused likewise, and the others have theirs.
            print(f"{name} {number}: {error}", flush=True)
            continue
        print(f"{name} {number}: there after {time.monotonic() - before:.1f} s", flush=True)


def artifact(spec: StackSpec, target: Target, folder: Path) -> Path:
    """The folder of a stack's artifact, exported and compared if it was not before."""
    runtime = registry.get("runtimes", target.runtime)()
    home = folder / f"{target.runtime}-{runtime.version()}-{target.quant}-{spec.digest}"
    if not home.exists():
        runtime.start(target.threads or 1)
        export_random(runtime, spec, 0, home, target.quant)
    return home


def measured(key: str, recipe: Recipe, seed: int, artifacts: Path) -> jobs.Record:
    """What one process of a stack measures on a target."""
    began = time.monotonic()
    name, number, process = key.split(" ")
    spec, target = drawn(seed, int(number)), recipe.targets[name]
    home = artifact(spec, target, artifacts)
    prepared_s = time.monotonic() - began
    pair, identity = one_process(spec, target, recipe.profile, home, seed=int(process))
    contexts = target.contexts
    return {
        "target": name,
        "number": int(number),
        "layout": spec.layout,
        "footprint": footprint(spec, contexts).model_dump(mode="json"),
        "weight_bytes": sum(read_manifest(home).weight_bytes.values()),
        "measured": {str(at): figures(pair.candidate, i) for i, at in enumerate(contexts)},
        "identity": identity.model_dump(mode="json"),
        "flags": list(load_flags((pair,))),
        "prepared_s": prepared_s,
        "seconds": time.monotonic() - began,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def one_process(
    spec: StackSpec, target: Target, config: ProfileConfig, home: Path, seed: int
) -> tuple[PairSamples, Identity]:
    """A fresh runner that takes all samples of an artifact, and what it was."""
    device = target.device.open()
    about, manifest = device.describe(), read_manifest(home)
    threads = target.threads or about.num_cores
    was_ready = device.wait_until_ready(config.ready_timeout_s)
    with (
        tempfile.TemporaryDirectory() as scratch,
        runner(target.runtime, threads, Path(scratch)) as worker,
    ):
        subject = Subject(worker, spec.vocab_size, config.seed)
        subject.artifact = str(home)
        start([subject], threads)
        wait_started([subject])
        before, parent_s = device.readings(), time.process_time()
        for context in target.contexts:
            measure_context([subject], context, config, first=seed)
        after, parent_s = device.readings(), time.process_time() - parent_s
        samples, own_cpu_s = subject.samples(), parent_s + subject.cpu_s
    pair = PairSamples(
        candidate=samples,
        reference=None,
        before=before,
        after=after,
        own_cpu_s=own_cpu_s,
        was_ready=was_ready,
    )
    identity = Identity(
        device=about.label,
        runtime=manifest.runtime,
        runtime_version=manifest.version,
        quant=manifest.quant,
        precision=manifest.precision,
        threads=threads,
        contexts=target.contexts,
        decode_tokens=config.decode_tokens,
        memory="process",
    )
    return pair, identity


def figures(process: ProcessSamples, index: int) -> dict[str, float]:
    """Of one process at one context; memory less the empty engine's."""
    at = process.contexts[index]
    return {
        "decode_ms": at.decode_quantile_ms(0.5),
        "prefill_ms": at.prefill_ms,
        "memory_bytes": float(process.net_bytes(at)),
    }


def read(records: Path) -> list[jobs.Record]:
    """One record a stack and target; `measured` has a list of its processes' figures a context.

    Disturbed processes count only where a stack has no others.
    """
    found: dict[tuple[str, int], list[jobs.Record]] = {}
    for line in jobs.read(records):
        found.setdefault((line["target"], line["number"]), []).append(line)
    told = []
    for lines in found.values():
        own = [line for line in lines if not line["flags"]] or lines
        measured = {at: [line["measured"][at] for line in own] for at in own[0]["measured"]}
        told.append({**own[0], "measured": measured})
    return told


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="its targets and its profile's settings count")
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True, help="folder that keeps them")
    parser.add_argument("--first", type=int, default=0, help="number of the first stack")
    parser.add_argument("--stacks", type=int, default=40, help="number after the last one's")
    parser.add_argument("--only", choices=["any-size", "one-budget"])
    parser.add_argument("--again", action="store_true", help="what was disturbed, once more")
    parser.add_argument("--targets", nargs="+", help="of the recipe; all by default")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--prepare", type=float, default=0.0, help="minutes of exporting first")
    parser.add_argument("--minutes", type=float, default=0.0, help="of measuring")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
