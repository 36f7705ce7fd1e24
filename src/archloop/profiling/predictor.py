"""A stack's figures from those of its pieces: for screening thousands before measuring a few.

What pieces add is summed up. A piece that was not measured is estimated from measured ones of the
same part and mixers: a sum of non-negative shares of its parameters, state and FLOPs, fitted to
relative errors. The result is a `Prediction`, which no record, budget or front takes for a
measurement.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from archloop.errors import UserError
from archloop.profiling.block_table import BlockRow, BlockTable, Where
from archloop.runtimes import pieces
from archloop.stack import cost
from archloop.stack.spec import BlockSpec, StackSpec

_FIGURES = ("decode_ms", "prefill_ms", "memory_bytes")
_FEWEST = 3
"""Rows of the same mixers that a fit of its own needs; with fewer, all of that part are fitted."""


_Added = tuple[NDArray[np.float64], int]
"""What pieces add, by figure, and how many of them were fitted."""


class Prediction(NamedTuple):
    """Estimates for a stack at one context; never a measurement.

    Attributes:
        decode_ms_estimate: of a median decode step.
        prefill_ms_estimate: of a prompt.
        memory_bytes_estimate: of peak memory above the empty engine.
        peak_memory_bytes_estimate: of peak memory, the empty engine's included.
        num_fitted: pieces of the stack that were not measured themselves.
    """

    decode_ms_estimate: float
    prefill_ms_estimate: float
    memory_bytes_estimate: float
    peak_memory_bytes_estimate: float
    num_fitted: int


class Predictor:
    """Predicts stacks on one device, engine and quantisation at one context.

    Args:
        table: with rows of that device.
        where: which rows count.
        context: likewise.

    Raises:
        UserError: the table has no row of ends there.
    """

    def __init__(self, table: BlockTable, where: Where, context: int) -> None:
        self.context = context
        rows = [row for row in table.rows if row.where == where and row.context == context]
        empty = [row.engine_empty_bytes for row in rows if row.part == "ends"]
        if not empty:
            raise UserError(
                f"the table has no ends for {where.runtime} {where.runtime_version} "
                f"({where.quant}, {where.threads} threads) on {where.device} at {context}; "
                "measure a stack without blocks there first"
            )
        self._measured: dict[tuple[str, StackSpec], NDArray[np.float64]] = {
            (row.part, row.spec): _values(row) for row in rows
        }
        self._fits = _Fits(rows, context)
        self._empty_bytes = float(np.mean(empty))
        self._known: dict[tuple[object, ...], _Added] = {}

    def predict(self, spec: StackSpec) -> Prediction:
        """Estimates for a stack.

        Raises:
            UserError: it is not made of pieces, or nothing like one of them was measured.
        """
        total, num_fitted = self._ends(spec)
        for block in spec.blocks:
            values, fitted = self._block(spec, block)
            total, num_fitted = total + values, num_fitted + fitted
        decode, prefill, memory = total.tolist()
        return Prediction(decode, prefill, memory, memory + self._empty_bytes, num_fitted)

    def within(
        self, specs: Iterable[StackSpec], keeps: Callable[[Prediction], bool]
    ) -> list[tuple[StackSpec, Prediction]]:
        """Those of many stacks that are worth measuring, with what is expected of them."""
        found = ((spec, self.predict(spec)) for spec in specs)
        return [(spec, prediction) for spec, prediction in found if keeps(prediction)]

    def _ends(self, spec: StackSpec) -> _Added:
        """What embedding and head add."""
        key = spec.d_model, spec.vocab_size, spec.tie_embeddings, spec.norm_eps, spec.norm_offset
        if key not in self._known:
            self._known[key] = self._of("ends", spec.replace(blocks=(), max_context=None))
        return self._known[key]

    def _block(self, spec: StackSpec, block: BlockSpec) -> _Added:
        """What a block adds: found once, since thousands of stacks are made of few blocks."""
        key = spec.d_model, spec.norm_eps, spec.norm_offset, block.model_dump_json()
        if key not in self._known:
            if reason := pieces.inseparable(spec):
                raise UserError(f"no sum of pieces predicts this stack: {reason}")
            total, num_fitted = np.zeros(len(_FIGURES)), 0
            alone = spec.replace(blocks=(_own_weights(block),))
            for placed in pieces.pieces(alone):
                if placed.block is not None:
                    values, fitted = self._of(placed.piece.part, placed.piece.spec)
                    total, num_fitted = total + values, num_fitted + fitted
            self._known[key] = total, num_fitted
        return self._known[key]

    def _of(self, part: str, spec: StackSpec) -> _Added:
        """What a piece adds."""
        if (measured := self._measured.get((part, spec))) is not None:
            return measured, 0
        return self._fits.values(part, spec), 1


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


class _Fits:
    """Shares of parameters, state and FLOPs, by part and mixers."""

    def __init__(self, rows: list[BlockRow], context: int) -> None:
        self._rows, self._context = rows, context
        self._shares: dict[tuple[str, str], NDArray[np.float64]] = {}

    def values(self, part: str, spec: StackSpec) -> NDArray[np.float64]:
        """What a piece is estimated to add."""
        return self._of(part, _family(spec)) @ _features(spec, self._context)

    def _of(self, part: str, family: str) -> NDArray[np.float64]:
        """Shares (figures, features) of pieces of a family."""
        key = part, family
        if key not in self._shares:
            alike = [row for row in self._rows if row.part == part]
            own = [row for row in alike if _family(row.spec) == family]
            if not alike:
                raise UserError(f"the table has no {part} at {self._context}; measure some first")
            self._shares[key] = _fit(own if len(own) >= _FEWEST else alike, self._context)
        return self._shares[key]


def _fit(rows: list[BlockRow], context: int) -> NDArray[np.float64]:
    """Non-negative shares that leave the smallest relative errors."""
    features = np.array([_features(row.spec, context) for row in rows])
    values = np.array([_values(row) for row in rows])
    scale = np.maximum(features.max(0), 1e-30)
    shares = []
    for column in values.T:
        # A piece that seems to cost nothing, within noise, must not outweigh all others.
        weight = 1 / np.maximum(column, max(column.max() / 100, 1e-30))
        found, _ = nnls(features / scale * weight[:, None], np.maximum(column, 0) * weight)
        shares.append(found / scale)
    return np.array(shares)


def _values(row: BlockRow) -> NDArray[np.float64]:
    return np.array([getattr(row, name).value for name in _FIGURES])


def _family(spec: StackSpec) -> str:
    """Which pieces are alike but for their sizes."""
    if not spec.blocks:
        return ""
    (block,) = spec.blocks
    channel = block.channel_mixer
    return "+".join(mixer.name for mixer in block.mixers) or (channel.name if channel else "")


def _features(spec: StackSpec, context: int) -> NDArray[np.float64]:
    """Constant, parameters, state bytes, FLOPs of a step and of a prompt."""
    import torch

    params = cost.num_params(spec)
    if spec.blocks:
        params -= cost.num_embedding_params(spec)
    return np.array(
        [
            1.0,
            params,
            cost.state_bytes(spec, context, torch.float32),
            cost.decode_flops(spec, context),
            cost.prefill_flops(spec, context),
        ]
    )
