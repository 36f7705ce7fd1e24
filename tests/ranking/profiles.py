"""Hand-made profiles and scores."""

from typing import Any

from archloop.evals.base import Score
from archloop.profiling.record import Figures, Identity, Interval, Profile

IDENTITY = Identity(
    device="here", runtime="torch", runtime_version="1", quant="none", precision="fp32",
    threads=1, contexts=(1024, 4096),
)  # fmt: skip


def interval(value: float, spread: float = 0.05) -> Interval:
    return Interval(value=value, low=value * (1 - spread), high=value * (1 + spread))


def figures(context: int, **changes: Interval) -> Figures:
    values = {
        "ttft_ms": interval(context / 10),
        "prefill_tok_per_s": interval(1e4),
        "decode_p50_ms": interval(10.0),
        "decode_p95_ms": interval(12.0),
        "peak_memory_bytes": interval(1100.0),
        "engine_empty_bytes": interval(100.0),
    }
    return Figures(context=context, **(values | changes))


def profile(latency: float = 1.0, memory: float = 1.0, **changes: Any) -> Profile:
    ratios = {
        c: {m: interval(1.2) for m in ("ttft_ms", "decode_p50_ms", "peak_memory_bytes")}
        for c in ("1024", "4096")
    }
    values: dict[str, Any] = {
        "identity": IDENTITY, "figures": (figures(1024), figures(4096)), "ratios": ratios,
        "latency_ratio": interval(latency), "memory_ratio": interval(memory, 0.01),
        "num_processes": 5, "seconds": 1.0,
    }  # fmt: skip
    return Profile(**(values | changes))


def score(normalized: float, category: str = "text", se: float = 0.01, **changes: Any) -> Score:
    values: dict[str, Any] = {
        "value": normalized, "standard_error": se, "chance": 0.0, "perfect": 1.0,
        "num_examples": 100, "category": category,
    }  # fmt: skip
    return Score(**(values | changes))
