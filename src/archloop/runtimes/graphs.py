"""A decoder as one graph with its state as inputs and outputs, which exporters can trace.

The graph takes in T tokens (T = 1 is a decode step) after the `length` that the state holds, and
gives the most likely next token, the logits that chose it, and every tensor of the state as it is
afterwards. Engines keep these tensors from call to call; nothing of them is on the host's mind.

Shape suffixes: B batch (1), T time, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from archloop.blocks.base import Span, State
from archloop.stack.decoder import Decoder
from archloop.stack.state import DecoderState

TRACED_SLOTS, _MORE_SLOTS = 4096, 4160
"""Tokens that a state has room for while it is traced; engines may hold any number."""
IDS, LENGTH, TOKEN, LOGITS = "ids", "length", "token", "logits"


class Held(NamedTuple):
    """One tensor of the state as the graph names it: ``name`` comes in, ``name + "_next"`` out.

    Attributes:
        shape: for the number of slots that the graph was traced with.
        slots: axis that is as long as the state has room for tokens; None where none is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    slots: int | None

    @property
    def next_name(self) -> str:
        """Of the output."""
        return f"{self.name}_next"


class StateGraph(nn.Module):
    """What is traced.

    Args:
        decoder: in evaluation mode.

    Attributes:
        held: the state's tensors, in the order in which they come in and go out.
        empty: an empty state for `TRACED_SLOTS` tokens, in the same order.
        states: the same by mixer.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        state, longer = (decoder.init_state(1, slots) for slots in (TRACED_SLOTS, _MORE_SLOTS))
        self._keys = [(key, name) for key, own in state.mixers.items() for name in own.tensors]
        self.states = state.mixers
        self.empty = [state.mixers[key][name] for key, name in self._keys]
        self.held = [
            Held(
                f"state_{index}_{slot}_{name}",
                tuple(tensor.shape),
                tensor.dtype,
                _longer_axis(tensor, longer.mixers[index, slot][name]),
            )
            for ((index, slot), name), tensor in zip(self._keys, self.empty, strict=True)
        ]

    def forward(
        self, ids_BT: Tensor, length_B: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Token (B,), logits (B, V), then the state's tensors in the order of `held`."""
        state = self._state(length_B, tensors)
        steps_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        span = Span(length_B[:, None] + steps_T)
        hidden_BTD = self.decoder.through_blocks(ids_BT, state, span)
        logits_BV = self.decoder.logits(hidden_BTD[:, -1])
        after = [state.mixers[key][name] for key, name in self._keys]
        return (logits_BV.argmax(-1), logits_BV, *after)

    def _state(self, length_B: Tensor, tensors: Sequence[Tensor]) -> DecoderState:
        """The state that the inputs hold."""
        room = TRACED_SLOTS
        for held, tensor in zip(self.held, tensors, strict=True):
            if held.slots is not None:
                room = tensor.shape[held.slots]
        given = dict(zip(self._keys, tensors, strict=True))
        mixers = {}
        for key, empty in self.states.items():
            mixers[key] = state_of(empty, [given[key, name] for name in empty.tensors], room)
        state = DecoderState(length_B.clone(), mixers, room)
        state.freeze()
        return state


def state_of(empty: State, tensors: Sequence[Tensor], room: int) -> State:
    """A state for `room` tokens on copies of tensors, in the order of those of an empty one.

    Mixers write in place, and a graph's inputs stay as they are.
    """
    own = {name: tensor.clone() for name, tensor in zip(empty.tensors, tensors, strict=True)}
    state = State(room, **own)
    state.static, state.by_position = True, empty.by_position
    return state


def _longer_axis(tensor: Tensor, longer: Tensor) -> int | None:
    """The axis in which a state for more tokens is larger."""
    differ = [i for i, (a, b) in enumerate(zip(tensor.shape, longer.shape, strict=True)) if a != b]
    assert len(differ) <= 1, f"{tensor.shape} and {longer.shape} differ in several axes"
    return differ[0] if differ else None
