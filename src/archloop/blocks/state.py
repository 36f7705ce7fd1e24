"""What a mixer carries between tokens: a KV cache, its latest inputs, a recurrent state.

All of it is allocated once, at fixed addresses, so that a captured step may run again and again.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from archloop.blocks.ops.precision import recurrent_dtype


class Held(NamedTuple):
    """One tensor of a mixer's state.

    Attributes:
        retention: ``cache`` has a slot for each position, kept for good; ``recent`` holds
            the last few tokens, or a ring of them; ``recurrent`` sums up all tokens, in at least
            float32.
        shape: for one sequence.
    """

    retention: Literal["cache", "recent", "recurrent"]
    shape: tuple[int, ...]

    def dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Its own, when activations have `dtype`."""
        return recurrent_dtype(dtype) if self.retention == "recurrent" else dtype


class Clock:
    """How many tokens a state holds, counted on the host so that nobody must ask the device.

    The states of a decoder's mixers share one clock, which the decoder advances once a call.

    Attributes:
        num_tokens: in the longest row, or more.
        static: set by runtimes that capture or compile a step: what a mixer computes must then not
            depend on the count.
    """

    def __init__(self, num_tokens: int = 0, *, static: bool = False) -> None:
        self.num_tokens = num_tokens
        self.static = static

    def copy(self) -> "Clock":
        """One that goes on alone."""
        return Clock(self.num_tokens, static=self.static)


class State:
    """What a mixer carries between tokens: named tensors at fixed addresses, batch first.

    Attributes:
        tensors: KV cache, convolution state, recurrent state, ..., by name.
        max_context: tokens per row that the state has room for.
        clock: counts the tokens; a `DecoderState` gives all its mixers' states its own.
        by_position: names of the tensors (batch, ..., slot, ...) where each token has the slot of
            its position for good and slots past a row's length are never read, so that going back
            over tokens needs no copy of them.
    """

    def __init__(self, max_context: int, **tensors: Tensor) -> None:
        self.tensors = tensors
        self.max_context = max_context
        self.clock = Clock()
        self.by_position: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def num_tokens(self) -> int:
        """Tokens in the longest row, or more (`Clock`)."""
        return self.clock.num_tokens

    @num_tokens.setter
    def num_tokens(self, count: int) -> None:
        self.clock.num_tokens = count

    @property
    def static(self) -> bool:
        """Whether `reach` is constant (`Clock`)."""
        return self.clock.static

    @static.setter
    def static(self, static: bool) -> None:
        self.clock.static = static

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def reach(self, num_new: int) -> int:
        """How many cache slots may be in use once `num_new` more tokens are in."""
        if self.static:
            return self.max_context
        return min(self.num_tokens + num_new, self.max_context)

    def step_reach(self, device: torch.device) -> int:
        """`reach` of a decode step, on a GPU in whole steps of 256 slots.

        Attention libraries there plan anew for each number of keys, which cost 100 ms a token.
        """
        if device.type != "cuda":
            return self.reach(1)
        return min(-(-self.reach(1) // 256) * 256, self.max_context)

    def snapshot(self) -> "State":
        """An independent copy."""
        return self._copy(self.tensors.keys())

    def mark(self) -> "State":
        """As `snapshot`, without the tensors in `by_position`.

        Enough to go back over tokens taken in since, no good once earlier tokens were replaced.
        """
        return self._copy(self.tensors.keys() - self.by_position)

    def restore(self, snapshot: "State") -> None:
        """Go back to a snapshot or mark, in place."""
        for name, tensor in snapshot.tensors.items():
            self.tensors[name].copy_(tensor)
        self.num_tokens = snapshot.num_tokens

    def _copy(self, names: Iterable[str]) -> "State":
        copy = State(self.max_context, **{name: self.tensors[name].clone() for name in names})
        copy.clock = self.clock.copy()
        copy.by_position = self.by_position
        return copy

    def reset(self) -> None:
        """Forget everything, in place."""
        for tensor in self.tensors.values():
            tensor.zero_()
        self.num_tokens = 0
