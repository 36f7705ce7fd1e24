"""The runner for devices without Python: runs here, and drives an engine's own benchmark there.

``python -m archloop.profiling.bench_worker DEVICE FOLDER`` answers the commands of `workers.wire`.
DEVICE is the device as JSON, FOLDER the one on it that holds the benchmark. Each command that
computes is a process of its own on the device, which loads the artifact, warms up, does what was
asked and ends, so there is no state between commands but how many tokens a state would hold. A
benchmark makes its own random tokens, chooses none and shows no logits: artifacts are compared
with eager PyTorch where they are exported.
"""

import resource
import sys
import time

from archloop import registry
from archloop.devices.base import Device
from archloop.devices.choice import DeviceChoice
from archloop.errors import UserError
from archloop.profiling import watched
from archloop.profiling.measuring import Measuring
from archloop.runtimes.benchmark import Arguments, Benchmark
from archloop.workers import wire
from archloop.workers.deaths import WorkerError
from archloop.workers.messages import Done
from archloop.workers.serve import Engine

_EMPTY_RUNS = 5
"""An engine without a model is there for some milliseconds; of each run another one is seen."""
_LOOKS = 3
"""Runs in which memory is looked for before that counts as a fault."""


class BenchWorker(Measuring):
    """What would be in the engine's state; each method answers one command.

    Args:
        choice: the device.
        folder: on it, with the benchmark.
    """

    # Set by `engine`, before which nothing else is asked.
    _benchmark: Benchmark
    _device: Device
    _kills_before: int | None

    def __init__(self, choice: DeviceChoice, folder: str) -> None:
        self._choice, self._folder = choice, folder
        self._threads, self._cpu_s = 1, 0.0
        self._artifact, self._room = "", 0
        self._held = self._prompt = 0

    def engine(self, name: str) -> Engine:
        """The benchmark of a runtime, and which version it is."""
        benchmark: Benchmark | None = registry.get("runtimes", name)().benchmark()
        if benchmark is None:
            raise UserError(f"runtime {name} has no benchmark program")
        # Only now are all plug-ins known, of which the device may be one.
        self._benchmark, self._device = benchmark, self._choice.open()
        self._kills_before = self._device.readings().oom_kills
        found = self._run(benchmark.about())
        version = benchmark.version(f"{found.printed}\n{found.said}")
        if version is None:
            raise WorkerError("missing", f"{benchmark.program} does not tell its version")
        return Engine(f"{benchmark.program} {version}", None)

    def start(self, asked: wire.Start) -> wire.Started:
        """Load the engine and no model; answers the largest of some peaks."""
        self._threads = asked.threads
        seen = [self._look(self._benchmark.empty()) for _ in range(_EMPTY_RUNS)]
        largest = max(seen, key=lambda memory: memory.peak_bytes)
        return wire.Started(memory=largest, can_reset_peak=True, cpu_s=self._cpu_s)

    def open(self, asked: wire.Open) -> wire.Opened:
        """Take in one token, which shows that the artifact loads."""
        self._artifact, self._room = asked.directory, asked.max_context
        self._held = self._prompt = 0
        start = time.perf_counter()
        self._times(self._benchmark.prompt(self._artifact, self._threads, 1, 0), 1)
        # A benchmark takes a prompt as a whole, however it cuts it.
        return wire.Opened(
            open_s=time.perf_counter() - start, state_bytes=None, prefill_pass=asked.max_context
        )

    def fill(self, asked: wire.Fill) -> Done:
        """Note the depth: the next run fills its state itself."""
        self._hold(asked.num_tokens)
        return Done()

    def prefill(self, asked: wire.Prefill) -> wire.Prefilled:
        """Time one prompt."""
        depth, count = 0 if asked.fresh else self._held, len(asked.ids)
        self._hold(depth + count)
        run = self._benchmark.prompt(self._artifact, self._threads, count, depth)
        return wire.Prefilled(ms=self._times(run, 1)[0], finite=None)

    def decode(self, asked: wire.Decode) -> wire.Decoded:
        """Time single steps at the depth that was reached; none if none is to be timed."""
        depth, count = self._held, len(asked.ids)
        self._held += count
        times: tuple[float, ...] = ()
        if count > asked.untimed:
            run = self._benchmark.steps(self._artifact, self._threads, count, depth)
            times = self._times(run, count)
        return wire.Decoded(ms=times[asked.untimed :], finite=None)

    def logits(self, asked: wire.Logits) -> wire.LogitRows:
        """Refuse.

        Raises:
            UserError: always.
        """
        del asked
        raise UserError(
            f"{self._benchmark.program} shows no logits; export the artifact on a machine that "
            "can run it, where it is compared with eager PyTorch"
        )

    def memory(self, asked: wire.ReadMemory) -> wire.Reading:
        """Peak of a request of its own, as long as the room that was opened; it is not timed."""
        del asked
        prompt = max(self._prompt, 1)
        steps = max(self._room - prompt, 1)
        run = self._benchmark.request(self._artifact, self._threads, prompt, steps)
        return wire.Reading(memory=self._look(run), cpu_s=self._cpu_s)

    def close(self, asked: wire.Close) -> Done:
        """Nothing is open between commands."""
        del asked
        return Done()

    def _hold(self, num_tokens: int) -> None:
        """The state would hold so many tokens, and no prompt was longer."""
        self._held, self._prompt = num_tokens, max(self._prompt, num_tokens)

    def _times(self, arguments: Arguments, count: int) -> tuple[float, ...]:
        """Milliseconds of so many prompts or steps."""
        printed = self._run(arguments).printed
        try:
            times = self._benchmark.times_ms(printed)
        except ValueError as error:
            raise WorkerError("crash", str(error)) from error
        if len(times) != count:
            detail = f"{self._benchmark.program} printed {len(times)} times and not {count}"
            raise WorkerError("crash", detail)
        return times

    def _look(self, arguments: Arguments) -> wire.Memory:
        for _ in range(_LOOKS):
            if (memory := self._run(arguments, look=True).memory) is not None:
                return memory
        raise WorkerError("crash", "the device did not show the memory of its program")

    def _run(self, arguments: Arguments, look: bool = False) -> watched.Watched:
        found = watched.run(
            self._device,
            (f"{self._folder}/{self._benchmark.program}", *arguments),
            # Of a program that was linked with libraries, they lie beside it.
            {"LD_LIBRARY_PATH": self._folder},
            look=look,
            memory_limit_bytes=_own_limit(),
            kills_before=self._kills_before,
        )
        self._cpu_s += found.cpu_s
        return found


def _own_limit() -> int | None:
    """What the study's `Hello` set for this process, which its programs there inherit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if limit == resource.RLIM_INFINITY else limit


def main() -> None:
    """Serve until the input closes."""
    reached, folder = sys.argv[1:]
    BenchWorker(DeviceChoice.model_validate_json(reached), folder).serve()


if __name__ == "__main__":
    main()
