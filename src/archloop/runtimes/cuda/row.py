"""The residual stream of one row on its way through the halves of a decode step.

Where a norm stands behind a half, the half's output is not added at once: it waits, and the kernel
that reads the stream next adds it on the way in. That is one kernel less in a chain whose length is
what a step waits for.

Shape suffixes: D model width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

Norm = tuple[Tensor, float]
"""Weight and epsilon of an RMS norm."""


class Incoming(NamedTuple):
    """The stream as a kernel finds it, and what waits to be added to it.

    Attributes:
        x_D: the stream.
        y_D: what is added once it is normed.
        post_norm: by what it is normed.
        total_D: takes the sum.
    """

    x_D: Tensor
    y_D: Tensor
    post_norm: Norm
    total_D: Tensor


class Row:
    """The stream of one row.

    Attributes:
        x_D: the stream, without what waits; kernels that add to it do so in place.
    """

    def __init__(self, x_D: Tensor, overlap: bool = False) -> None:
        """Begin with an embedding; for `overlap` see `FusedDecoder`."""
        self.x_D, self._overlap = x_D, overlap
        self._waiting: tuple[Tensor, Norm] | None = None

    def add_later(self, y_D: Tensor, post_norm: Norm) -> None:
        """Let an output wait. A half reads the stream before it adds, so no other is waiting."""
        assert self._waiting is None
        self._waiting = y_D, post_norm

    def read(self) -> Tensor | Incoming:
        """What a kernel of `kernels.gemv` is given, which must be the next that runs."""
        if self._waiting is None:
            return self.x_D
        found = Incoming(self.x_D, *self._waiting, torch.empty_like(self.x_D))
        self.x_D, self._waiting = found.total_D, None
        return found

    def settled(self) -> Tensor:
        """The stream with all that was added, for whoever reads it in another way."""
        if self._waiting is not None:
            # Only a half that runs through kernels lets anything wait.
            from archloop.runtimes.cuda.kernels import rows

            y_D, post_norm = self._waiting
            rows.add_normed(self.x_D[None], y_D[None], post_norm, pdl=self._overlap)
            self._waiting = None
        return self.x_D
