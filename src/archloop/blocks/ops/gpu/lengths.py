"""Kernels that are compiled once for all lengths of the input."""

import inspect
from collections.abc import Callable
from typing import Any

import triton

OF_LENGTH = {"num_steps", "time", "num_tokens", "num_rows", "num_blocks", "num_chunks"}
"""Names of kernel parameters that change with the length or the batch."""


def any_length(*strides: str) -> Callable[[Callable[..., Any]], Any]:
    """`triton.jit`, not specialised on the `OF_LENGTH` parameters.

    Triton would compile anew where 16 divides one that it did not before, or where one is 1.

    Args:
        strides: names of further such parameters: strides between sequences of what has one number
            a token. Others stay specialised: that 16 divides them is what makes loads wide.
    """

    def jit(kernel: Callable[..., Any]) -> Any:
        names = inspect.signature(kernel).parameters
        counts = [name for name in names if name in OF_LENGTH or name in strides]
        return triton.jit(do_not_specialize=counts)(kernel)

    return jit
