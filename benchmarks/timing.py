"""Seconds a call takes: synchronised, and again as often as a budget allows."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

BUDGET_S = 1.0
"""Runs of one call stop being repeated when they have taken this long together."""


def seconds(run: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], Any], repeats: int = 7, warm: bool = False) -> float:
    """Of at most `repeats` runs, fewer where they are slow; one more before them unless `warm`."""
    if not warm:
        seconds(run)
    times = [seconds(run)]
    while len(times) < repeats and sum(times) < BUDGET_S:
        times.append(seconds(run))
    return statistics.median(times)


def in_turns(*runs: Callable[[], Any], rounds: int = 7) -> list[float]:
    """Median seconds of each; in turns, since how memory comes from the system differs by call."""
    times = [[seconds(run) for run in runs] for _ in range(rounds + 2)][2:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
