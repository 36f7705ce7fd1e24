"""A mixer without kernels of its own, its decode step compiled to a handful of them.

Written as PyTorch, a step of one token is 10 to 40 small kernels, and starting each takes the time
of reading several megabytes. PyTorch's compiler makes a handful of them. Weights and state are
inputs of the compiled step, so equal blocks share one, in this process and, through the
compiler's cache on disk, in the next. Only a captured step is compiled: one that runs by itself, as
in tests and drafts, is rare and stays as it is written.

Shape suffixes: B batch, D model width.
"""

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from archloop.blocks.base import SequenceMixer, State
from archloop.runtimes.cuda.half import Call, PlainMixer
from archloop.runtimes.cuda.row import Norm
from archloop.stack.block import Block
from archloop.stack.decoder import Decoder

MOST_STEPS = 256
"""Steps that a process compiles: one for each block config, batch size and context."""


class CompiledMixer(PlainMixer):
    """As `PlainMixer`, for a block of one mixer whose output only a norm keeps from the stream."""

    def __init__(self, decoder: Decoder, index: int, block: Block, norm: Norm) -> None:
        super().__init__(decoder, index, block, norm)
        self.mixer = decoder.mixer(index, 0)

    def _step(self, x_BD: Tensor, call: Call) -> None:
        own = call.state.mixers[self.index, 0]
        if not (own.static and _worth(x_BD)) or type(self.mixer) in _uncompilable:
            super()._step(x_BD, call)
            return
        lengths_B = call.state.lengths_B
        norms = self.block.mixer_norm, self.block.mixer_post_norm
        limits: Any = torch._dynamo.config
        try:
            with limits.patch(recompile_limit=MOST_STEPS, accumulated_recompile_limit=MOST_STEPS):
                y_BD = _compiled()(
                    *norms, self.mixer, x_BD, own.tensors, own.max_context, lengths_B
                )
        except TorchDynamoException as error:
            # A mixer that this PyTorch cannot compile is slower, not refused.
            reason = str(error).partition("\n")[0]
            warnings.warn(f"the step of {self.mixer.name} runs as written: {reason}", stacklevel=2)
            _uncompilable.add(type(self.mixer))
            super()._step(x_BD, call)
            return
        x_BD.copy_(y_BD)


_uncompilable: set[type[SequenceMixer]] = set()


def _worth(x_BD: Tensor) -> bool:
    return x_BD.is_cuda


@cache
def _compiled() -> Any:
    return torch.compile(added, dynamic=False, fullgraph=True)


def added(
    norm: nn.Module,
    post_norm: nn.Module | None,
    mixer: SequenceMixer,
    x_BD: Tensor,
    tensors: Mapping[str, Tensor],
    max_context: int,
    lengths_B: Tensor,
) -> Tensor:
    """The stream (B, D) with a mixer's output for one token a row; its state is advanced."""
    state = State(max_context, **tensors)
    state.static = True
    y_BD = mixer.run_step(norm(x_BD), state, lengths_B)
    return x_BD + (y_BD if post_norm is None else post_norm(y_BD))


def alone(decoder: Decoder, index: int, block: Block) -> bool:
    """Whether a block has one mixer, read by nobody else, whose output is added unscaled."""
    spec = block.spec
    if len(block.mixers) != 1 or block.output_norms:
        return False
    mixer = spec.mixers[0]
    if {mixer.input_multiplier, mixer.multiplier, spec.residual_multiplier} != {1.0}:
        return False
    return mixer.state_from is None and not decoder.is_source(index, 0)
