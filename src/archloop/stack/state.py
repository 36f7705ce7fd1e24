"""What a decoder carries between tokens: the states of its mixers, and each row's length.

Shape suffixes: B batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from archloop.blocks.base import State
from archloop.blocks.state import Clock

MixerKey = tuple[int, int]
"""Block index and slot of a mixer."""


class DecoderState:
    """The states of all mixers that keep one, and how many tokens each row holds.

    Attributes:
        lengths_B: tokens in each row so far, int64.
        mixers: state by block index and slot; consumers of another block's state have none.
        clock: counts the tokens of the longest row on the host, for all mixers' states.
    """

    def __init__(self, lengths_B: Tensor, mixers: dict[MixerKey, State], max_context: int) -> None:
        self.lengths_B = lengths_B
        self.mixers = mixers
        self.max_context = max_context
        self.clock = Clock()
        for state in mixers.values():
            state.clock = self.clock

    @property
    def num_tokens(self) -> int:
        """Tokens in the longest row, or more (`Clock`)."""
        return self.clock.num_tokens

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, what a step computes does not depend on how many tokens were counted."""
        self.clock.static = True
        try:
            yield
        finally:
            self.clock.static = False

    def freeze(self) -> None:
        """As `frozen`, for good."""
        self.clock.static = True

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(state.nbytes for state in self.mixers.values())

    def snapshot(self) -> "DecoderState":
        """An independent copy, to go back to or to continue from twice."""
        return self._copy({key: state.snapshot() for key, state in self.mixers.items()})

    def mark(self, into: "DecoderState | None" = None) -> "DecoderState":
        """A light copy to `restore`, good for going back over tokens taken in since (`State`).

        Args:
            into: an earlier mark of this state that is wanted no more; it takes the copy, by one
                kernel for each dtype on a GPU where new tensors take one each.
        """
        if into is None:
            return self._copy({key: state.mark() for key, state in self.mixers.items()})
        pairs = [(into.lengths_B, self.lengths_B)]
        for key, state in into.mixers.items():
            pairs += [(tensor, self.mixers[key][name]) for name, tensor in state.tensors.items()]
        for dtype in {kept.dtype for kept, _ in pairs}:
            kept, now = zip(*(pair for pair in pairs if pair[0].dtype == dtype), strict=True)
            # PyTorch has no public name for this, which its own optimisers go by.
            torch._foreach_copy_(kept, now)
        into.recount(self.num_tokens)
        return into

    def restore(self, snapshot: "DecoderState") -> None:
        """Go back to a snapshot or mark, in place."""
        self.lengths_B.copy_(snapshot.lengths_B)
        self.recount(snapshot.num_tokens)
        for key, state in self.mixers.items():
            state.restore(snapshot.mixers[key])

    def recount(self, num_tokens: int) -> None:
        """Say how many tokens the longest row holds, where single rows have been put back."""
        self.clock.num_tokens = num_tokens

    def row(self, index: int) -> "DecoderState":
        """One row as a state of its own on the same memory."""
        return self.rows(slice(index, index + 1))

    def rows(self, rows: slice) -> "DecoderState":
        """Some rows as a state of their own on the same memory: tensors have the batch first."""
        return self._taken(rows)

    def gathered(self, rows_N: Tensor) -> "DecoderState":
        """An independent state of these rows, each as often as it is named: a prefix to fork.

        Args:
            rows_N: numbers of rows, (N,).
        """
        return self._taken(rows_N)

    def _taken(self, index: slice | Tensor) -> "DecoderState":
        """Rows as PyTorch indexes them: a slice shares memory, a tensor copies."""
        mixers = {}
        for key, whole in self.mixers.items():
            taken = State(whole.max_context, **{k: t[index] for k, t in whole.tensors.items()})
            taken.by_position = whole.by_position
            mixers[key] = taken
        some = DecoderState(self.lengths_B[index], mixers, self.max_context)
        some.recount(self.num_tokens)
        return some

    def _copy(self, mixers: dict[MixerKey, State]) -> "DecoderState":
        copy = DecoderState(self.lengths_B.clone(), mixers, self.max_context)
        copy.clock.num_tokens, copy.clock.static = self.num_tokens, self.clock.static
        return copy

    def reset(self) -> None:
        """Forget all tokens, in place."""
        self.lengths_B.zero_()
        self.recount(0)
        for state in self.mixers.values():
            state.reset()


def check_rows(ids: Tensor, state: DecoderState) -> None:
    """Refuse ids whose first dimension is not the state's rows: they would broadcast.

    Raises:
        ValueError: that.
    """
    num_rows = state.lengths_B.shape[0]
    if ids.shape[0] != num_rows:
        raise ValueError(
            f"ids of {ids.shape[0]} rows for a state of {num_rows}; "
            "make one for as many rows with init_state"
        )


def full(state: DecoderState, num_new: int) -> ValueError:
    """The state has no room for so many more tokens."""
    return ValueError(
        f"the state has room for max_context={state.max_context} tokens, holds "
        f"{state.num_tokens} and was given {num_new} more; make a larger one with init_state"
    )
