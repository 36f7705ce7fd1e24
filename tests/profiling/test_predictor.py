"""Stacks predicted from others: sums, kinds drawn together, the largest workspace, tables."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from archloop.errors import UserError
from archloop.profiling.artifacts import writing
from archloop.profiling.block_table import (
    BlockRow,
    BlockTable,
    Where,
    copies,
    read_table,
    rows_of,
)
from archloop.profiling.fitting import pooled, with_largest
from archloop.profiling.predictor import Prediction, Predictor
from archloop.profiling.record import Figures, Identity, Interval, Profile
from archloop.runtimes import pieces
from archloop.runtimes.pieces import code_digest
from archloop.runtimes.torch_eager import TorchEager
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


WORKSPACE_BYTES = {"gqa": 3e7, "short_conv": 1e6}


def measured(spec: StackSpec) -> Profile:
    """What a device would say whose time is bytes read, plus a call for each half."""
    halves = sum(bool(b.mixers) + (b.channel_mixer is not None) for b in spec.blocks)
    decode = 0.1 + 1e-7 * cost.num_params(spec) + 0.02 * halves
    attention = sum(m.name == "gqa" for b in spec.blocks for m in b.mixers)
    decode += 0.05 * attention
    # One mixer leaves its workspace to the next.
    workspace = max([WORKSPACE_BYTES[m.name] for b in spec.blocks for m in b.mixers], default=0)
    figures = Figures(
        context=1024,
        ttft_ms=exact(50 * decode),
        prefill_tok_per_s=exact(1),
        decode_p50_ms=exact(decode),
        decode_p95_ms=exact(decode),
        peak_memory_bytes=exact(EMPTY_BYTES + workspace + 4 * cost.num_params(spec)),
        engine_empty_bytes=exact(EMPTY_BYTES),
    )
    return Profile(identity=IDENTITY, figures=(figures,), num_processes=5, seconds=1)


def table(specs: list[StackSpec], count: int = 4, whole: bool = False) -> BlockTable:
    """Rows of all pieces of some stacks, and of the stacks themselves."""
    rows: list[BlockRow] = []
    for spec in specs:
        ends = spec.replace(blocks=())
        halves = [placed.piece for placed in pieces.pieces(spec) if placed.block is not None]
        alone = [ends, *(copies(piece, ends, count) for piece in halves)]
        for each in [*alone, spec] if whole else alone:
            rows += rows_of(each, measured(each))
    return BlockTable().joined([BlockTable(rows=tuple(rows))])


def test_a_stack_of_measured_pieces_is_their_sum_and_the_largest_workspace() -> None:
    spec = stack(128, [("gqa", 2.0), ("short_conv", 3.0), ("gqa", 2.0)])
    others = [stack(width, [("gqa", 2.0), ("short_conv", 3.0)]) for width in (128, 256)]
    predicted = Predictor(table(others, whole=True), WHERE, 1024).predict(spec)
    (at,) = measured(spec).figures
    assert predicted.num_unmeasured == 0
    assert predicted.decode_ms_estimate == pytest.approx(at.decode_p50_ms.value, rel=0.01)
    assert predicted.prefill_ms_estimate == pytest.approx(at.ttft_ms.value, rel=0.01)
    net = at.peak_memory_bytes.value - EMPTY_BYTES
    assert predicted.memory_bytes_estimate == pytest.approx(net, rel=0.01)


def test_pieces_that_were_not_measured_are_estimated_from_their_like() -> None:
    known = [
        stack(width, [(name, 2.0) for name in ("gqa", "short_conv")]) for width in (128, 256, 384)
    ]
    predictor = Predictor(table(known), WHERE, 1024)
    layouts = [["gqa"], ["short_conv"] * 2, ["gqa", "short_conv"], ["gqa"] * 3]
    new = [stack(width, [(n, 3.0) for n in names]) for width in (192, 320) for names in layouts]
    predicted = [predictor.predict(spec) for spec in new]
    truth = np.array([measured(spec).figures[0].decode_p50_ms.value for spec in new])
    found = np.array([each.decode_ms_estimate for each in predicted])
    assert all(each.num_unmeasured for each in predicted)
    assert np.abs(found / truth - 1).max() < 0.1
    assert stats.spearmanr(found, truth).statistic > 0.95


def test_whole_stacks_tell_what_copies_in_a_cache_cannot() -> None:
    layouts = [["gqa"] * 3, ["short_conv"] * 6, ["gqa", "short_conv"] * 3, ["short_conv"] * 2]
    stacks = [stack(128 * n, [(m, 2.0) for m in each]) for n in (1, 2) for each in layouts]

    def slowed(row: BlockRow) -> BlockRow:
        """Weights past a megabyte cost twice as much as those before."""
        beyond = max(0, cost.num_params(row.spec) - 1e6)
        return row.model_copy(update={"decode_ms": exact(row.decode_ms.value + 1e-7 * beyond)})

    def error(whole: bool) -> float:
        rows = [slowed(row) for row in table(stacks[::2], whole=whole).rows]
        predictor = Predictor(BlockTable(rows=tuple(rows)), WHERE, 1024)
        errors = []
        for spec in stacks[1::2]:
            (truth,) = (slowed(row) for row in rows_of(spec, measured(spec)))
            found = predictor.predict(spec).decode_ms_estimate
            errors.append(abs(np.log(found / truth.decode_ms.value)))
        return float(np.mean(errors))

    assert error(whole=True) < error(whole=False)


def test_noise_draws_kinds_together_and_exact_rows_keep_them_apart() -> None:
    rng = np.random.default_rng(0)
    true_KJ = np.array([[1.0, 2.0], [1.2, 1.8], [0.9, 2.2], [3.0, 0.5]])
    groups = np.array([0, 0, 0, 1])
    x_RKJ = rng.integers(0, 4, size=(30, 4, 2)) + rng.random((30, 4, 2))
    y_R = (x_RKJ * true_KJ).sum((1, 2))
    own, of_groups = pooled(x_RKJ, y_R, groups)
    assert np.abs(own / true_KJ - 1).max() < 0.01
    noisy = y_R * np.exp(0.2 * rng.standard_normal(30))
    drawn, _ = pooled(x_RKJ, noisy, groups)
    alone, _ = np.linalg.lstsq(x_RKJ.reshape(30, -1) / noisy[:, None], np.ones(30), rcond=None)[:2]
    apart = np.abs(alone.reshape(4, 2) - true_KJ).mean()
    assert np.abs(drawn - true_KJ).mean() < apart
    assert (drawn >= 0).all()
    assert of_groups.shape == (2, 2)


def test_one_disturbed_row_moves_no_share() -> None:
    rng = np.random.default_rng(1)
    x_RKJ = rng.random((20, 2, 2)) + 0.1
    y_R = (x_RKJ * np.array([[1.0, 2.0], [2.0, 1.0]])).sum((1, 2))
    y_R[7] *= 4
    found, _ = pooled(x_RKJ, y_R, np.array([0, 0]))
    assert np.abs((x_RKJ * found).sum((1, 2))[:7] / y_R[:7] - 1).max() < 0.02


def test_only_the_largest_need_counts() -> None:
    rng = np.random.default_rng(2)
    x_RA = np.concatenate([np.ones((40, 1)), rng.random((40, 1)) * 5], 1)
    # Rows of one kind alone, as copies are, and of both, where the first hides the second.
    has_RK = np.concatenate([np.tile(np.eye(2), (10, 1)), np.ones((20, 2))])
    y_R = 2 + 3 * x_RA[:, 1] + np.where(has_RK[:, 0] > 0, 8.0, 1.0)
    added, needs = with_largest(x_RA, has_RK[:, :, None], y_R)
    found = x_RA @ added + (has_RK[:, :, None] * needs).sum(2).max(1)
    assert np.abs(found / y_R - 1).max() < 0.01
    assert added[1] == pytest.approx(3, rel=0.01)
    assert needs[0, 0] - needs[1, 0] == pytest.approx(7, rel=0.02)


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
        (WHERE.model_copy(update={"written_by": "engine 1 other-code"}), 1024),
        (WHERE, 4096),
    ):
        with pytest.raises(UserError, match="no stack for engine 1"):
            Predictor(found, where, context)


def test_what_no_piece_is_like_is_refused() -> None:
    spec = stack(128, [("gqa", 2.0)])
    ends = BlockTable(rows=tuple(row for row in table([spec]).rows if not row.spec.blocks))
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


def test_a_stack_that_needs_no_more_than_the_empty_engine_says_nothing_of_memory() -> None:
    """Its peak is measured anew, and may lie below that of the engine's start."""
    spec = stack(128, [("gqa", 2.0), ("short_conv", 2.0)])
    widths = [stack(width, [("gqa", 2.0), ("short_conv", 2.0)]) for width in (128, 256)]
    known = table(widths, whole=True)

    def below(row: BlockRow) -> BlockRow:
        nothing = Interval(value=-1e5, low=-2e5, high=1e5)
        return row.model_copy(update={"memory_bytes": nothing})

    rows = [row if row.spec.blocks or row.spec.d_model > 128 else below(row) for row in known.rows]
    assert rows != list(known.rows)
    predicted = Predictor(BlockTable(rows=tuple(rows)), WHERE, 1024).predict(spec)
    net = measured(spec).figures[0].peak_memory_bytes.value - EMPTY_BYTES
    assert predicted.memory_bytes_estimate == pytest.approx(net, rel=0.1)
    none = BlockTable(rows=tuple(below(row) for row in known.rows))
    assert Predictor(none, WHERE, 1024).predict(spec).memory_bytes_estimate == 0


