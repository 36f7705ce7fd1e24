"""Stacks predicted from pieces: sums, fits of what was not measured, tables as files."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from archloop.errors import UserError
from archloop.profiling.block_table import (
    BlockRow,
    BlockTable,
    Where,
    copies,
    read_table,
    rows_of_ends,
    rows_of_piece,
)
from archloop.profiling.predictor import Prediction, Predictor
from archloop.profiling.record import Figures, Identity, Interval, Profile
from archloop.runtimes import pieces
from archloop.stack import cost
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

IDENTITY = Identity(
    device="box",
    runtime="engine",
    runtime_version="1",
    quant="fp32",
    precision="float32",
    threads=2,
    contexts=(1024,),
)
WHERE = Where.of(IDENTITY)
EMPTY_BYTES = 1e8


def stack(d_model: int, layout: list[tuple[str, float]]) -> StackSpec:
    """Blocks of a mixer and a feed-forward of some expansion."""
    blocks = tuple(
        BlockSpec(
            mixers=(MixerSpec(name=name),),
            channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": expansion}),
        )
        for name, expansion in layout
    )
    return StackSpec(d_model=d_model, vocab_size=1000, blocks=blocks)


def exact(value: float) -> Interval:
    return Interval(value=value, low=value * 0.99, high=value * 1.01)


def measured(spec: StackSpec) -> Profile:
    """What a device would say whose time is bytes read, plus a call for each half."""
    halves = sum(bool(b.mixers) + (b.channel_mixer is not None) for b in spec.blocks)
    decode = 0.1 + 1e-7 * cost.num_params(spec) + 0.02 * halves
    attention = sum(m.name == "gqa" for b in spec.blocks for m in b.mixers)
    decode += 0.05 * attention
    figures = Figures(
        context=1024,
        ttft_ms=exact(50 * decode),
        prefill_tok_per_s=exact(1),
        decode_p50_ms=exact(decode),
        decode_p95_ms=exact(decode),
        peak_memory_bytes=exact(EMPTY_BYTES + 4 * cost.num_params(spec)),
        engine_empty_bytes=exact(EMPTY_BYTES),
    )
    return Profile(identity=IDENTITY, figures=(figures,), num_processes=5, seconds=1)


def table(specs: list[StackSpec], count: int = 4) -> BlockTable:
    """Rows of all pieces of some stacks."""
    rows: list[BlockRow] = []
    for spec in specs:
        ends = spec.replace(blocks=())
        of_ends = rows_of_ends(ends, measured(ends))
        rows += of_ends
        for placed in pieces.pieces(spec):
            if placed.block is not None:
                found = measured(copies(placed.piece, ends, count))
                rows += rows_of_piece(placed.piece, found, count, of_ends)
    return BlockTable().joined([BlockTable(rows=tuple(rows))])


def test_a_stack_of_measured_pieces_is_their_sum() -> None:
    spec = stack(128, [("gqa", 2.0), ("short_conv", 3.0), ("gqa", 2.0)])
    predicted = Predictor(table([spec]), WHERE, 1024).predict(spec)
    (at,) = measured(spec).figures
    assert predicted.num_fitted == 0
    assert predicted.decode_ms_estimate == pytest.approx(at.decode_p50_ms.value)
    assert predicted.prefill_ms_estimate == pytest.approx(at.ttft_ms.value)
    net = at.peak_memory_bytes.value - EMPTY_BYTES
    assert predicted.memory_bytes_estimate == pytest.approx(net)


def test_pieces_that_were_not_measured_are_fitted_from_their_like() -> None:
    known = [
        stack(width, [(name, 2.0) for name in ("gqa", "short_conv")]) for width in (128, 256, 384)
    ]
    predictor = Predictor(table(known), WHERE, 1024)
    layouts = [["gqa"], ["short_conv"] * 2, ["gqa", "short_conv"], ["gqa"] * 3]
    new = [stack(width, [(n, 3.0) for n in names]) for width in (192, 320) for names in layouts]
    predicted = [predictor.predict(spec) for spec in new]
    truth = np.array([measured(spec).figures[0].decode_p50_ms.value for spec in new])
    found = np.array([each.decode_ms_estimate for each in predicted])
    assert all(each.num_fitted for each in predicted)
    assert np.abs(found / truth - 1).max() < 0.1
    assert stats.spearmanr(found, truth).statistic > 0.95


def test_many_stacks_are_screened_from_few_rows() -> None:
    spec = stack(128, [("gqa", 2.0), ("short_conv", 2.0)])
    predictor = Predictor(table([spec]), WHERE, 1024)
    a, b = spec.blocks
    rng = np.random.default_rng(0)
    many = [
        spec.replace(blocks=tuple(a if pick else b for pick in rng.integers(2, size=8)))
        for _ in range(200)
    ]
    limit = predictor.predict(many[0]).decode_ms_estimate
    kept = predictor.within(many, lambda each: each.decode_ms_estimate <= limit)
    assert 0 < len(kept) < len(many)
    assert all(prediction.decode_ms_estimate <= limit for _, prediction in kept)


def test_rows_of_another_device_engine_or_context_do_not_count() -> None:
    spec = stack(128, [("gqa", 2.0)])
    found = table([spec])
    for where, context in (
        (WHERE.model_copy(update={"device": "phone"}), 1024),
        (WHERE.model_copy(update={"quant": "int8"}), 1024),
        (WHERE, 4096),
    ):
        with pytest.raises(UserError, match="no ends for engine 1"):
            Predictor(found, where, context)


def test_what_no_piece_is_like_is_refused() -> None:
    spec = stack(128, [("gqa", 2.0)])
    ends = BlockTable(rows=tuple(row for row in table([spec]).rows if row.part == "ends"))
    with pytest.raises(UserError, match="no mixers at 1024"):
        Predictor(ends, WHERE, 1024).predict(spec)
    reads = spec.blocks[0].mixers[0].model_copy(update={"state_from": 0})
    shared = spec.replace(blocks=(spec.blocks[0], BlockSpec(mixers=(reads,))))
    with pytest.raises(UserError, match="block 1 reads the state of block 0"):
        Predictor(table([spec]), WHERE, 1024).predict(shared)


def test_a_prediction_is_no_measurement() -> None:
    prediction = Prediction(1.0, 2.0, 3.0, 4.0, 0)
    with pytest.raises(ValidationError):
        Profile.model_validate(prediction._asdict())
    with pytest.raises(ValidationError):
        Figures.model_validate({"context": 1024, **prediction._asdict()})
    assert not set(prediction._fields) & set(Figures.model_fields)


def test_intervals_of_both_measurements_reach_a_row() -> None:
    spec = stack(128, [("gqa", 2.0)])
    ends = spec.replace(blocks=())
    of_ends = rows_of_ends(ends, measured(ends))
    piece = pieces.pieces(spec)[1].piece
    rows = [
        rows_of_piece(piece, measured(copies(piece, ends, count)), count, of_ends)[0]
        for count in (1, 8)
    ]
    widths = [row.decode_ms.high - row.decode_ms.low for row in rows]
    assert widths[1] < widths[0] / 2
    assert rows[0].decode_ms.value == pytest.approx(rows[1].decode_ms.value)


def test_a_table_is_a_file_that_says_when_it_is_damaged(tmp_path: Path) -> None:
    found = table([stack(128, [("gqa", 2.0)])])
    path = tmp_path / "blocks.json"
    found.write(path)
    assert read_table(path) == found
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_table(tmp_path / "none.json")
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(UserError, match="no table of blocks of version 2"):
        read_table(path)
