"""Where recurrences compute: at least float32, and float64 when the model is float64."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


def recurrent_dtype(dtype: torch.dtype) -> torch.dtype:
    """What log-decays, cumulative sums and recurrent state are kept in."""
    return torch.promote_types(dtype, torch.float32)


def precise(x: Tensor) -> Tensor:
    """`x` in the dtype of log-decays, cumulative sums and recurrent state."""
    return x.to(recurrent_dtype(x.dtype))


def exact(x: Tensor) -> AbstractContextManager[Any]:
    """Without autocast, which rounds the factors of every matrix product, whatever their dtype.

    Where it is off there is nothing to do, and nothing in a compiled or exported graph.
    """
    device_type = x.device.type
    if _autocasts(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def product_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of x compute with: autocast's dtype where that is on, else that of x."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if _autocasts(device_type) else x.dtype


def _autocasts(device_type: str) -> bool:
    # Which types of device have autocast at all is a question that PyTorch's compiler cannot ask.
    has = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    return has and torch.is_autocast_enabled(device_type)


class KeepsFloat32(nn.Module):
    """A module some of whose own parameters stay float32 when it is cast below.

    Poles and time steps act as powers: half a percent of a bf16 logarithm is a wrong phase a few
    dozen tokens on.

    Attributes:
        float32_params: their names; those that a configuration lacks are passed over.
    """

    float32_params: ClassVar[frozenset[str]] = frozenset()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {
            n: p.data
            for n, p in self._parameters.items()
            if n in self.float32_params and p is not None
        }
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        for name, before in kept.items():
            after = self._parameters[name]
            assert after is not None
            kept_as = recurrent_dtype(after.dtype)
            if after.dtype != kept_as:
                after.data = before.to(after.device, kept_as)
        return self
