"""A stack's figures from those of others: for screening thousands before measuring a few.

1. Each measured stack is taken apart into ends and halves of blocks; a kind is what has the same
   part and mixers.
2. A step and a prompt are sums over the pieces: of a constant, parameters read or FLOPs, and
   bytes of state, with shares of each kind. Memory is a sum of constant, parameters and state, and
   the largest workspace that any kind needs.
3. The shares are fitted to all measured stacks of a device together (`fitting`).

Whole stacks took up to twice what copies of their halves foretell, perhaps since copies stay in a
processor's cache, so some whole stacks belong into a table beside its copies. The result is a
`Prediction`, which no record, budget or front takes for a measurement.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UserError
from archloop.profiling.block_table import BlockRow, BlockTable, Where
from archloop.profiling.fitting import pooled, with_largest
from archloop.runtimes import pieces
from archloop.stack import cost
from archloop.stack.spec import BlockSpec, StackSpec

Array = NDArray[np.float64]

_PARTS = ("ends", "mixers", "channel")


class Prediction(NamedTuple):
    """Estimates for a stack at one context; never a measurement.

    Attributes:
        decode_ms_estimate: of a median decode step.
        prefill_ms_estimate: of a prompt.
        memory_bytes_estimate: of peak memory above the empty engine.
        peak_memory_bytes_estimate: of peak memory, the empty engine's included.
        num_unmeasured: pieces of the stack that no measured stack has, estimated from their like.
    """

    decode_ms_estimate: float
    prefill_ms_estimate: float
    memory_bytes_estimate: float
    peak_memory_bytes_estimate: float
    num_unmeasured: int


class _Kind(NamedTuple):
    """Pieces that are alike but for their sizes."""

    part: str
    mixers: str


class _Piece(NamedTuple):
    """Half a block, or a stack's two ends.

    Attributes:
        spec: a stack with that part alone.
        is_lent: it has the weights of another block, which are in memory once.
    """

    kind: _Kind
    spec: StackSpec
    is_lent: bool = False


class _Share(NamedTuple):
    """What pieces take.

    Attributes:
        added: decode, prefill and memory.
        workspace_bytes: that the largest of them needs while it computes.
        num_unmeasured: of them.
    """

    added: Array
    workspace_bytes: float
    num_unmeasured: int


class Predictor:
    """Predicts stacks on one device, engine and quantisation at one context.

    Args:
        table: with rows of that device.
        where: which rows count.
        context: likewise.

    Raises:
        UserError: the table has no row there.
    """

    def __init__(self, table: BlockTable, where: Where, context: int) -> None:
        self.context = context
        rows = [row for row in table.rows if row.where == where and row.context == context]
        rows = [row for row in rows if pieces.inseparable(row.spec) is None]
        if not rows:
            raise UserError(
                f"the table has no stack for {where.runtime} {where.runtime_version} "
                f"({where.quant}, {where.threads} threads) on {where.device} at {context}; "
                "measure some there first"
            )
        self._empty_bytes = float(np.mean([row.engine_empty_bytes for row in rows]))
        self._shares = _Shares(rows, context)
        self._known: dict[tuple[object, ...], _Share] = {}

    def predict(self, spec: StackSpec) -> Prediction:
        """Estimates for a stack.

        Raises:
            UserError: it is not made of pieces, or nothing like one of them was measured.
        """
        if _lends(spec):
            # What a block is alone is known by then, and not whose weights it has in this stack.
            _check_separable(spec)
        shares = [self._ends(spec), *(self._block(spec, block) for block in spec.blocks)]
        decode, prefill, memory = sum(share.added for share in shares) + self._shares.constant
        memory += max(share.workspace_bytes for share in shares)
        return Prediction(
            float(decode),
            float(prefill),
            float(memory),
            float(memory) + self._empty_bytes,
            sum(share.num_unmeasured for share in shares),
        )

    def within(
        self, specs: Iterable[StackSpec], keeps: Callable[[Prediction], bool]
    ) -> list[tuple[StackSpec, Prediction]]:
        """Those of many stacks that are worth measuring, with what is expected of them."""
        found = ((spec, self.predict(spec)) for spec in specs)
        return [(spec, prediction) for spec, prediction in found if keeps(prediction)]

    def _ends(self, spec: StackSpec) -> _Share:
        """What embedding and head take."""
        key = spec.d_model, spec.vocab_size, spec.tie_embeddings, spec.norm_eps, spec.norm_offset
        if key not in self._known:
            self._known[key] = self._shares.of([_ends(spec)])
        return self._known[key]

    def _block(self, spec: StackSpec, block: BlockSpec) -> _Share:
        """What a block takes: found once, since thousands of stacks are made of few blocks."""
        key = spec.d_model, spec.norm_eps, spec.norm_offset, block.model_dump_json()
        if key not in self._known:
            _check_separable(spec)
            alone = spec.replace(blocks=(_own_weights(block),))
            self._known[key] = self._shares.of(_as_in(block, _halves(alone)))
        return self._known[key]


class _Shares:
    """What kinds of pieces take of each feature, fitted to measured stacks.

    Attributes:
        constant: of a stack, whatever it is made of: decode, prefill and memory.
    """

    def __init__(self, rows: list[BlockRow], context: int) -> None:
        self._context = context
        counts = [Counter([_ends(row.spec), *_halves(row.spec)]) for row in rows]
        self._measured = {piece.spec for count in counts for piece in count}
        self._kinds = sorted({piece.kind for count in counts for piece in count})
        groups = np.array([_PARTS.index(kind.part) for kind in self._kinds])
        decode, prefill = (
            pooled(self._summed(counts, features), _values(rows, name), groups)
            for name, features in (("decode_ms", _in_a_step), ("prefill_ms", _in_a_prompt))
        )
        self._decode, self._prefill = decode, prefill
        kept = self._summed(counts, _kept)
        constant = np.ones((len(rows), 1))
        # An end's parameters may be held twice, as embedding and as head.
        of_ends = kept[:, groups == 0].sum(1)[:, :1]
        of_halves = kept[:, groups != 0].sum(1)
        added = np.concatenate([constant, of_ends, of_halves], 1)
        needs = self._summed([Counter(set(count)) for count in counts], _workspace, largest=True)
        net_R = _values(rows, "memory_bytes")
        # A small stack may find room in what the engine's start left free. Nothing is no ratio.
        above_R = net_R > 0
        memory, self._workspace = with_largest(added[above_R], needs[above_R], net_R[above_R])
        self.constant = np.array([0.0, 0.0, memory[0]])
        self._kept_ends, self._kept_halves = np.array([memory[1], 0.0]), memory[2:]

    def of(self, found: list[_Piece]) -> _Share:
        """What some pieces take together.

        Raises:
            UserError: no measured stack has anything like one of them.
        """
        added, workspace = np.zeros(3), 0.0
        for piece in found:
            at = self._index(piece.kind)
            kept = self._kept_ends if piece.kind.part == "ends" else self._kept_halves
            added += (
                self._share(self._decode, piece.kind, at) @ _in_a_step(piece, self._context),
                self._share(self._prefill, piece.kind, at) @ _in_a_prompt(piece, self._context),
                kept @ _kept(piece, self._context),
            )
            if at is not None:
                own = float(self._workspace[at] @ _workspace(piece, self._context))
                workspace = max(workspace, own)
        return _Share(added, workspace, sum(piece.spec not in self._measured for piece in found))

    def _index(self, kind: _Kind) -> int | None:
        """A kind's row of shares; None of one that was never measured but has its like."""
        if kind in self._kinds:
            return self._kinds.index(kind)
        if kind.part not in {each.part for each in self._kinds}:
            raise UserError(f"the table has no {kind.part} at {self._context}; measure some first")
        return None

    @staticmethod
    def _share(shares: tuple[Array, Array], kind: _Kind, at: int | None) -> Array:
        own, of_groups = shares
        found: Array = of_groups[_PARTS.index(kind.part)] if at is None else own[at]
        return found

    def _summed(
        self,
        counts: "list[Counter[_Piece]]",
        features: "Callable[[_Piece, int], Array]",
        largest: bool = False,
    ) -> Array:
        """Features of each row's pieces by kind: (rows, kinds, features), summed or the largest."""
        every = {piece for count in counts for piece in count}
        of = {piece: features(piece, self._context) for piece in every}
        found = np.zeros((len(counts), len(self._kinds), len(next(iter(of.values())))))
        for into, count in zip(found, counts, strict=True):
            for piece, times in count.items():
                at = self._kinds.index(piece.kind)
                each = np.maximum(into[at], of[piece]) if largest else into[at] + times * of[piece]
                into[at] = each
        return found


