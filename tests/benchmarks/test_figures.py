"""Runs of the benchmarks: figures that are kept, and memory that is counted."""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import figures

MIB = 2**20


def finishes() -> Iterator[tuple[str, float]]:
    yield "first", 1.0
    yield "second", 2.0


def fails() -> Iterator[tuple[str, float]]:
    yield "first", 1.0
    raise ValueError("no such layer\nand more")


def hangs() -> Iterator[tuple[str, float]]:
    yield "first", 1.0
    time.sleep(60)


def dies() -> Iterator[tuple[str, float]]:
    yield "first", 1.0
    sys.exit(3)


def asks_for_all_memory() -> Iterator[tuple[str, float]]:
    free = figures.kib("/proc/meminfo", "MemAvailable")
    assert free is not None
    yield "gib", torch.empty(free * 1024, dtype=torch.uint8).numel() / 2**30


def allocates() -> Iterator[tuple[str, float]]:
    memory = figures.PeakMemory()
    kept = torch.ones(64 * MIB, dtype=torch.uint8)
    del kept
    peak = memory.gib()
    assert peak is not None
    yield "peak_mib", 1024 * peak


@pytest.mark.ci
def test_figures_are_kept_however_it_ends() -> None:
    multiprocessing.set_forkserver_preload(["torch"])
    for run, limit_s, end in (
        (finishes, 60, {"second": 2.0}),
        (fails, 60, {"stopped": "ValueError: no such layer"}),
        (dies, 60, {"stopped": "its process was killed"}),
        (hangs, 5, {"stopped": "stopped after 5 s"}),
    ):
        assert figures.in_own_process(run, limit_s=limit_s) == {"first": 1.0} | end


def test_figures_are_kept_in_this_process_too() -> None:
    assert figures.here(finishes) == {"first": 1.0, "second": 2.0}
    assert figures.here(fails) == {"first": 1.0, "stopped": "ValueError: no such layer"}
    assert figures.here(hangs, limit_s=0.2) == {
        "first": 1.0,
        "stopped": "TimeoutError: stopped after 0.2 s",
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_limited_and_counted() -> None:
    found = figures.in_own_process(asks_for_all_memory, limit_s=60)
    assert "RuntimeError" in found["stopped"]
    found = figures.in_own_process(allocates, limit_s=60)
    assert found["peak_mib"] == pytest.approx(64, abs=16)
