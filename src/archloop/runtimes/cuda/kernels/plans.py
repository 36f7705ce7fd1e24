"""How the products of one token are shared out over the card.

A matrix is cut into pieces of whole rows. Either every piece has a program of its own, or as many
programs as the card holds at once take turns at them: such programs are all there from the
beginning, so that the next kernel may start beside them, and what they compute of the stream
before they begin, its norm above all, they compute once and not for every piece.

The numbers are those that were fastest within whole steps of LFM2-1.2B and LFM3-1.7B on an H200.
"""

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

TILE = 2048
"""Weights of a row that a program reads in one go, where it need not hold the whole row."""


class Plan(NamedTuple):
    """How a product is shared out over the card.

    Attributes:
        rows: rows of the matrix a piece.
        warps: of a program.
        resident: programs a processor, which do the pieces in turn; None: a program for each piece.
        early: the next kernel may start before this one has done its loads. For kernels all of
            whose programs are on the card from the beginning.
    """

    rows: int
    warps: int
    resident: int | None = None
    early: bool = False


@functools.cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a card; of Triton's interpreter, 2."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


class Grid(NamedTuple):
    """A plan for one matrix, in the order of the kernels' last parameters.

    Rows a piece, columns a tile, pieces, programs that do them; the rest as in `Plan`.
    """

    rows: int
    columns: int
    pieces: int
    programs: int
    pdl: bool
    early: bool


def grid(
    plan: Plan, nums_rows: tuple[int, ...], width: int, w: Tensor, *, whole: bool, pdl: bool
) -> Grid:
    """Share out matrices with so many rows.

    Args:
        plan: for rows of `TILE` numbers; of longer ones a piece has fewer.
        nums_rows: of each matrix.
        width: of all of them.
        w: one of them.
        whole: a program holds whole rows, as it must to norm its input.
        pdl: kernels overlap.
    """
    columns = triton.next_power_of_2(width)
    if columns > TILE and not whole:
        columns, plan = TILE, plan._replace(resident=None)
    rows = max(1, plan.rows * TILE // max(TILE, columns))
    pieces = sum(triton.cdiv(num, rows) for num in nums_rows)
    programs = plan.resident and plan.resident * num_processors(w.device)
    programs = min(pieces, programs or pieces)
    return Grid(rows, columns, pieces, programs, pdl, pdl and plan.early)


def linear(num_rows: int, width: int) -> Plan:
    """By the rows of a matrix and their length; ``benchmarks/gpu_kernels.py`` times each alone."""
    if num_rows <= 256:
        return Plan(1, 4)
    if num_rows >= 32768:
        return Plan(4, 4, resident=4, early=True)
    if width > TILE:
        return Plan(8, 4)
    return Plan(4, 4, early=True) if num_rows <= TILE else Plan(8, 8)


CONV = Plan(2, 4, resident=3, early=True)
"""Of a short convolution's input projection; more programs have no room beside its registers."""
GATE_UP = Plan(2, 4, resident=5, early=True)
"""Of a feed-forward's first matrices; likewise."""