def _values(rows: list[BlockRow], name: str) -> Array:
    return np.array([getattr(row, name).value for row in rows])


def _lends(spec: StackSpec) -> bool:
    """Whether any half of a block has the weights of another block."""
    halves = ((*block.mixers, block.channel_mixer) for block in spec.blocks)
    return any(
        part is not None and part.weights_from is not None for parts in halves for part in parts
    )


def _check_separable(spec: StackSpec) -> None:
    """Refuse a stack that is no sum of pieces."""
    if reason := pieces.inseparable(spec):
        raise UserError(f"no sum of pieces predicts this stack: {reason}")


def _ends(spec: StackSpec) -> _Piece:
    return _Piece(_Kind("ends", ""), spec.replace(blocks=(), max_context=None))


def _halves(spec: StackSpec) -> list[_Piece]:
    """Halves of blocks of a stack."""
    found = []
    for placed in pieces.pieces(spec):
        if placed.block is not None:
            (block,) = placed.piece.spec.blocks
            channel = block.channel_mixer
            name = "+".join(m.name for m in block.mixers) or (channel.name if channel else "")
            kind, is_lent = _Kind(placed.piece.part, name), placed.weights != placed.block
            found.append(_Piece(kind, placed.piece.spec, is_lent))
    return found


def _as_in(block: BlockSpec, halves: list[_Piece]) -> list[_Piece]:
    """Halves of a block that stands alone, with whose weights they have where it stood."""
    channel = block.channel_mixer
    lent = {
        "mixers": any(mixer.weights_from is not None for mixer in block.mixers),
        "channel": channel is not None and channel.weights_from is not None,
    }
    return [half._replace(is_lent=lent[half.kind.part]) for half in halves]


