"""Fixtures for all tests."""

import os

# Before torch is imported, and for the processes tests start: workers run side by side, and with
# a thread per core in each of them they wait for one another (the suite took twice as long).
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from archloop.blocks.ops import triton_kernels


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch picks kernels, under Triton's interpreter for CPU tensors too; seeded."""

    def usable(x: torch.Tensor, *_: torch.dtype) -> bool:
        return x.dtype == torch.float32 and not triton_kernels._disabled

    if os.environ.get("TRITON_INTERPRET") == "1":
        monkeypatch.setattr(triton_kernels, "usable", usable)
    torch.manual_seed(0)
