"""A decoder, or a part of one, as the two graphs that ExecuTorch runs: a pass and a step.

A pass takes in `PASS` tokens of which the first so many are real, a step takes in one. Every shape
is thus known when a graph is lowered, but the number of slots of caches. The state's tensors are
inputs that the graph changes in place: they belong to whoever runs it, who may empty, fill or copy
them, and both graphs work on the same ones.

Shape suffixes: B batch (1), T tokens (`PASS`), D model width, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from archloop.blocks.base import Span, State
from archloop.blocks.linear import Linear
from archloop.blocks.stream import Stream
from archloop.runtimes.pieces import PartName, adapted
from archloop.runtimes.pte import attention as executorch_attention
from archloop.runtimes.pte import cell as executorch_cell
from archloop.stack import cost
from archloop.stack.block import Block
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from archloop.stack.state import DecoderState, MixerKey

PASS = 64
"""Tokens of a pass: the chunk that most families work in anyway."""
PREFILL, DECODE = "prefill", "decode"
"""Names of the two methods of a program."""
_TRACED_SLOTS = 4096
"""A ring of recent tokens is as long as its window only where the traced state has room for it."""
_MOST_SLOTS = 2**20


class Tensors(NamedTuple):
    """One tensor of the state, as whoever runs the program allocates it.

    Attributes:
        name: block, slot and name in the mixer's state.
        shape: with any number where the slots stand.
        dtype: PyTorch's name.
        slots: axis of the slots; None where there is none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    slots: int | None

    def sized(self, num_slots: int) -> tuple[int, ...]:
        """Shape with so many slots."""
        return tuple(num_slots if i == self.slots else size for i, size in enumerate(self.shape))


def unsupported(spec: StackSpec) -> str | None:
    """Why a stack has no such graphs, or None."""
    for index, block in enumerate(spec.blocks):
        if block.side:
            return f"block {index} is a side block"
        for mixer in block.mixers:
            if adapted(mixer) or mixer.config.get("beside_embedding"):
                return f"block {index}: {mixer.name} has adapters, or reads the embedding"
            if mixer.name in executorch_attention.CACHES:
                continue
            # All but these caches are as large as they were traced.
            if cost.keeps_more_than(spec, mixer, _TRACED_SLOTS):
                return f"block {index}: {mixer.name} keeps more than {_TRACED_SLOTS:,} tokens"
    return None


class Part(nn.Module):
    """What is traced: a stretch of a decoder, from the embedding on or not, to the head or not.

    Args:
        decoder: in evaluation mode and float32; its mixers with caches are changed to use the
            engine's operators, those with cells to loop.
        halves: which halves of blocks, in order: a block's index, and True for its mixers, False
            for its channel mixer.
        embeds: starts from token ids rather than from the residual stream.
        answers: ends with the most likely token and its logits rather than with the stream.

    Attributes:
        held: the state's tensors in the order in which a graph takes them.
    """

    def __init__(
        self,
        decoder: Decoder,
        halves: Sequence[tuple[int, bool]],
        *,
        embeds: bool,
        answers: bool,
    ) -> None:
        super().__init__()
        self.decoder, self.halves = decoder, tuple(halves)
        self.embeds, self.answers = embeds, answers
        indices = {index for index, is_mixer in halves if is_mixer}
        empty = decoder.init_state(1, _TRACED_SLOTS)
        self._empty = {key: own for key, own in empty.mixers.items() if key[0] in indices}
        for index in indices:
            for slot in range(len(decoder.spec.blocks[index].mixers)):
                executorch_attention.fuse(decoder.mixer(index, slot))
                executorch_cell.loop(decoder.mixer(index, slot))
        # A module, so that it can be quantised; its weight is the embedding's where they are tied.
        self.head = Linear(decoder.spec.d_model, decoder.spec.vocab_size) if answers else None
        if self.head is not None:
            self.head.weight = decoder.output_weight
        self.held = [
            _described(key, self.decoder.mixer(*key).name, name, tensor)
            for key, own in self._empty.items()
            for name, tensor in own.tensors.items()
        ]

    def state(self, length_B: Tensor, tensors: Sequence[Tensor]) -> DecoderState:
        """The state on given tensors, which mixers change in place."""
        given: Iterator[Tensor] = iter(tensors)
        mixers = {}
        for key, empty in self._empty.items():
            own = State(empty.max_context, **{name: next(given) for name in empty.tensors})
            own.by_position = empty.by_position
            mixers[key] = own
        state = DecoderState(length_B.clone(), mixers, _TRACED_SLOTS)
        state.freeze()
        return state

    def examples(self) -> tuple[list[Tensor], list[Any]]:
        """Tensors of an empty state to trace with, and which of their axes are free."""
        slots = Dim("slots", min=2 * PASS, max=_MOST_SLOTS)
        tensors = [
            torch.zeros(each.sized(_TRACED_SLOTS), dtype=getattr(torch, each.dtype))
            for each in self.held
        ]
        return tensors, [None if each.slots is None else {each.slots: slots} for each in self.held]

    def weights(self) -> dict[int, Tensor]:
        """The parameters that the part's program holds: each once, by identity; the table by 0.

        The table of tokens' embeddings is there beside a head that it is tied to, of whose matrix
        XNNPACK has a copy of its own, in another order.
        """
        found: list[Tensor] = []
        if self.head is not None:
            found += [self.head.weight, *self.decoder.norm.parameters()]
        blocks = list(self.decoder.each_block())
        for index, is_mixer in self.halves:
            found += [
                parameter
                for name, parameter in blocks[index].named_parameters()
                if name.startswith("channel") != is_mixer
            ]
        table = {0: self.decoder.embedding.weight} if self.embeds else {}
        return {id(parameter): parameter for parameter in found} | table

    def through(
        self, stream: Stream, mix: Callable[[int, Block, dict[MixerKey, Any]], None]
    ) -> None:
        """Send the stream through all halves; `mix` does a block's mixers, by index."""
        shared: dict[MixerKey, Any] = {}
        blocks = list(self.decoder.each_block())
        for index, is_mixer in self.halves:
            if is_mixer:
                mix(index, blocks[index], shared)
            else:
                blocks[index].add_channel(stream)

    def end(self, stream: Stream, last_B: Tensor | None) -> tuple[Tensor, ...]:
        """What a graph gives: the stream, or token (B,) and logits (B, V)."""
        if not self.answers:
            return (stream.plain(),)
        hidden = stream.normed(self.decoder.norm)
        if last_B is not None:
            hidden = hidden.index_select(1, last_B)[:, 0]
        assert self.head is not None
        logits_BV = self.head(hidden)
        if (divisor := self.decoder.spec.logits_divisor) != 1.0:
            logits_BV = logits_BV / divisor
        return logits_BV.argmax(-1), logits_BV