def test_memory_above_the_empty_engine_has_the_intervals_of_both() -> None:
    spec = stack(128, [("gqa", 2.0)])
    (row,) = rows_of(spec, measured(spec))
    (at,) = measured(spec).figures
    assert row.memory_bytes.value == pytest.approx(at.peak_memory_bytes.value - EMPTY_BYTES)
    width = row.memory_bytes.high - row.memory_bytes.low
    of_peak = at.peak_memory_bytes.high - at.peak_memory_bytes.low
    of_empty = at.engine_empty_bytes.high - at.engine_empty_bytes.low
    assert width == pytest.approx(np.hypot(of_peak, of_empty))


def test_a_table_is_a_file_that_says_when_it_is_damaged(tmp_path: Path) -> None:
    found = table([stack(128, [("gqa", 2.0)])])
    path = tmp_path / "blocks.json"
    found.write(path)
    assert read_table(path) == found
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_table(tmp_path / "none.json")
    path.write_text(path.read_text().replace('"schema_version": 4', '"schema_version": 2'))
    with pytest.raises(UserError, match="no table of blocks of version 4: Input should be 3 or 4"):
        read_table(path)


def test_rows_say_what_exported_their_graphs_and_those_of_other_code_stay_apart() -> None:
    spec, now = stack(128, [("gqa", 2.0)]), writing(TorchEager())
    assert now == f"{TorchEager().written_by()} {code_digest()}"
    new, old = (
        [
            row.model_copy(update={"where": Where.of(IDENTITY, by)})
            for row in table([spec], whole=True).rows
        ]
        for by in (now, "engine-0.9 0123abcd")
    )
    assert rows_of(spec, measured(spec), now) == new[-1:]
    slow = [row.model_copy(update={"decode_ms": exact(9 * row.decode_ms.value)}) for row in old]
    newer = BlockTable(rows=tuple(new))
    joined = BlockTable(rows=tuple(slow)).joined([newer])
    assert joined.rows == (*slow, *new), "the same stacks, but not the same graphs"
    where = new[0].where
    alone, beside = (Predictor(each, where, 1024).predict(spec) for each in (newer, joined))
    assert alone == beside
    assert where.doubt is None
    assert "other code than this exported" in (old[0].where.doubt or "")
    assert "engine-0.9 0123abcd" in (old[0].where.doubt or "")


