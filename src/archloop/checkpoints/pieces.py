"""Which part of a checkpoint's tensors is which part of a decoder's.

A checkpoint and a decoder cut the same numbers differently: most families have q, k and v apart
where we have one matrix, and some have one matrix where we have several. A `Piece` joins a part of
one tensor of a checkpoint to a part of one of ours. A layout lists its pieces; loading copies them
one way and saving the other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Part = tuple[slice | int, ...]
"""An index into a tensor; empty for all of it."""


class Transform(NamedTuple):
    """How numbers differ beyond their place, such as a decay stored as its logarithm."""

    load: Callable[[Tensor], Tensor]
    save: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """A part of one tensor of a checkpoint and the part of a decoder's tensor that it is.

    Attributes:
        name: in the checkpoint.
        target: name of the decoder's parameter or buffer.
        shape: of the checkpoint's whole tensor.
        source: the part of the checkpoint's tensor.
        into: the part of the decoder's tensor, with as many numbers in the same order.
        transform: of the numbers; None: they are the same.
    """

    name: str
    target: str
    shape: tuple[int, ...]
    source: Part = ()
    into: Part = ()
    transform: Transform | None = field(default=None, compare=False)

    def load(self, stored: Tensor, target: Tensor) -> None:
        """Copy from the checkpoint's tensor into the decoder's."""
        numbers = stored[self.source] if self.source else stored
        if self.transform is not None:
            numbers = self.transform.load(numbers)
        part = target[self.into] if self.into else target
        part.copy_(numbers.reshape(part.shape))

    def saved(self, target: Tensor) -> Tensor:
        """The numbers of this piece, as the checkpoint has them; a view where they are the same."""
        part = target[self.into] if self.into else target
        return part if self.transform is None else self.transform.save(part)


def gather(pieces: Iterable[Piece], targets: Mapping[str, Tensor]) -> Tensor:
    """The checkpoint's tensor that all `pieces` are parts of."""
    pieces = list(pieces)
    first = pieces[0]
    if not first.source:
        return first.saved(targets[first.target].detach()).reshape(first.shape)
    whole = torch.empty(first.shape, dtype=targets[first.target].dtype)
    for piece in pieces:
        part = whole[piece.source]
        part.copy_(piece.saved(targets[piece.target].detach()).reshape(part.shape))
    return whole


def rows(names: Iterable[tuple[str, int]], target: str, width: int) -> Iterator[Piece]:
    """Matrices (rows, width) that stand one below the other in one of ours."""
    start = 0
    for name, num_rows in names:
        into = (slice(start, start + num_rows),)
        yield Piece(name, target, (num_rows, width), into=into)
        start += num_rows
