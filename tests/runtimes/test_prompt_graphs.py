"""A prompt that is padded to a length which a graph may hold says the same as one that is not.

On a CPU what a graph would record; on a GPU (marked) the graphs themselves.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from archloop.blocks.channel_mixers import moe
from archloop.runtimes.cuda.fused import FusedDecoder
from archloop.runtimes.cuda.prompts import LEAST_STEP, PromptGraphs, padded
from archloop.stack.state import DecoderState
from runtimes.test_any_stack import STACKS, decoder_of, error

ROOM = 200


def test_lengths_are_padded_by_an_eighth_at_most() -> None:
    for time in range(1, 40_000):
        size = padded(time, 1 << 20)
        assert time <= size <= time + max(LEAST_STEP - 1, time / 8)
    sizes = {padded(time, 1 << 20) for time in range(2049, 32_769)}
    assert len(sizes) == 4 * 8
    # The lengths that are measured are their own.
    assert all(padded(time, 1 << 20) == time for time in (512, 1024, 4096, 32_768))


def test_no_prompt_is_padded_past_the_end_of_the_state() -> None:
    assert padded(4097, 4200) == 4200
    assert padded(4200, 4200) == 4200


def agree(a: DecoderState, b: DecoderState, tolerance: float) -> None:
    assert a.lengths_B.tolist() == b.lengths_B.tolist()
    assert a.num_tokens == b.num_tokens
    for key, own in a.mixers.items():
        for name, tensor in own.tensors.items():
            if name not in own.by_position:
                assert error(tensor, b.mixers[key][name]) < tolerance, (key, name)


@pytest.mark.parametrize("name", STACKS)
def test_padding_changes_neither_logits_nor_state(name: str) -> None:
    decoder = decoder_of(name).double()
    engine = FusedDecoder(decoder, kernels=False)
    ids = torch.randint(0, 300, (2, 75))
    state, plain = engine.init_state(2, ROOM), decoder.init_state(2, ROOM)
    ref = decoder.prefill(ids[:, :71], plain)
    longer = torch.cat([ids[:, :71], torch.full((2, padded(71, ROOM) - 71), 7)], 1)
    assert longer.shape[1] == 72
    assert error(engine.run_prompt(longer, state, torch.tensor([71, 71])), ref) < 1e-12
    state.lengths_B += 71
    state.recount(71)
    agree(state, plain, 1e-12)
    for t in range(71, 75):
        assert error(engine.step(ids[:, t], state), decoder.step(ids[:, t], plain)) < 1e-12


WAITING = {"channel-moe", "granite-router", "shared-expert", "experts-in-a-narrower-stream"}


@pytest.mark.parametrize("name", STACKS)
def test_nothing_that_is_recorded_waits_for_the_card(name: str) -> None:
    engine = FusedDecoder(decoder_of(name), kernels=False)
    assert any(half.asks_host for half in engine.halves) == (name in WAITING)
    if name in WAITING:
        return
    ids, real_B = torch.zeros(1, 72, dtype=torch.int64), torch.tensor([71])
    state = engine.init_state(1, ROOM)
    # Fake tensors have no numbers to be asked for: who asks gets an error.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        logits_BV = engine.run_prompt(mode.from_tensor(ids), state, mode.from_tensor(real_B))
    assert logits_BV.shape == (1, 300)


@pytest.mark.parametrize("name", sorted(WAITING))
def test_experts_whose_groups_are_multiplied_at_once_wait_for_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moe, "multiplies_groups", lambda *_: True)
    # Without numbers, bfloat16 alone is multiplied in groups.
    engine = FusedDecoder(decoder_of(name).bfloat16(), kernels=False)
    assert not any(half.asks_host for half in engine.halves)
    ids, real_B = torch.zeros(1, 72, dtype=torch.int64), torch.tensor([71])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        state = engine.init_state(1, ROOM)
        logits_BV = engine.run_prompt(mode.from_tensor(ids), state, mode.from_tensor(real_B))
    assert logits_BV.shape == (1, 300)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a CUDA device")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", STACKS)
def test_graphs_equal_the_decoder(name: str, batch: int) -> None:
    decoder = decoder_of(name).to("cuda", torch.bfloat16)
    engine = FusedDecoder(decoder)
    state = engine.init_state(batch, ROOM)
    graphs = PromptGraphs(engine, state)
    # Of 72 tokens padded and whole, of 144 padded, and each again through its graph.
    for time in (71, 72, 130, 69, 72, 71, 129):
        ids = torch.randint(0, 300, (batch, time + 4), device="cuda")
        plain = decoder.init_state(batch, ROOM)
        state.reset()
        ref = decoder.prefill(ids[:, :time], plain)
        assert error(graphs.prefill(ids[:, :time]), ref) < 5e-2
        agree(state, plain, 5e-2)
        # More of the conversation, which has no graph.
        ref = decoder.prefill(ids[:, time : time + 3], plain)
        assert error(graphs.prefill(ids[:, time : time + 3]), ref) < 5e-2
        assert error(engine.step(ids[:, -1], state), decoder.step(ids[:, -1], plain)) < 5e-2
    captured = [prompt for prompt in graphs._prompts.values() if prompt.graph is not None]
    assert len(captured) == (3 if engine.captures_prompts else 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a CUDA device")
def test_a_mixer_that_waits_for_the_card_runs_without_a_graph() -> None:
    decoder = decoder_of("conv-gla-gqa").to("cuda", torch.bfloat16)
    engine = FusedDecoder(decoder)
    half = engine.of_mixers[1]
    rows = half.rows

    def asking(x_XD, *arguments):  # type: ignore[no-untyped-def]
        assert float(x_XD.sum()) < 1e9
        return rows(x_XD, *arguments)

    half.rows = asking  # type: ignore[method-assign]
    state, plain = engine.init_state(1, ROOM), decoder.init_state(1, ROOM)
    graphs = PromptGraphs(engine, state)
    ids = torch.randint(0, 300, (1, 72), device="cuda")
    ref = decoder.prefill(ids, plain)
    with pytest.warns(UserWarning, match="without a graph"):
        assert error(graphs.prefill(ids), ref) < 5e-2
    state.reset()
    assert error(graphs.prefill(ids), ref) < 5e-2
    # What is recorded afterwards is not disturbed.
    assert error(engine.capture(state).step(ids[:, 0]), decoder.step(ids[:, 0], plain)) < 5e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a CUDA device")
def test_a_graph_holds_no_more_memory_than_a_prompt_takes() -> None:
    decoder = decoder_of("conv-gla-gqa", width=512).to("cuda", torch.bfloat16)
    engine = FusedDecoder(decoder)
    ids = torch.randint(0, 300, (1, 8192), device="cuda")

    def peak(run, measure: str) -> int:  # type: ignore[no-untyped-def]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = getattr(torch.cuda, f"memory_{measure}")()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            state.reset()
            run(ids)
        return getattr(torch.cuda, f"max_memory_{measure}")() - before

    state = engine.init_state(1, 8192)

    def plain(ids: torch.Tensor) -> None:
        engine.prefill(ids, state)

    peak(plain, "allocated")  # Kernels and libraries take some for good.
    # Its tensors: it may find room for them in what was reserved before, a graph in its own alone.
    tensors = peak(plain, "allocated")
    graphs = PromptGraphs(engine, state)
    # A library's workspace on the recording stream comes on top.
    assert peak(graphs.prefill, "reserved") <= tensors + 64 * 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a CUDA device")
def test_a_graph_keeps_the_angles_that_it_reads() -> None:
    """A longer state of the same engine takes longer tables, and drops these."""
    engine = FusedDecoder(decoder_of("gqa").to("cuda", torch.bfloat16))
    state = engine.init_state(1, ROOM)
    graphs = PromptGraphs(engine, state)
    ids = torch.randint(0, 300, (1, 72), device="cuda")
    ref = graphs.prefill(ids)
    shape = engine.tables()[0].shape
    engine.init_state(1, 2 * ROOM)
    taken = [torch.full(shape, torch.nan, device="cuda") for _ in range(100)]
    state.reset()
    assert error(graphs.prefill(ids), ref) < 5e-2
    assert len(taken) == 100  # Whoever has the memory now holds it to the end.
