"""What the delta rule's kernels share, forward and backward: their chunk, and tiles of keys in it.

Imported only where Triton is installed. Shape suffixes and halving: as in `ops.gpu.delta`.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from archloop.blocks.ops.chunks import LONG_CHUNK

CHUNK = LONG_CHUNK
LEVELS = CHUNK.bit_length() - 1
"""Halvings of a chunk down to one token."""


@triton.jit
def joins_halves(row, col, level):
    """Whether the pair stands in the right and the left half of one block of 2^(level+1) tokens."""
    return (((row >> level) ^ (col >> level)) == 1) & (row > col)


@triton.jit
def level_decay(b, b_ptr, i, j, length, level, K: tl.constexpr):
    """``e^-|b - ref|`` (C, K), ref being b at the end of the left half of each token's block."""
    end = ((i >> (level + 1)) << (level + 1)) + ((1 << level) - 1)
    at = tl.minimum(end, length - 1)[:, None] * K + j[None, :]
    ref = tl.load(b_ptr + at, mask=(j < K)[None, :], other=0.0)
    return tl.exp(-tl.abs(b - ref))


@triton.jit
def in_place(x):
    """`x` itself, but the compiler cannot move a change of layout from behind it to before it.

    It would load x once for each layout in which a product takes what is computed from it, and
    compute that as often: too many registers.
    """
    return tl.max(tl.join(x, x), 2)


def padded_width(width: int) -> int:
    """The power of two that holds a width and that a matrix unit takes."""
    return max(16, 1 << (width - 1).bit_length())


def widths(k: Tensor) -> dict[str, Any]:
    """Constants of a kernel that holds whole keys."""
    key_width = k.shape[3]
    block = padded_width(key_width)
    return {"K": key_width, "BLOCK_K": block, "C": CHUNK, "PRECISION": "tf32x3"}
