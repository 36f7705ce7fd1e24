"""Whether Triton kernels of our own can run on a tensor; pure PyTorch is the fallback.

Nothing here imports Triton, so that a machine without it never does.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

_disabled = False
_NO_WGMMA = "DISABLE_MMA_V3"


def usable(x: Tensor, *dtypes: torch.dtype) -> bool:
    """True on a CUDA device with Triton installed, for float32 or `dtypes`, unless switched off.

    Kernels compute in float32; float64 is for tests, which use the plain forms.
    """
    allowed = dtypes or (torch.float32,)
    return not _disabled and x.is_cuda and x.dtype in allowed and _installed()


@contextmanager
def disabled() -> Iterator[None]:
    """The pure PyTorch forms run everywhere inside, to compare against."""
    global _disabled
    before, _disabled = _disabled, True
    try:
        yield
    finally:
        _disabled = before


@contextmanager
def without_wgmma() -> Iterator[None]:
    """Kernels compiled inside use the matrix instructions of before Hopper.

    The assembler of Triton 3.4 to 3.7 lets registers that a Hopper instruction (wgmma) still reads
    be overwritten: wrong numbers or an illegal access where one product feeds the next
    (triton-lang/triton#11366 and #11781, flash-linear-attention#640 and #984).
    """
    before = os.environ.get(_NO_WGMMA)
    os.environ[_NO_WGMMA] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_WGMMA]
        else:
            os.environ[_NO_WGMMA] = before


def compile_ahead(run: Callable[[], object]) -> None:
    """Compile all kernels that `run` would launch, on all cores at once instead of on one.

    Worth it before a first training step on a GPU; elsewhere nothing happens. `run` is called once,
    but its kernels compute nothing, so what it changes must not be kept: give it a copy of a model.
    """
    if torch.cuda.is_available() and _installed() and not _disabled:
        from archloop.blocks.ops.gpu import ahead

        ahead.compile_ahead(run)


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