def test_a_table_of_before_is_read_and_says_what_it_lacks(tmp_path: Path) -> None:
    found, path = table([stack(128, [("gqa", 2.0)])]), tmp_path / "blocks.json"
    content = json.loads(found.model_dump_json())
    content["schema_version"] = 3
    for row in content["rows"]:
        del row["where"]["written_by"]
    path.write_text(json.dumps(content))
    assert read_table(path).rows == found.rows
    (where,) = {row.where for row in read_table(path).rows}
    assert "do not say which code exported" in (where.doubt or "")


def test_weights_that_are_lent_are_in_memory_once() -> None:
    spec = stack(128, [("short_conv", 2.0)] * 4)
    first, *others = spec.blocks
    assert first.channel_mixer is not None
    lent = first.channel_mixer.model_copy(update={"weights_from": 0})
    borrowing = [block.model_copy(update={"channel_mixer": lent}) for block in others]
    shared = spec.replace(blocks=(first, *borrowing))
    known = [stack(width, [("gqa", 2.0), ("short_conv", 2.0)]) for width in (128, 256)]
    predicted = Predictor(table(known, whole=True), WHERE, 1024).predict(shared)
    assert predicted.num_unmeasured == 0
    net = measured(shared).figures[0].peak_memory_bytes.value - EMPTY_BYTES
    assert predicted.memory_bytes_estimate == pytest.approx(net, rel=0.05)


def test_a_known_block_is_refused_where_it_has_weights_of_no_copy_of_it() -> None:
    spec = stack(128, [("short_conv", 2.0)] * 2)
    own = spec.blocks[0]
    other = own.model_copy(update={"residual_multiplier": 0.5})
    assert other.channel_mixer is not None
    lent = other.channel_mixer.model_copy(update={"weights_from": 0})
    borrows = other.model_copy(update={"channel_mixer": lent})
    predictor = Predictor(table([spec]), WHERE, 1024)
    predictor.predict(spec)
    predictor.predict(spec.replace(blocks=(other, borrows)))
    with pytest.raises(UserError, match="block 1 has weights of block 0 and is no copy of it"):
        predictor.predict(spec.replace(blocks=(own, borrows)))