def _own_weights(block: BlockSpec) -> BlockSpec:
    """A block that shares no weights: its time is the same, and it can stand alone."""
    channel = block.channel_mixer
    return block.model_copy(
        update={
            "mixers": tuple(m.model_copy(update={"weights_from": None}) for m in block.mixers),
            "channel_mixer": channel and channel.model_copy(update={"weights_from": None}),
            "norms_from": None,
        }
    )


def _in_a_step(piece: _Piece, context: int) -> Array:
    """Constant, parameters that a step reads, state bytes."""
    spec = piece.spec
    read = cost.num_active_params(spec) - cost.num_embedding_params(spec)
    if not spec.blocks:
        # Of an embedding a step reads one row, of a head all.
        read += spec.vocab_size * spec.d_model
    return np.array([1.0, read, _state_bytes(spec, context)])


def _in_a_prompt(piece: _Piece, context: int) -> Array:
    """Constant, state bytes, FLOPs."""
    flops = cost.prefill_flops(piece.spec, context)
    return np.array([1.0, _state_bytes(piece.spec, context), flops])


def _kept(piece: _Piece, context: int) -> Array:
    """Parameters and state bytes."""
    params = cost.num_params(piece.spec)
    if piece.is_lent:
        # What is lent is counted with its lender; the norms are the half's own.
        params = cost.num_norm_params(piece.spec, piece.spec.blocks[0])
    elif piece.spec.blocks:
        params -= cost.num_embedding_params(piece.spec)
    return np.array([float(params), _state_bytes(piece.spec, context)])


def _workspace(piece: _Piece, context: int) -> Array:
    """Constant, and a token's width."""
    return np.array([1.0, float(piece.spec.d_model)])


def _state_bytes(spec: StackSpec, context: int) -> float:
    import torch

    return float(cost.state_bytes(spec, context, torch.float32))
