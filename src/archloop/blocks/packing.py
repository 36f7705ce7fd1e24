"""Packed training rows: several sequences one after another, told apart by segment ids.

A mixer that cannot keep the sequences of a row apart runs on them as a ragged batch instead, which
is exact for any mixer.

Shape suffixes: B rows, T time, N sequences (their T is that of the longest).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Unpacking(NamedTuple):
    """Where each token of each sequence stands in the packed rows.

    Attributes:
        rows_N1: row of each sequence.
        columns_NT: column of each of its tokens; padding points at some token of the row.
        real_NT: True at tokens, False at padding.
    """

    rows_N1: Tensor
    columns_NT: Tensor
    real_NT: Tensor

    @property
    def positions_NT(self) -> Tensor:
        """Position of each token in its sequence."""
        count, time = self.columns_NT.shape
        return torch.arange(time, device=self.columns_NT.device).expand(count, time)

    def split(self, x_BT: Tensor) -> Tensor:
        """Packed rows (B, T, ...) as one row per sequence (N, T, ...)."""
        return x_BT[self.rows_N1, self.columns_NT]

    def join(self, y_NT: Tensor, batch: int, time: int) -> Tensor:
        """The way back: (N, T, ...) to (B, T, ...)."""
        rows_NT = self.rows_N1.expand_as(self.columns_NT)
        y_BT = y_NT.new_zeros(batch, time, *y_NT.shape[2:])
        at = (rows_NT[self.real_NT], self.columns_NT[self.real_NT])
        return y_BT.index_put(at, y_NT[self.real_NT])


def unpack(segments_BT: Tensor) -> Unpacking:
    """One sequence for each run of equal segment ids in a row."""
    time = segments_BT.shape[1]
    row_N, start_N = _starts(segments_BT).nonzero(as_tuple=True)
    end_N = torch.full_like(start_N, time)
    end_N[:-1] = torch.where(row_N[1:] == row_N[:-1], start_N[1:], time)
    length_N = end_N - start_N
    steps_T = torch.arange(int(length_N.max()), device=segments_BT.device)
    columns_NT = (start_N[:, None] + steps_T).clamp(max=time - 1)
    return Unpacking(row_N[:, None], columns_NT, steps_T < length_N[:, None])


def runs(segments_BT: Tensor) -> Tensor:
    """The same sequences under ids from 1 on, so that an id met again is another sequence."""
    return _starts(segments_BT).cumsum(1)


def segment_positions(segments_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Positions that restart at each packed sequence, of real tokens (where the mask is True)."""
    if mask_BT is None:
        mask_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    counted_BT = mask_BT.cumsum(1)
    before_BT = torch.where(_starts(segments_BT), counted_BT - mask_BT.long(), 0).cummax(1).values
    return (counted_BT - 1 - before_BT).clamp(min=0)


def _starts(segments_BT: Tensor) -> Tensor:
    """True where a run of equal segment ids begins."""
    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return starts_BT
