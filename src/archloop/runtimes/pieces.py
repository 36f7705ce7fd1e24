"""A stack as pieces that are lowered once each: embedding, halves of blocks, head.

A search builds thousands of stacks from few halves of blocks. Lowering a half for an engine takes
seconds to a minute, putting lowered halves together takes less than one. A piece is therefore
known by what it computes alone: a stack of one block, with one half of it, at the stack's width.
Its random weights follow from that too, so that all artifacts with this piece can be compared with
one and the same eager module.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from archloop import registry
from archloop.runtimes.random_weights import build_random
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

if TYPE_CHECKING:
    from archloop.stack.decoder import Decoder

PartName = Literal["embedding", "mixers", "channel", "head"]
_NO_VOCABULARY = 1
"""Size of the vocabulary of a piece that never sees a token."""


class Piece(NamedTuple):
    """What is lowered.

    Attributes:
        part: which part of its stack.
        spec: a stack with that part alone; blocks are none or one.
    """

    part: PartName
    spec: StackSpec

    @property
    def digest(self) -> str:
        """Short hash of what it computes."""
        return hashlib.sha256(f"{self.part} {self.spec.to_json()}".encode()).hexdigest()[:16]

    @property
    def seed(self) -> int:
        """Seed of its random weights; embedding and head have the same, since they may be tied."""
        return int(hashlib.sha256(self.spec.to_json().encode()).hexdigest()[:8], 16)


class Placed(NamedTuple):
    """A piece in a stack.

    Attributes:
        piece: what is there.
        block: index of its block; None of the embedding and the head.
        weights: which copy of the piece's weights it has: pieces of one stack that share weights
            say the same.
    """

    piece: Piece
    block: int | None
    weights: int


class Lowered(NamedTuple):
    """A piece in a stack, lowered for an engine.

    Attributes:
        placed: the piece and its place.
        home: folder of its files, which are left as they are.
        weight_bytes: of its weights, by precision.
    """

    placed: Placed
    home: Path
    weight_bytes: dict[str, int]


def summed_bytes(lowered: Sequence[Lowered]) -> dict[str, int]:
    """Weight bytes of a stack by precision, of each copy once."""
    copies = {(each.home, each.placed.weights): each.weight_bytes for each in lowered}
    total: dict[str, int] = {}
    for sizes in copies.values():
        for precision, size in sizes.items():
            total[precision] = total.get(precision, 0) + size
    return total


def inseparable(spec: StackSpec) -> str | None:
    """Why a stack is not made of pieces, or None."""
    from archloop.stack import cost

    for index, block in enumerate(spec.blocks):
        if block.side or block.norms_from is not None:
            return f"block {index} is a side block, or has the norms of another"
        if cost.input_width(spec, block) != spec.d_model:
            return f"block {index} reads the embedding beside the stream"
        for part in (*block.mixers, block.channel_mixer):
            if part is not None and part.weights_from is not None and adapted(part):
                return f"block {index} has adapters of its own beside the weights of another"
        for mixer in block.mixers:
            if mixer.state_from is not None:
                return f"block {index} reads the state of block {mixer.state_from}"
            if registry.get("mixers", mixer.name).placed:
                return f"block {index}: {mixer.name} depends on its place in the stack"
    return _lent_apart(spec)


def _lent_apart(spec: StackSpec) -> str | None:
    """Which half has weights of another that is no copy of it, or None.

    A piece's random weights follow from all that it computes, so two halves that compute different
    things would want different numbers in the one copy of the weights that they share.
    """
    for index, block in enumerate(spec.blocks):
        if len({mixer.weights_from for mixer in block.mixers}) > 1:
            return f"block {index} has weights of another block in some of its mixers alone"
    found = [each for each in pieces(spec) if each.block is not None]
    at = {(each.piece.part, each.block): each.piece for each in found}
    for each in found:
        if at[each.piece.part, each.weights] != each.piece:
            return f"block {each.block} has weights of block {each.weights} and is no copy of it"
    return None


def adapted(part: MixerSpec | ChannelMixerSpec) -> bool:
    """Whether a mixer or channel mixer has adapters (`blocks.adapter`)."""
    return bool(part.config.get("adapter_rank"))


def pieces(spec: StackSpec) -> list[Placed]:
    """The pieces of a stack in order; it is not `inseparable`."""
    found = [Placed(Piece("embedding", spec.replace(blocks=(), max_context=None)), None, 0)]
    for index, block in enumerate(spec.blocks):
        if block.mixers:
            mixers = tuple(
                mixer.model_copy(update={"weights_from": None}) for mixer in block.mixers
            )
            lenders = {mixer.weights_from for mixer in block.mixers}
            # Weights are shared by the whole half, or the half has its own copy of all of them.
            lender = lenders.pop() if len(lenders) == 1 else None
            half = block.model_copy(update={"mixers": mixers, "channel_mixer": None})
            found.append(_placed("mixers", spec, half, index, lender))
        if block.channel_mixer is not None:
            channel = block.channel_mixer.model_copy(update={"weights_from": None})
            half = BlockSpec(
                channel_mixer=channel,
                post_norms=block.post_norms,
                residual_multiplier=block.residual_multiplier,
            )
            found.append(_placed("channel", spec, half, index, block.channel_mixer.weights_from))
    head = spec.replace(blocks=(), max_context=None)
    return [*found, Placed(Piece("head", head), None, 0)]


def _placed(
    part: PartName, spec: StackSpec, half: BlockSpec, index: int, lender: int | None
) -> Placed:
    alone = StackSpec(
        d_model=spec.d_model,
        vocab_size=_NO_VOCABULARY,
        blocks=(half,),
        norm_eps=spec.norm_eps,
        norm_offset=spec.norm_offset,
    )
    return Placed(Piece(part, alone), index, index if lender is None else lender)


def build(piece: Piece) -> "Decoder":
    """The decoder of a piece's stack, with the piece's weights."""
    return build_random(piece.spec, piece.seed)


def assembled(spec: StackSpec) -> "Decoder":
    """The decoder of a stack whose weights are those of its pieces."""
    import torch

    from archloop.runtimes._torch_weights import unfilled

    decoder = unfilled(spec)
    built: dict[Piece, Decoder] = {}
    with torch.no_grad():
        for placed in pieces(spec):
            if placed.piece not in built:
                built[placed.piece] = build(placed.piece)
            source = built[placed.piece]
            if placed.block is not None:
                _copy_half(source, decoder, placed.piece.part, placed.block)
            elif placed.piece.part == "embedding":
                decoder.embedding.load_state_dict(source.embedding.state_dict())
            else:
                decoder.norm.load_state_dict(source.norm.state_dict())
                if decoder.head is not None and source.head is not None:
                    decoder.head.load_state_dict(source.head.state_dict())
    return decoder


def _copy_half(source: "Decoder", decoder: "Decoder", part: PartName, index: int) -> None:
    """Give a half of a block the weights of its piece."""
    given, wanted = next(iter(source.each_block())), list(decoder.each_block())[index]
    there = wanted.state_dict()
    for name, tensor in given.state_dict().items():
        if name.startswith("channel") == (part == "channel"):
            there[name].copy_(tensor)


def code_digest() -> str:
    """Short hash of all code that decides what an artifact holds: this package's and plug-ins'."""
    digest = hashlib.sha256(_own_code())
    for folder in registry.folders():
        _add_code(digest, folder)
    return digest.hexdigest()[:16]


@cache
def _own_code() -> bytes:
    home, digest = Path(__file__).parents[1], hashlib.sha256()
    # Layouts of checkpoints decide what is in a GGUF file.
    for folder in ("blocks", "checkpoints", "runtimes", "stack"):
        _add_code(digest, home / folder)
    return digest.digest()


def _add_code(digest: "hashlib._Hash", folder: Path) -> None:
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
