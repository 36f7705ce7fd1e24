"""A built block: norm, parallel mixers, residual; norm, channel mixer, residual.

The decoder runs the mixers, since they may read other blocks' features; what stands around them,
how their outputs become one and the whole second half are here. See `BlockSpec` for the meaning of
each setting.

Shape suffixes: B batch, T time, D model width.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from archloop.blocks.linear import Linear
from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops.multiply import scaled
from archloop.blocks.stream import Stream
from archloop.stack.cost import channel_config, input_width, mixer_config, num_mixer_norms
from archloop.stack.spec import BlockSpec, StackSpec


class Block(nn.Module):
    """The modules of one block.

    Args:
        spec: of the block.
        stack: of the decoder, for the width and the norms' epsilon.
        index: of the block in the stack.

    Raises:
        UserError: an unknown mixer or a setting that cannot be built.
    """

    def __init__(self, spec: BlockSpec, stack: StackSpec, index: int) -> None:
        super().__init__()
        width = stack.d_model
        norm_of = partial(RMSNorm, eps=stack.norm_eps, offset=stack.norm_offset)
        norm = partial(norm_of, width)
        self.spec = spec
        self.mixers = nn.ModuleList(
            mixer_config(mixer).build(
                width, index, stack.num_blocks, consumer=mixer.state_from is not None
            )
            for mixer in spec.mixers
        )
        self.mixer_norm = norm_of(input_width(stack, spec)) if spec.mixers else None
        self.output_norms = nn.ModuleList(norm() for _ in range(num_mixer_norms(spec)))
        self.mixer_post_norm = norm() if spec.mixers and spec.post_norms else None
        channel = spec.channel_mixer
        self.channel_mixer = None
        if channel is not None:
            self.channel_mixer = channel_config(channel).build(width, index, stack.num_blocks)
        self.channel_norm = norm() if channel else None
        self.channel_post_norm = norm() if channel and spec.post_norms else None
        self.side_proj = Linear(width, width) if spec.side else None

    def take_norms(self, lender: "Block") -> None:
        """Have another block's norms for one's own."""
        self.mixer_norm, self.channel_norm = lender.mixer_norm, lender.channel_norm
        self.output_norms = lender.output_norms
        self.mixer_post_norm = lender.mixer_post_norm
        self.channel_post_norm = lender.channel_post_norm

    def mixers_read(self, stream: Stream) -> Tensor | None:
        """The normed input of all mixers, (..., input width); None where there are none."""
        if self.mixer_norm is None:
            return None
        return stream.normed(self.mixer_norm, in_side=self.spec.side)

    def mixer_input(self, h: Tensor, slot: int) -> Tensor:
        """What a mixer is given of the normed input, (..., D) both."""
        return scaled(h, self.spec.mixers[slot].input_multiplier)

    def add_mixed(self, stream: Stream, outputs: Sequence[Tensor]) -> None:
        """Combine the mixers' outputs and add them to the residual stream, (..., D) each."""
        if self.output_norms:
            outputs = [norm(y) for norm, y in zip(self.output_norms, outputs, strict=True)]
        branches = [
            scaled(y, mixer.multiplier) for y, mixer in zip(outputs, self.spec.mixers, strict=True)
        ]
        total = branches[0]
        for y in branches[1:]:
            total = total + y
        if self.spec.combine != "sum":
            total = scaled(total, 1 / len(branches))
        self._add(stream, total, self.mixer_post_norm, ends=self.channel_mixer is None)

    def add_channel(self, stream: Stream) -> None:
        """The channel mixer's half of the block."""
        channel = self.spec.channel_mixer
        if channel is None or self.channel_mixer is None or self.channel_norm is None:
            return
        if stream.inside is None:
            h = stream.normed(self.channel_norm, in_side=self.spec.side)
        else:
            h, stream.inside = self.channel_norm(stream.inside), None
        y = scaled(self.channel_mixer(h), channel.multiplier)
        self._add(stream, y, self.channel_post_norm, ends=True)

    def channel(self, x: Tensor) -> Tensor:
        """`add_channel` alone, (..., D) to the same."""
        stream = Stream(x)
        self.add_channel(stream)
        return stream.plain()

    def _add(self, stream: Stream, y: Tensor, post_norm: nn.Module | None, *, ends: bool) -> None:
        """A half's output to where it belongs; `ends`: it is the block's last half."""
        y = scaled(y if post_norm is None else post_norm(y), self.spec.residual_multiplier)
        if self.side_proj is None:
            stream.add(y)
        elif ends:
            stream.leave(self.side_proj(y))
        else:
            stream.inside = y
