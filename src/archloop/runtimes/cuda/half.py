"""Half a block as the engine runs it: a mixer or channel mixer with its norm and its residual.

A half adds its output to the residual stream in place. The plain halves here run the model's own
modules and so serve every stack; a fused half (`conv`, `attention`, `feed_forward`, `experts`) runs
kernels over a form that the mixer handed over (`blocks.fast`).

Shape suffixes: B batch, T time, X flattened tokens, D model width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from archloop.blocks.base import Features, Span, State
from archloop.blocks.stream import Stream
from archloop.runtimes.cuda.row import Norm, Row
from archloop.stack.block import Block
from archloop.stack.cost import mixer_config
from archloop.stack.decoder import Decoder
from archloop.stack.state import DecoderState, MixerKey


@dataclass(frozen=True)
class Call:
    """One pass of tokens through the halves.

    Attributes:
        state: of the rows in this pass.
        held: tokens in each row before a prompt; unused in a step.
        time: tokens of a prompt; None in a decode step.
        real_B: tokens of each row of a prompt that are no padding; None: all.
        shared: features of mixers that others read, of this pass.
    """

    state: DecoderState
    held: int = 0
    time: int | None = None
    real_B: Tensor | None = None
    shared: dict[MixerKey, Features] = field(default_factory=dict)


class Half(ABC):
    """Half a block.

    Attributes:
        is_fused: kernels run it, and `rows` wants the stream normed by `norm`.
        is_mixer: it is the half of the mixers, which move information along time.
        norm: the norm through which the half reads the stream.
        asks_host: for a prompt, the host waits for numbers from the card (`ChannelMixer`).
    """

    is_fused = True
    is_mixer = False
    asks_host = False
    norm: Norm

    @abstractmethod
    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        """Add the output for many tokens to `x_XD`, in place.

        Args:
            x_XD: the stream, of a prompt's tokens row by row, or of one token a row.
            h_XD: the stream normed; None for a plain half.
            call: whose tokens these are.
            after: the norm that reads the stream next.

        Returns:
            The stream normed by `after`, where that came for nothing.
        """

    @abstractmethod
    def one(self, row: Row, call: Call) -> None:
        """As `rows` in a decode step of one row, with the norm."""

    def tail(self, time: int) -> int:
        """How many of a prompt's last tokens decide the last token's output and the state."""
        return time

    def touched(self, state: DecoderState) -> list[Tensor]:
        """Tensors of state that a decode step from an empty state overwrites."""
        del state
        return []


class PlainMixer(Half):
    """The mixers of a block by their own `mix` and `mix_step`, whatever they are."""

    is_fused = False
    is_mixer = True

    def __init__(self, decoder: Decoder, index: int, block: Block, norm: Norm) -> None:
        self.decoder, self.index, self.block, self.norm = decoder, index, block, norm

    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        del h_XD, after
        if call.time is None:
            self._step(x_XD, call)
            return None
        x_BTD = x_XD.view(-1, call.time, x_XD.shape[-1])
        steps_T = torch.arange(call.time, device=x_XD.device)
        span = Span(call.state.lengths_B[:, None] + steps_T, lengths_B=call.real_B)
        stream = Stream(x_BTD)
        self.decoder.mix(stream, self.index, self.block, call.state, span, call.shared)
        x_BTD.copy_(stream.plain())
        return None

    def one(self, row: Row, call: Call) -> None:
        self._step(row.settled()[None], call)

    def _step(self, x_BD: Tensor, call: Call) -> None:
        stream = Stream(x_BD)
        lengths_B = call.state.lengths_B
        self.decoder.mix_step(stream, self.index, self.block, call.state, lengths_B, call.shared)
        x_BD.copy_(stream.plain())

    def touched(self, state: DecoderState) -> list[Tensor]:
        found = []
        for slot, mixer in enumerate(self.block.spec.mixers):
            own = state.mixers.get((self.index, slot))
            if own is not None:
                config = mixer_config(mixer)
                shapes = (config.state_layout(self.decoder.spec.d_model, n) for n in (1, 2))
                short, long = ({k: held.shape for k, held in layout.items()} for layout in shapes)
                found += [_first_slot(own, name, short[name], long[name]) for name in own.tensors]
        return found


class PlainChannel(Half):
    """A block's channel mixer by its own `forward`, whatever it is."""

    is_fused = False

    def __init__(self, block: Block, norm: Norm) -> None:
        self.block, self.norm = block, norm
        assert block.channel_mixer is not None
        self.asks_host = block.channel_mixer.asks_host

    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        del h_XD, call, after
        x_XD.copy_(self.block.channel(x_XD))
        return None

    def one(self, row: Row, call: Call) -> None:
        self.rows(row.settled()[None], None, call, self.norm)


def _first_slot(own: State, name: str, short: tuple[int, ...], long: tuple[int, ...]) -> Tensor:
    """A tensor of state; of a cache by position, the slot that the first token takes.

    The shapes, for one token and for two, differ in the dimension of the slots.
    """
    tensor = own[name]
    if name not in own.by_position or short == long:
        return tensor
    slots = next(i for i, (a, b) in enumerate(zip(short, long, strict=True)) if a != b)
    return tensor.narrow(slots + 1, 0, 1)
