"""Seconds that a candidate's measurement takes, with forked and with started processes, in turns.

    PYTHONPATH=src python benchmarks/candidate_seconds.py --runtime torch_cuda --quant bf16

Each candidate is the preset with one of its first blocks left out, beside the preset itself, at
4,096 and 32,768 tokens; with `--mixer`, the candidates' short convolutions are that mixer instead.
The first one is measured once before, so that its kernels are compiled and the preset's artifact is
there. Then the preset is measured beside itself both ways: the ratios and the memory of empty
engines say whether forked processes measure alike. Where the seconds of the last forked candidate
went is told by what its processes were asked (two are asked at once where that disturbs nothing, so
these add up to more than the wall), and, made here step by step, by the parts of an export, of
which `--calls` names the functions that loading and the first prompt spend it in; `--candidates 0`
tells these alone. Prints tables and a JSON line.
"""

import argparse
import cProfile
import json
import pstats
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from archloop import load_preset, registry
from archloop.profiling import ProfileConfig, Target, profile
from archloop.profiling.nursery import Nursery
from archloop.profiling.record import Profile
from archloop.profiling.samples import read_samples
from archloop.runtimes import exporting, parity
from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Runtime
from archloop.stack.spec import MixerSpec, StackSpec
from archloop.workers.process import WorkerProcess


def main() -> None:
    asked = _arguments()
    reference = load_preset(asked.preset)
    base = with_mixer(reference, asked.mixer) if asked.mixer else reference
    target = Target(
        runtime=asked.runtime,
        quant=asked.quant,
        contexts=tuple(int(word) for word in asked.contexts.split(",")),
        threads=asked.threads,
    )
    with tempfile.TemporaryDirectory() as scratch, Nursery() as nursery:
        bench = _Bench(reference, target, asked.processes, Path(scratch), nursery)
        bench.seconds(without(base, 0), fork=True, name="warm")
        found: dict[bool, list[float]] = {True: [], False: []}
        for index in range(asked.candidates):
            spec = without(base, index)
            for fork in (True, False) if index % 2 == 0 else (False, True):
                found[fork].append(bench.seconds(spec, fork, f"{index}-{fork}")[0])
                print(f"candidate {index} {label(fork)}: {found[fork][-1]:6.1f} s", flush=True)
        ways = (True, False) if asked.candidates else ()
        beside = {label(fork): bench.beside_itself(fork) for fork in ways}
        reasons = nursery.reasons
        with asked_of_workers() as commands:
            whole_s = bench.seconds(without(base, 0), fork=True, name="parts")[0]
        print_commands(whole_s, commands)
        parts = export_parts(without(base, 0), target, Path(scratch), asked.calls)
    for name, row in beside.items():
        print(f"beside itself, {name}: {row}")
    figures = {label(f): {"median_s": median(s), "all_s": s} for f, s in found.items() if s}
    told = {"candidate_seconds": figures, "beside_itself": beside, "not_forked": reasons}
    told |= {"commands_s": commands, "commands_wall_s": whole_s, "export_s": parts}
    print("an export in this process: " + ", ".join(f"{k} {v:.2f} s" for k, v in parts.items()))
    print(json.dumps(told | {"target": target.model_dump(mode="json")}))


def label(fork: bool) -> str:
    return "forked" if fork else "started"


def without(reference: StackSpec, index: int) -> StackSpec:
    """The stack less one block."""
    return reference.replace(blocks=reference.blocks[:index] + reference.blocks[index + 1 :])


def with_mixer(reference: StackSpec, name: str) -> StackSpec:
    """The stack with another mixer in place of its short convolutions."""
    blocks = [
        block.model_copy(update={"mixers": (MixerSpec(name=name),)})
        if block.mixers[0].name == "short_conv"
        else block
        for block in reference.blocks
    ]
    return reference.replace(blocks=tuple(blocks))


@contextmanager
def asked_of_workers() -> Iterator[dict[str, list[float]]]:
    """Seconds that this process waits for answers inside, by role and command."""
    found: dict[str, list[float]] = defaultdict(list)
    receive, began = WorkerProcess.receive, time.monotonic

    def timed(self: WorkerProcess, request: Any) -> Any:
        start = began()
        try:
            return receive(self, request)
        finally:
            found[f"{self.role} {request.__name__}"].append(began() - start)

    with patch.object(WorkerProcess, "receive", timed):
        yield found


