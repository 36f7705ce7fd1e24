"""Whether Triton kernels of our own can run on a tensor; pure PyTorch is the fallback.

Nothing here imports Triton, so that a machine without it never does.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_disabled = False


def usable(x: Tensor, *dtypes: torch.dtype) -> bool:
    """True on a CUDA device with Triton installed, for float32 or `dtypes`, unless switched off.

    Kernels compute in float32; float64 is for tests, which use the plain forms.
    """
    allowed = dtypes or (torch.float32,)
    return not _disabled and x.is_cuda and x.dtype in allowed and _installed()


def jit(kernel: Callable[..., Any]) -> Any:
    """`triton.jit`, typed. Modules that use it are imported only where Triton is installed."""
    return importlib.import_module("triton").jit(kernel)


class disabled:  # noqa: N801
    """Context in which the pure PyTorch forms run everywhere, to compare against."""

    def __enter__(self) -> None:
        global _disabled
        self._before, _disabled = _disabled, True

    def __exit__(self, *_: object) -> None:
        global _disabled
        _disabled = self._before


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
