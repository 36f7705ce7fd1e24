"""Where the tokens of one call stand: positions, packed sequences, padding.

Shape suffixes: B batch, T time, N heads, H head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from archloop.blocks.packing import segment_positions
from archloop.blocks.state import State


@dataclass(frozen=True)
class Span:
    """Where the tokens of one call stand. Padding, if any, is on the right.

    Attributes:
        positions_BT: position of each token in its sequence. With a state, each row is contiguous
            and starts at the number of tokens that the state already holds.
        segments_BT: in packed training batches, which sequence a token belongs to.
        lengths_B: real tokens per row; None when all T are real.
    """

    positions_BT: Tensor
    segments_BT: Tensor | None = None
    lengths_B: Tensor | None = None

    @property
    def valid_BT(self) -> Tensor | None:
        """True at real tokens; None when all are."""
        if self.lengths_B is None:
            return None
        steps_T = torch.arange(self.positions_BT.shape[1], device=self.positions_BT.device)
        return steps_T < self.lengths_B[:, None]


def default_positions(
    x_BTD: Tensor, state: State | None, segments_BT: Tensor | None, mask_BT: Tensor | None
) -> Tensor:
    """Contiguous positions of real tokens, from the tokens in the state, restarting at each packed
    sequence.
    """
    batch, time = x_BTD.shape[:2]
    steps_T = torch.arange(time, device=x_BTD.device)
    if segments_BT is not None:
        return segment_positions(segments_BT, mask_BT)
    start = 0 if state is None else state.num_tokens
    if mask_BT is not None:
        return start + (mask_BT.cumsum(1) - 1).clamp(min=0)
    return (start + steps_T).expand(batch, time)


def check_marks(shape: tuple[int, ...], **marks: Tensor | None) -> None:
    """Refuse marks of tokens (positions, segments, a mask) that would broadcast.

    Raises:
        ValueError: one that is given has not `shape`, one value for each token.
    """
    for name, mark in marks.items():
        if mark is not None and mark.shape != shape:
            raise ValueError(f"{name} has shape {tuple(mark.shape)}; must be {tuple(shape)}")


def align_right_padding(
    mask_BT: Tensor, positions_BT: Tensor, segments_BT: Tensor | None
) -> tuple[Tensor, Span]:
    """The order that puts each row's real tokens first, and the span in that order."""
    order_BT = torch.argsort(~mask_BT, dim=1, stable=True)
    lengths_B = mask_BT.sum(1)
    steps_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    if segments_BT is not None:
        positions_BT = positions_BT.gather(1, order_BT)
        segments_BT = segments_BT.gather(1, order_BT)
        # Padding after the last sequence must not join it.
        segments_BT = torch.where(steps_T < lengths_B[:, None], segments_BT, -1)
        return order_BT, Span(positions_BT, segments_BT, lengths_B)
    first_B = positions_BT.gather(1, order_BT[:, :1])
    return order_BT, Span(first_B + steps_T, None, lengths_B)


def only_real(x_BNTH: Tensor, span: Span) -> Tensor:
    """Zero at padding: a zero key or log-decay there leaves the state as it is."""
    valid_BT = span.valid_BT
    return x_BNTH if valid_BT is None else x_BNTH.where(valid_BT[:, None, :, None], 0)
