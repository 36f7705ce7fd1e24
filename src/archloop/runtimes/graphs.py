"""A decoder as one graph with its state as inputs and outputs, which exporters can trace.

The graph takes in T tokens (T = 1 is a decode step) after the `length` that the state holds, and
gives the most likely next token, the logits that chose it, and every tensor of the state as it is
afterwards. Engines keep these tensors from call to call; nothing of them is on the host's mind.
The graph of a piece of a stack (`runtimes.pieces`) takes in or gives the residual stream instead.

Shape suffixes: B batch (1), T time, D model width, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from archloop.blocks.base import Features, Span, State
from archloop.blocks.stream import Stream
from archloop.runtimes.pieces import PartName
from archloop.stack.decoder import Decoder
from archloop.stack.state import DecoderState, MixerKey

TRACED_SLOTS, _MORE_SLOTS = 4096, 4160
"""Tokens that a state has room for while it is traced; engines may hold any number."""
IDS, LENGTH, TOKEN, LOGITS = "ids", "length", "token", "logits"
STREAM, STREAM_NEXT = "stream", "stream_next"
"""Of a piece: what comes in in place of ids, and what goes out in place of token and logits."""


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
        part: of a stack that the decoder is alone; None: it is a whole stack.

    Attributes:
        embeds: the graph starts from ids rather than from the stream.
        answers: it ends with a token and its logits rather than with the stream.
        held: the state's tensors, in the order in which they come in and go out.
        empty: an empty state for `TRACED_SLOTS` tokens, in the same order.
        states: the same by mixer.
    """

    def __init__(self, decoder: Decoder, part: PartName | None = None) -> None:
        super().__init__()
        self.decoder = decoder
        self.embeds, self.answers = part in (None, "embedding"), part in (None, "head")
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

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Of what comes in and of what goes out, in the order of `forward`."""
        given = [IDS if self.embeds else STREAM, LENGTH, *(held.name for held in self.held)]
        made = [TOKEN, LOGITS] if self.answers else [STREAM_NEXT]
        return given, [*made, *(held.next_name for held in self.held)]

    def forward(
        self, given: Tensor, length_B: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Token (B,) and logits (B, V), or the stream (B, T, D); then the state as in `held`.

        Args:
            given: ids (B, T), or the stream.
            length_B: tokens that the state holds.
            tensors: the state's, in the order of `held`.
        """
        decoder = self.decoder
        state = self._state(length_B, tensors)
        span = Span(length_B[:, None] + torch.arange(given.shape[1], device=given.device))
        stream = decoder.stream(given) if self.embeds else Stream(given)
        shared: dict[MixerKey, Features] = {}
        for index, block in enumerate(decoder.each_block()):
            decoder.mix(stream, index, block, state, span, shared)
            block.add_channel(stream)
        after = [state.mixers[key][name] for key, name in self._keys]
        if not self.answers:
            return (stream.plain(), *after)
        logits_BV = decoder.logits(stream.normed(decoder.norm)[:, -1])
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
