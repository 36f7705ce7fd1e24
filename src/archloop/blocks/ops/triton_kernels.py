"""Whether Triton kernels can run on a tensor, and whose; pure PyTorch is the fallback.

Nothing here imports Triton, so that a machine without it never does.
"""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from archloop.errors import UserError

_disabled = False
_from_fla = False
FLA_WIDEST_KEY = 256
"""Keys that fla's kernels take."""


def usable(x: Tensor, *dtypes: torch.dtype) -> bool:
    """True on a CUDA device with Triton installed, for float32 or `dtypes`, unless switched off.

    Kernels compute in float32; float64 is for tests, which use the plain forms. So does PyTorch's
    compiler: it fuses such work itself, and would stop at our kernels.
    """
    if torch.compiler.is_compiling():
        return False
    allowed = dtypes or (torch.float32,)
    return not _disabled and x.is_cuda and x.dtype in allowed and _installed()


def fusible(x: Tensor) -> bool:
    """Whether elementwise work on x goes to a kernel of ours."""
    return usable(x, torch.float32, torch.bfloat16)


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
def from_fla() -> Iterator[None]:
    """Inside, flash-linear-attention's kernels serve what of GLA, HGRN2 and KDA they do right.

    That is passes in bfloat16 that neither start from a state nor leave one, training above all;
    all else is as outside. They tune themselves for minutes at the first call of each shape.

    Raises:
        UserError: the package is not installed.
    """
    global _from_fla
    if importlib.util.find_spec("fla") is None:
        raise UserError(
            "flash-linear-attention is not installed; install it with pip install 'archloop[gpu]'"
        )
    before, _from_fla = _from_fla, True
    try:
        yield
    finally:
        _from_fla = before


def taken_from_fla(v: Tensor, key_width: int) -> bool:
    """Whether `from_fla` holds here, for values v and keys of this width."""
    served = v.dtype == torch.bfloat16 and key_width <= FLA_WIDEST_KEY
    return _from_fla and served and usable(v, torch.bfloat16)


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
