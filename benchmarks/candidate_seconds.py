"""Seconds that a candidate's measurement takes, with forked and with started processes, in turns.

    PYTHONPATH=src python benchmarks/candidate_seconds.py --runtime torch_cuda --quant bf16

Each candidate is the preset with one of its first blocks left out, beside the preset itself, at
4,096 and 32,768 tokens. The first one is measured once before, so that its kernels are compiled and
the preset's artifact is there. Then the preset is measured beside itself both ways: the ratios and
the memory of empty engines say whether forked processes measure alike. Prints a table and a JSON
line.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from archloop import load_preset
from archloop.profiling import ProfileConfig, Target, profile
from archloop.profiling.nursery import Nursery
from archloop.profiling.record import Profile
from archloop.profiling.samples import read_samples
from archloop.stack.spec import StackSpec


def main() -> None:
    asked = _arguments()
    reference = load_preset(asked.preset)
    target = Target(
        runtime=asked.runtime,
        quant=asked.quant,
        contexts=tuple(int(word) for word in asked.contexts.split(",")),
        threads=asked.threads,
    )
    with tempfile.TemporaryDirectory() as scratch, Nursery() as nursery:
        bench = _Bench(reference, target, asked.processes, Path(scratch), nursery)
        bench.seconds(without(reference, 0), fork=True, name="warm")
        found: dict[bool, list[float]] = {True: [], False: []}
        for index in range(asked.candidates):
            spec = without(reference, index)
            for fork in (True, False) if index % 2 == 0 else (False, True):
                found[fork].append(bench.seconds(spec, fork, f"{index}-{fork}")[0])
                print(f"candidate {index} {label(fork)}: {found[fork][-1]:6.1f} s", flush=True)
        beside = {label(fork): bench.beside_itself(fork) for fork in (True, False)}
        reasons = nursery.reasons
    for name, row in beside.items():
        print(f"beside itself, {name}: {row}")
    figures = {label(fork): {"median_s": median(s), "all_s": s} for fork, s in found.items()}
    told = {"candidate_seconds": figures, "beside_itself": beside, "not_forked": reasons}
    print(json.dumps(told | {"target": target.model_dump(mode="json")}))


def label(fork: bool) -> str:
    return "forked" if fork else "started"


def without(reference: StackSpec, index: int) -> StackSpec:
    """The stack less one block."""
    return reference.replace(blocks=reference.blocks[:index] + reference.blocks[index + 1 :])


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
    parser.add_argument("--quant", default="bf16")
    parser.add_argument("--contexts", default="4096,32768")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
