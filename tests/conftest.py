"""Fixtures for all tests."""

import atexit
import os
import shutil
import tempfile

# Before torch is imported, and for the processes tests start: workers run side by side, and with
# a thread per core in each of them they wait for one another (the suite took twice as long).
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "ARCHLOOP_LEASES" not in os.environ:
    # A study that measures on this machine, and another run of the tests, neither wait for these
    # tests nor keep them waiting; the workers of this run take the folder over, and do wait.
    os.environ["ARCHLOOP_LEASES"] = tempfile.mkdtemp(prefix="archloop-leases-of-tests-")
    atexit.register(shutil.rmtree, os.environ["ARCHLOOP_LEASES"], ignore_errors=True)

import pytest
import torch

from archloop import registry
from archloop.blocks.ops import triton_kernels


@pytest.fixture(autouse=True)
def plugin_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of plug-ins that a test, or a study in it, adds are no other test's."""
    monkeypatch.setattr(registry, "_folders", dict(registry._folders))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch picks kernels, under Triton's interpreter for CPU tensors too; seeded."""

    def usable(x: torch.Tensor, *_: torch.dtype) -> bool:
        return x.dtype == torch.float32 and not triton_kernels._disabled

    if os.environ.get("TRITON_INTERPRET") == "1":
        monkeypatch.setattr(triton_kernels, "usable", usable)
    torch.manual_seed(0)
