"""Keeps kernels from Hopper's matrix instruction: Triton's assembler can spoil what it reads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NO_WGMMA = "DISABLE_MMA_V3"


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
