"""A stack with side blocks, or with blocks that read the embedding: all as written, in one half.

What these need goes along beside the residual stream, and halves of blocks hand on nothing but the
stream. So the whole stack is one half: captured as any other, without fused kernels.

Shape suffixes: as in `half`.
"""

import torch
from torch import Tensor

from archloop.blocks.base import Features, Span
from archloop.blocks.stream import Stream
from archloop.runtimes.cuda.half import Call, Half, PlainMixer
from archloop.runtimes.cuda.row import Norm, Row
from archloop.stack.decoder import Decoder
from archloop.stack.state import DecoderState, MixerKey


class WholeStack(Half):
    """Every block of a decoder.

    Args:
        decoder: has at least one block.
        norm: any; nobody norms for a half that runs as written.
    """

    is_fused = False
    is_mixer = True

    def __init__(self, decoder: Decoder, norm: Norm) -> None:
        self.decoder, self.norm = decoder, norm
        self.blocks = list(decoder.each_block())
        channels = [block.channel_mixer for block in self.blocks]
        self.asks_host = any(channel.asks_host for channel in channels if channel is not None)

    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        del h_XD, after
        shared: dict[MixerKey, Features] = {}
        lengths_B = call.state.lengths_B
        x = x_XD if call.time is None else x_XD.view(-1, call.time, x_XD.shape[-1])
        stream = Stream(x, x.clone())
        for index, block in enumerate(self.blocks):
            if call.time is None:
                self.decoder.mix_step(stream, index, block, call.state, lengths_B, shared)
            else:
                steps_T = torch.arange(call.time, device=x.device)
                span = Span(lengths_B[:, None] + steps_T, lengths_B=call.real_B)
                self.decoder.mix(stream, index, block, call.state, span, shared)
            block.add_channel(stream)
        x.copy_(stream.read())
        return None

    def one(self, row: Row, call: Call) -> None:
        self.rows(row.settled()[None], None, call, self.norm)

    def touched(self, state: DecoderState) -> list[Tensor]:
        halves = [
            PlainMixer(self.decoder, index, block, self.norm)
            for index, block in enumerate(self.blocks)
        ]
        return [tensor for half in halves for tensor in half.touched(state)]
