"""Parts of a decoder that cannot be traced for any number of tokens, and their traces for ONNX.

Most families compute a prompt in chunks of their own, and a chunk's length decides which products
there are. Such a mixer is traced twice, for a fixed number of tokens each: its decode step, and its
pass over `PASS` tokens of which the first so many are real. The experts of a MoE run on as many
tokens as the router sends them. While the decoder as a whole is traced, these parts are nodes
without content (`placeholders`); `onnx.filling` writes their content afterwards.

Shape suffixes: B batch (1), T time, D model width, C tokens of a pass, X tokens of all rows,
E experts, K experts of a token.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from archloop.blocks.base import SequenceMixer, Span, State
from archloop.blocks.channel_mixers.moe import MoE
from archloop.runtimes.graphs import state_of
from archloop.stack.decoder import Decoder

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "archloop"
PASS = 64
"""Tokens of a pass: the chunk that most families work in anyway."""


class Placed(NamedTuple):
    """A mixer and an empty state of the sizes that it is traced with."""

    mixer: SequenceMixer
    state: State


class Step(nn.Module):
    """A mixer's decode step between tensors alone."""

    def __init__(self, held: Placed) -> None:
        super().__init__()
        self.mixer, self.empty = held

    def forward(
        self, x_B1D: Tensor, length_B: Tensor, tensors: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """The state's tensors after one token, then its output (B, 1, D)."""
        state = state_of(self.empty, tensors, self.empty.max_context)
        y_BD = self.mixer.mix_step(x_B1D[:, 0], state, length_B)
        return (*state.tensors.values(), y_BD[:, None])


class Pass(nn.Module):
    """A mixer's pass over `PASS` tokens between tensors alone."""

    def __init__(self, held: Placed) -> None:
        super().__init__()
        self.mixer, self.empty = held

    def forward(
        self, x_BCD: Tensor, length_B: Tensor, tensors: tuple[Tensor, ...], real_B: Tensor
    ) -> tuple[Tensor, ...]:
        """The state's tensors after the first `real_B` tokens, then their outputs (B, C, D)."""
        state = state_of(self.empty, tensors, self.empty.max_context)
        span = Span(length_B[:, None] + torch.arange(PASS), None, real_B)
        y_BCD = self.mixer.mix(x_BCD, state, span)
        return (*state.tensors.values(), y_BCD)


@contextmanager
def placeholders(decoder: Decoder, parts: Mapping[str, Placed]) -> Iterator[None]:
    """While inside, these mixers and all experts of a decoder run as nodes of domain `DOMAIN`."""
    moes = [module for module in decoder.modules() if isinstance(module, MoE)]
    for name, placed in parts.items():
        placed.mixer.form = _MixerPlaceholder(name)
    for moe in moes:
        moe.form = _experts_placeholder
    try:
        yield
    finally:
        for placed in parts.values():
            placed.mixer.form = None
        for moe in moes:
            moe.form = None


def _experts_placeholder(
    x_XD: Tensor, weights_XK: Tensor, experts_XK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Stands for the experts of a MoE, whose router has chosen already: `moe.Experts`."""
    mixed_XE = x_XD.new_zeros(x_XD.shape[0], gate_up.shape[0])
    hits_XE = mixed_XE.scatter(1, experts_XK, 1.0)
    mixed_XE = mixed_XE.scatter(1, experts_XK, weights_XK)
    y_XD: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::Experts",
        (x_XD, mixed_XE, hits_XE, gate_up, down),
        {"gated": int(gate_up.shape[1] == 2 * down.shape[2])},
        dtype=x_XD.dtype,
        shape=x_XD.shape,
        version=1,
    )
    return y_XD


class _MixerPlaceholder:
    """Stands for `SequenceMixer.mix`: a node without content, with results of the right shapes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x_BTD: Tensor, state: State, span: Span) -> Tensor:
        given = list(state.tensors.values())
        after = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::Mixed",
            (x_BTD, span.positions_BT[:, 0], *given),
            {"part": self.name},
            dtypes=[x.dtype for x in (*given, x_BTD)],
            shapes=[x.shape for x in (*given, x_BTD)],
            version=1,
        )
        for tensor, new in zip(given, after[:-1], strict=True):
            tensor.copy_(new)
        return after[-1]


def traced(part: Step | Pass, num_tokens: int) -> "ir.Graph":
    """A graph; its inputs are x, length, the state's tensors and, of a pass, the real tokens."""
    from onnx_ir.passes import common

    whole = torch.zeros(1, dtype=torch.int64)
    x_BTD = torch.zeros(1, num_tokens, part.mixer.d_model)
    given = [x_BTD, whole, tuple(part.empty.tensors.values())]
    given += [whole + num_tokens] if isinstance(part, Pass) else []
    with torch.no_grad():
        program = torch.export.export(part, tuple(given), strict=False)
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    # A state that goes out as it came in must have a node of its own to come from.
    common.OutputFixPass()(made.model)
    return made.model.graph