class Pass(nn.Module):
    """A part's graph over `PASS` tokens."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def forward(
        self, given: Tensor, length_B: Tensor, real_B: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """`Part.end` after the first `real_B` of the ids (B, T), or of the stream (B, T, D)."""
        part, decoder = self.part, self.part.decoder
        state = part.state(length_B, tensors)
        span = Span(length_B[:, None] + torch.arange(PASS), None, real_B)
        stream = decoder.stream(given) if part.embeds else Stream(given)
        part.through(
            stream,
            lambda index, block, shared: decoder.mix(stream, index, block, state, span, shared),
        )
        return part.end(stream, real_B - 1)


class Step(nn.Module):
    """A part's graph for one token."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def forward(
        self, given: Tensor, length_B: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """`Part.end` after one token's id (B,), or its stream (B, D)."""
        part, decoder = self.part, self.part.decoder
        state = part.state(length_B, tensors)
        stream = decoder.stream(given) if part.embeds else Stream(given)
        part.through(
            stream,
            lambda index, block, shared: decoder.mix_step(
                stream, index, block, state, length_B, shared
            ),
        )
        return part.end(stream, None)


def whole(decoder: Decoder) -> Part:
    """All of a copy of a decoder."""
    decoder = copy.deepcopy(decoder).float().eval()
    halves = []
    for index, block in enumerate(decoder.spec.blocks):
        halves += [(index, True)] if block.mixers else []
        halves += [(index, False)] if block.channel_mixer is not None else []
    return Part(decoder, halves, embeds=True, answers=True)


def of_piece(decoder: Decoder, part: PartName) -> Part:
    """The part that a piece is, of a copy of the piece's decoder."""
    halves = {"mixers": [(0, True)], "channel": [(0, False)]}.get(part, [])
    decoder = copy.deepcopy(decoder).float().eval()
    return Part(decoder, halves, embeds=part == "embedding", answers=part == "head")


def traced(part: Part) -> dict[str, ExportedProgram]:
    """The two graphs by method."""
    tensors, free = part.examples()
    width, length_B = part.decoder.spec.d_model, torch.zeros(1, dtype=torch.int64)
    # Tensors of their own: one that is given twice is one input.
    given_BT, given_B = torch.zeros(1, PASS, dtype=torch.int64), torch.zeros_like(length_B)
    if not part.embeds:
        given_BT, given_B = torch.zeros(1, PASS, width), torch.zeros(1, width)
    with torch.no_grad():
        return {
            PREFILL: torch.export.export(
                Pass(part),
                (given_BT, length_B, length_B + PASS, tensors),
                dynamic_shapes=(None, None, None, free),
                strict=False,
            ),
            DECODE: torch.export.export(
                Step(part),
                (given_B, length_B, tensors),
                dynamic_shapes=(None, None, free),
                strict=False,
            ),
        }


def _described(key: MixerKey, mixer: str, name: str, tensor: Tensor) -> Tensors:
    """How a tensor of a mixer's state is held here."""
    shape, slots = tuple(tensor.shape), None
    if name in executorch_attention.CACHES.get(mixer, ()):
        # (B, M, S, H) of a mixer with heads, (B, S, K) of one with latents.
        shape = (1, shape[-2], shape[1] if len(shape) == 4 else 1, shape[-1])
        slots = 1
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Tensors(f"{key[0]}.{key[1]}.{name}", shape, dtype, slots)
