"""Kernels that are compiled once for all lengths of the input."""

import inspect
from collections.abc import Callable
from typing import Any

import triton

OF_LENGTH = {"num_steps", "time", "num_tokens", "num_rows", "num_blocks", "num_chunks", "beta_b"}
"""Names of kernel parameters that change with the length or the batch.

Of the strides only that of what has one number a token, which is not loaded wide.
"""


def any_length(kernel: Callable[..., Any]) -> Any:
    """`triton.jit`, not specialised on the `OF_LENGTH` parameters.

    Triton would compile anew where 16 divides one that it did not before, or where one is 1. Other
    strides stay specialised: that 16 divides them is what makes loads wide.
    """
    counts = [name for name in inspect.signature(kernel).parameters if name in OF_LENGTH]
    return triton.jit(do_not_specialize=counts)(kernel)
