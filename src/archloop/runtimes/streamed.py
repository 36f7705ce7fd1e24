"""A decoder with random weights that exists a piece at a time, for stacks memory does not hold.

Names are those of the whole decoder, weights those of its pieces (`runtimes.pieces`): equal halves
of blocks have equal weights. The piece of each part that was asked for last is kept, since a file's
tensors come block by block.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from archloop.errors import UserError
from archloop.runtimes.pieces import PartName, Piece, build, inseparable, pieces
from archloop.stack import weights
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec


class _Home(NamedTuple):
    """Where a tensor is from: a piece, and the tensor's name in the piece's decoder."""

    piece: Piece
    name: str


class StreamedTensors(Mapping[str, Tensor]):
    """Tensors of a stack's decoder by name, each made when it is asked for.

    Args:
        spec: a stack that is made of pieces and shares no weights.

    Raises:
        UserError: it is not.
    """

    def __init__(self, spec: StackSpec) -> None:
        if (reason := inseparable(spec) or _sharing(spec)) is not None:
            raise UserError(f"this stack's weights cannot be made a piece at a time: {reason}")
        with torch.device("meta"):
            names = list(weights.tensors(Decoder(spec)))
        found = {(each.block, each.piece.part): each.piece for each in pieces(spec)}
        ends = found[None, "embedding"]
        self._homes = {name: _home(name, found, ends) for name in names}
        self._kept: dict[str, tuple[Piece, dict[str, Tensor]]] = {}

    def __getitem__(self, name: str) -> Tensor:
        piece, own = self._homes[name]
        kept = self._kept.get(piece.part)
        if kept is None or kept[0] != piece:
            # The one before is given up first, so that two of a part are never there at once.
            self._kept.pop(piece.part, None)
            kept = self._kept[piece.part] = piece, weights.tensors(build(piece))
        return kept[1][own]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def _home(name: str, found: Mapping[tuple[int | None, PartName], Piece], ends: Piece) -> _Home:
    if not name.startswith("blocks."):
        return _Home(ends, name)
    _, index, rest = name.split(".", 2)
    part: PartName = "channel" if rest.startswith("channel") else "mixers"
    return _Home(found[int(index), part], f"blocks.0.{rest}")


def _sharing(spec: StackSpec) -> str | None:
    for index, block in enumerate(spec.blocks):
        for part in (*block.mixers, block.channel_mixer):
            if part is not None and part.weights_from is not None:
                return f"block {index} has weights of another"
    return None
