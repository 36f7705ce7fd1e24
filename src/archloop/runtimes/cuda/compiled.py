"""Halves of a block without kernels of their own, their decode step compiled to a handful of them.

Written as PyTorch, a step of one token is 10 to 40 small kernels, and starting each takes the time
of reading several megabytes. PyTorch's compiler makes a handful of them. Weights and state are
inputs of the compiled step, so equal blocks share one, in this process and, through the
compiler's cache on disk, in the next. Only a captured step is compiled: one that runs by itself, as
in tests and drafts, is rare and stays as it is written.

Shape suffixes: B batch, D model width.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from archloop.blocks.base import SequenceMixer, State
from archloop.blocks.stream import Stream
from archloop.runtimes.cuda.half import Call, PlainChannel, PlainMixer
from archloop.runtimes.cuda.row import Norm
from archloop.stack.block import Block
from archloop.stack.decoder import Decoder

MOST_STEPS = 256
"""Steps that a process compiles: one for each block config, batch size and context."""


class CompiledMixer(PlainMixer):
    """As `PlainMixer`, for a block whose mixers have their states for themselves."""

    def __init__(self, decoder: Decoder, index: int, block: Block, norm: Norm) -> None:
        super().__init__(decoder, index, block, norm)
        self.mixers = [decoder.mixer(index, slot) for slot in range(len(block.mixers))]

    def _step(self, x_BD: Tensor, call: Call) -> None:
        own = [call.state.mixers[self.index, slot] for slot in range(len(self.mixers))]
        if not (call.state.clock.static and _worth(x_BD)):
            super()._step(x_BD, call)
            return
        names = [mixer.name for mixer in self.block.spec.mixers]
        y_BD = _compiled(
            mixed, names, x_BD, self.block, self.mixers, [state.tensors for state in own],
            call.state.max_context, call.state.lengths_B,
        )  # fmt: skip
        if y_BD is None:
            super()._step(x_BD, call)
        else:
            x_BD.copy_(y_BD)


class CompiledChannel(PlainChannel):
    """As `PlainChannel`, for a channel mixer that leaves the host alone."""

    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        y_XD, channel = None, self.block.spec.channel_mixer
        if call.time is None and call.state.clock.static and _worth(x_XD):
            assert channel is not None
            y_XD = _compiled(channelled, [channel.name], x_XD, self.block)
        if y_XD is None:
            return super().rows(x_XD, h_XD, call, after)
        x_XD.copy_(y_XD)
        return None


_uncompilable: set[str] = set()
"""Names of mixers and channel mixers that this PyTorch cannot compile."""


def _worth(x_BD: Tensor) -> bool:
    return x_BD.is_cuda


def _compiled(
    step: Callable[..., Tensor], names: Sequence[str], x_BD: Tensor, *arguments: Any
) -> Tensor | None:
    """The stream after a compiled step; None where PyTorch cannot compile what is named."""
    if not _uncompilable.isdisjoint(names):
        return None
    limits: Any = torch._dynamo.config
    try:
        with limits.patch(recompile_limit=MOST_STEPS, accumulated_recompile_limit=MOST_STEPS):
            y_BD: Tensor = _compiler()(step)(x_BD, *arguments)
    except TorchDynamoException as error:
        # What this PyTorch cannot compile is slower, not refused.
        reason = str(error).partition("\n")[0]
        warnings.warn(f"the step of {' and '.join(names)} runs as written: {reason}", stacklevel=2)
        _uncompilable.update(names)
        return None
    return y_BD


@cache
def _compiler() -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    return cache(partial(torch.compile, dynamic=False, fullgraph=True))


def mixed(
    x_BD: Tensor,
    block: Block,
    mixers: Sequence[SequenceMixer],
    tensors: Sequence[Mapping[str, Tensor]],
    max_context: int,
    lengths_B: Tensor,
) -> Tensor:
    """The stream (B, D) with its mixers' output for one token a row; their states are advanced."""
    stream, outputs = Stream(x_BD), []
    h_BD = block.mixers_read(stream)
    assert h_BD is not None
    for slot, mixer in enumerate(mixers):
        state = State(max_context, **tensors[slot])
        state.static = True
        outputs.append(mixer.run_step(block.mixer_input(h_BD, slot), state, lengths_B))
    block.add_mixed(stream, outputs)
    return stream.plain()


def channelled(x_BD: Tensor, block: Block) -> Tensor:
    """The stream (B, D) with its channel mixer's output."""
    return block.channel(x_BD)


def by_itself(decoder: Decoder, index: int, block: Block) -> bool:
    """Whether no other block has a part in what the mixers of this one compute.

    Neither features nor its place in the stack: by these each block would be compiled anew.
    """
    slots = enumerate(block.spec.mixers)
    return not any(
        mixer.state_from is not None
        or decoder.is_source(index, slot)
        or decoder.mixer(index, slot).placed
        for slot, mixer in slots
    )
