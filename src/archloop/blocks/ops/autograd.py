"""Autograd functions of our own, called with types."""

from typing import Any

from torch.autograd import Function


def apply(function: type[Function], *args: Any) -> Any:
    """`function.apply`, which PyTorch leaves untyped."""
    return function.apply(*args)
