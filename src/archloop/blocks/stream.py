"""The residual stream on its way through the blocks: what was added last waits for the next norm.

Blocks do nothing to the stream but norm it and add to it, in turns; so each addition can be made
together with the norm that follows, which on a GPU is one pass over the stream instead of two.
Side blocks add nothing to it: what they make goes along beside it, up to the next block that does.
"""

import torch
from torch import Tensor

from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops.norm import add_norm


class Stream:
    """The stream (..., D) of all tokens.

    Args:
        x: what it starts as: the embeddings, or the stream of somebody before.
        embedding: of the tokens, for blocks that read it too.

    Attributes:
        inside: of a side block under way, what its mixers gave to its channel mixer.
    """

    def __init__(self, x: Tensor, embedding: Tensor | None = None) -> None:
        self._x = x
        self._waiting: Tensor | None = None
        self._embedding = embedding
        self._aside: Tensor | None = None
        self.inside: Tensor | None = None

    def normed(self, norm: RMSNorm, *, in_side: bool = False) -> Tensor:
        """The stream with everything added so far, normed.

        Args:
            norm: of the stream's width, or of twice that for the stream and the embedding.
            in_side: a side block reads: it does not see what side blocks have left.
        """
        aside = None if in_side else self._aside
        wide = norm.weight.shape[0] != self._x.shape[-1]
        if wide or aside is not None:
            self._x, self._waiting = self.plain(), None
            read = self._x
            if aside is not None:
                read, self._aside = read + aside, None
            if wide:
                assert self._embedding is not None, "whoever made the stream kept no embedding"
                read = torch.cat([read, self._embedding], -1)
            return norm(read)
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

    def leave(self, y: Tensor) -> None:
        """Leave a side block's output for the next norm of a block that is none."""
        self._aside = y if self._aside is None else self._aside + y

    def read(self) -> Tensor:
        """What the next norm reads: the stream, and what side blocks have left for it."""
        return self.plain() if self._aside is None else self.plain() + self._aside

    def plain(self) -> Tensor:
        """The stream itself."""
        return self._x if self._waiting is None else self._x + self._waiting