def print_commands(whole_s: float, commands: Mapping[str, Sequence[float]]) -> None:
    """A line for each command that workers were asked, the longest in all first."""
    print(f"a candidate of {whole_s:.1f} s; seconds waited for answers, by command:")
    for name, seconds in sorted(commands.items(), key=lambda item: -sum(item[1])):
        print(f"  {name:<22} {sum(seconds):6.2f} in {len(seconds)}: longest {max(seconds):.2f}")
    # What follows takes as long again, and may be cut off.
    sys.stdout.flush()


def export_parts(spec: StackSpec, target: Target, scratch: Path, calls: int) -> dict[str, float]:
    """Seconds of each step of an export, made in this process, with its first use of the card.

    Prints the functions, so many as `calls`, in which loading and the first prompt spend most.
    """
    found: dict[str, float] = {}
    runtime: Runtime = registry.get("runtimes", target.runtime)()
    directory = scratch / "export"
    directory.mkdir()

    def timed(name: str, step: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = step()
        found[name] = time.monotonic() - start
        return result

    timed("start of the engine", lambda: runtime.start(target.threads or 1))
    place = "cuda" if runtime.on_card else "cpu"
    decoder = timed("random weights", lambda: exporting.build_random(spec, 0, place))
    weight_bytes = timed("writing", lambda: runtime.write(decoder, directory, target.quant))
    checked = timed("checksums", lambda: exporting.checksums(directory))
    case = timed(
        "eager logits",
        lambda: parity.make_case(
            decoder,
            runtime.reference_dtype(target.quant),
            runtime.parity_tolerance[target.quant],
            runtime.products(decoder, directory, target.quant),
            runtime.attention(),
        ),
    )
    manifest = Manifest(
        spec=spec,
        runtime=runtime.name,
        version=runtime.version(),
        quant=target.quant,
        precision=runtime.precision(target.quant),
        weight_bytes=weight_bytes,
        files=checked,
    )
    profiler = cProfile.Profile()
    if calls:
        profiler.enable()
    session = timed("loading", partial(runtime.load, directory, manifest, 1, case.num_tokens))
    timed("the engine's logits", lambda: parity.session_rows(session, case.parts, case.steps))
    if calls:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(calls)
    session.close()
    return found


class _Bench:
    """Measures specs beside the reference, in folders of their own."""

    def __init__(
        self, reference: StackSpec, target: Target, processes: int, scratch: Path, nursery: Nursery
    ) -> None:
        self.reference, self.target, self.processes = reference, target, processes
        self.scratch, self.nursery = scratch, nursery

    def seconds(self, spec: StackSpec, fork: bool, name: str) -> tuple[float, Profile]:
        """Wall time of a measurement, and the measurement."""
        began = time.monotonic()
        found = profile(
            spec,
            self.target,
            ProfileConfig(processes=self.processes, fork=fork),
            reference=self.reference,
            directory=self.scratch / name,
            artifacts=self.scratch / "artifacts",
            nursery=self.nursery,
        )
        return time.monotonic() - began, found

    def beside_itself(self, fork: bool) -> dict[str, Any]:
        """Ratios that would be 1 without noise, and the memory of empty engines."""
        _, found = self.seconds(self.reference, fork, f"beside-{fork}")
        pairs = read_samples(self.scratch / f"beside-{fork}").pairs
        assert found.latency_ratio is not None
        assert found.memory_ratio is not None
        return {
            "forked": [pair.forked for pair in pairs],
            "latency_ratio": found.latency_ratio.model_dump(),
            "memory_ratio": found.memory_ratio.model_dump(),
            "engine_empty_mb": [
                pair.candidate.engine_empty.engine_peak_bytes / 2**20 for pair in pairs
            ],
        }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lfm2-350m")
    parser.add_argument("--runtime", default="torch_eager")
    parser.add_argument("--mixer", help="in place of the candidates' short convolutions")
    parser.add_argument("--quant", default="bf16")
    parser.add_argument("--contexts", default="4096,32768")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--calls", type=int, default=0, help="functions to name")
    return parser.parse_args()


if __name__ == "__main__":
    main()
