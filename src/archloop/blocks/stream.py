"""The residual stream on its way through the blocks: what was added last waits for the next norm.

Blocks do nothing to the stream but norm it and add to it, in turns; so each addition can be made
together with the norm that follows, which on a GPU is one pass over the stream instead of two.
"""

from torch import Tensor

from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops.norm import add_norm


class Stream:
    """The stream (..., D) of all tokens."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._waiting: Tensor | None = None

    def normed(self, norm: RMSNorm) -> Tensor:
        """The stream with everything added so far, normed."""
        hooked = norm._forward_pre_hooks or norm._forward_hooks
        if self._waiting is None or hooked or norm.offset:
            # A norm that somebody watches is called as a module, so that hooks see what it reads;
            # one with an offset has no kernel.
            self._x, self._waiting = self.plain(), None
            return norm(self._x)
        self._x, normed = add_norm(self._x, self._waiting, norm.weight, norm.eps)
        self._waiting = None
        return normed

    def add(self, y: Tensor) -> None:
        """Add a branch's output."""
        self._x, self._waiting = self.plain(), y

    def plain(self) -> Tensor:
        """The stream itself."""
        return self._x if self._waiting is None else self._x + self._waiting
