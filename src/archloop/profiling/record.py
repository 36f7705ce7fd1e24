"""What a measurement is: figures with intervals, and the identity without which none compares.

Measured values have these types and no others; formulas (`stack.cost`) never produce them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Record):
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def point(cls, value: float) -> "Interval":
        """A value without an interval of its own."""
        return cls(value=value, low=value, high=value)


class Identity(_Record):
    """What must be equal for two measurements to be compared.

    Attributes:
        decode_tokens: of the request whose latency is an objective.
        memory: whose peak is reported: the process's, or that of a device with its own memory.
    """

    device: str
    runtime: str
    runtime_version: str
    quant: str
    precision: str
    threads: int
    contexts: tuple[int, ...]
    decode_tokens: int = 256
    memory: Literal["process", "device"] = "process"

    @property
    def in_threads(self) -> str:
        """How many threads computed, in words."""
        return "1 thread" if self.threads == 1 else f"{self.threads} threads"

    def changes(self, now: "Identity") -> str:
        """What is not the same any more, in words: ``threads was 1, is 8``; empty if all is."""
        return "; ".join(
            f"{name} was {getattr(self, name)!r}, is {value!r}"
            for name, value in now
            if getattr(self, name) != value
        )


class Figures(_Record):
    """Gross values at one context, batch 1: estimates over fresh processes.

    Attributes:
        context: prompt tokens, and the depth at which decode steps are timed.
        ttft_ms: from the request to the first sampled token.
        prefill_tok_per_s: context over prefill time.
        decode_p50_ms: median decode step.
        decode_p95_ms: 95th percentile.
        peak_memory_bytes: of the memory that the engine computes in (`Identity.memory`).
        engine_empty_bytes: the same reading once the engine is loaded and no model is.
        joules_per_token: energy of a decode step, of the processor's packages or of the card that
            computes, with what it uses when idle; None where the device cannot tell.
    """

    context: int
    ttft_ms: Interval
    prefill_tok_per_s: Interval
    decode_p50_ms: Interval
    decode_p95_ms: Interval
    peak_memory_bytes: Interval
    engine_empty_bytes: Interval
    joules_per_token: Interval | None = None


class Profile(_Record):
    """All that was measured of one spec on one device.

    Attributes:
        figures: by context, ascending.
        latency_ratio: request latency (TTFT + `decode_tokens` steps) over the reference's,
            geometric mean over contexts; None without a reference.
        memory_ratio: peak less the empty engine's memory over the reference's, the largest of its
            means by context (a mean of each process's largest would lie above 1 for the reference
            itself); None likewise.
        ratios: per-context ratios to the reference by figure name, `{"1024": {"ttft_ms": ...}}`.
        flags: readings that make one doubt a figure (load, clock, temperature), plain words.
        num_processes: fresh processes behind each estimate.
        num_repeated: processes that were disturbed and measured again; the estimates are without
            them.
        num_energy_processes: processes behind estimates of energy, the fewest of all contexts,
            where the device's counter may have failed in some; None where there is no such
            estimate, and in profiles of before.
        seconds: wall time that measuring took.
    """

    identity: Identity
    figures: tuple[Figures, ...]
    latency_ratio: Interval | None = None
    memory_ratio: Interval | None = None
    ratios: dict[str, dict[str, Interval]] = {}
    flags: tuple[str, ...] = ()
    num_processes: int
    num_repeated: int = 0
    num_energy_processes: int | None = None
    seconds: float

    def processes_behind(self, figure: str) -> int:
        """How many fresh processes are behind a figure or a ratio of that name."""
        if figure == "joules_per_token" and self.num_energy_processes is not None:
            return self.num_energy_processes
        return self.num_processes
