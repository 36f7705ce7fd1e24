"""The fused decoder equals the plain one: prefill, chunks, decode, captured decode."""

import copy
import os

import pytest
import torch
from torch.nn import functional as F

from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPE = torch.float32 if INTERPRETED else torch.bfloat16
ERROR = 1e-4 if INTERPRETED else 3e-2

CONV, GQA = MixerSpec(name="short_conv"), MixerSpec(name="gqa")
DENSE = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
SPARSE = ChannelMixerSpec(name="moe", config={"num_experts": 8, "top_k": 2, "expansion": 1.0})


def spec(mixers="CAC", channels="DMM"):
    blocks = tuple(
        BlockSpec(mixers=(CONV if m == "C" else GQA,), channel_mixer=DENSE if c == "D" else SPARSE)
        for m, c in zip(mixers, channels, strict=True)
    )
    return StackSpec(d_model=256, vocab_size=512, blocks=blocks)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("config", "is_fused"),
    [
        ({"num_experts": 8, "top_k": 2, "expansion": 1.0}, True),
        ({"num_experts": 8, "top_k": 2, "router": "granite"}, False),
        ({"num_experts": 8, "top_k": 2, "shared_expansion": 1.0}, False),
        ({"num_experts": 8, "top_k": 2, "expansion": 0.75}, False),
    ],
)
def test_experts_are_fused_where_the_kernels_are_right(config, is_fused):
    from archloop.runtimes.cuda.fused import FusedDecoder

    odd = BlockSpec(mixers=(CONV,), channel_mixer=ChannelMixerSpec(name="moe", config=config))
    fused = FusedDecoder(Decoder(spec().replace(blocks=(odd,))).to(DEVICE))
    assert [half.is_fused for half in fused.halves] == [True, is_fused]


@pytest.mark.gpu
def test_kernels_overlap_only_on_cards_that_can(monkeypatch):
    """Before Hopper the assembler refuses the instructions by which they wait for one another."""
    from archloop.runtimes.cuda import fused as engine

    monkeypatch.setattr(engine, "OVERLAPS_FROM", (99, 0))
    fused = engine.FusedDecoder(Decoder(spec(mixers="CA", channels="DM")).to(DEVICE, DTYPE))
    assert all(half.is_fused and not half.overlap for half in fused.halves)
    state = fused.init_state(1, 4)
    logits = fused.step(torch.ones(1, dtype=torch.int64, device=DEVICE), state)
    assert torch.isfinite(logits).all()


def models(built=None, **kwargs):
    from archloop.runtimes.cuda.fused import FusedDecoder

    torch.manual_seed(torch.seed() % 2**31)
    decoder = Decoder(built or spec(**kwargs)).to(DEVICE, DTYPE)
    for name, parameter in decoder.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.normal_(1, 0.1)
    for name, buffer in decoder.named_buffers():
        # Biases this far apart decide every choice: no near tie falls differently in bf16.
        if name.endswith("expert_bias"):
            buffer.copy_(torch.randperm(buffer.shape[0]) * 2.0)
    # Compared with the same weights in float32: of two roundings to bf16 one is enough.
    return copy.deepcopy(decoder).float(), FusedDecoder(decoder, overlap=not INTERPRETED)


def error(out, ref):
    assert torch.isfinite(out).all()
    return float((out.double() - ref.double()).norm() / ref.double().norm())


def check_states(mine, plain):
    assert mine.lengths_B.tolist() == plain.lengths_B.tolist()
    assert mine.num_tokens == plain.num_tokens
    for key, state in mine.mixers.items():
        for name, tensor in state.tensors.items():
            assert error(tensor, plain.mixers[key][name]) < ERROR, (key, name)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("width", [256, 320])
def test_prefill_and_steps(batch, width):
    """At a width of whole tiles, and at one where the experts run their own code."""
    decoder, fused = models(spec().replace(d_model=width))
    whole = width == 256
    assert [half.is_fused for half in fused.halves] == [True, True, True, whole, True, whole]
    ids = torch.randint(0, 512, (batch, 24), device=DEVICE)
    plain, mine = decoder.init_state(batch, 32), fused.init_state(batch, 32)
    ref = decoder.prefill(ids[:, :13], plain)
    assert error(fused.prefill(ids[:, :13], mine, tokens_per_pass=26), ref) < ERROR
    ref = decoder.prefill(ids[:, 13:20], plain)
    assert error(fused.prefill(ids[:, 13:20], mine), ref) < ERROR
    for t in range(20, 24):
        ref = decoder.step(ids[:, t], plain)
        assert error(fused.step(ids[:, t], mine), ref) < ERROR
    check_states(mine, plain)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="a card is asked")
def test_experts_run_as_written_where_their_tiles_have_no_room(monkeypatch):
    from archloop.runtimes.cuda import fused as engine

    monkeypatch.setattr(engine, "TILE_BYTES", 1 << 30)
    decoder, fused = models(mixers="CA", channels="DM")
    assert [half.is_fused for half in fused.halves] == [True, True, True, False]
    ids = torch.randint(0, 512, (1, 24), device=DEVICE)
    plain, mine = decoder.init_state(1, 32), fused.init_state(1, 32)
    assert error(fused.prefill(ids, mine), decoder.prefill(ids, plain)) < ERROR
    assert error(fused.step(ids[:, 0], mine), decoder.step(ids[:, 0], plain)) < ERROR


def lfm3():
    """The kinds of block of LFM3: norms behind both halves, gates on heads, half-turned heads."""
    gated = {"head_dim": 64, "head_gate": True}
    mixers = (
        MixerSpec(name="short_conv", config={"kernel": 7}),
        MixerSpec(name="swa", config={**gated, "window": 8, "queries_per_kv": 2}),
        MixerSpec(name="gqa", config={**gated, "rope_fraction": 0.5}),
    )
    blocks = tuple(
        BlockSpec(mixers=(mixer,), channel_mixer=DENSE, post_norms=True) for mixer in mixers
    )
    return spec().replace(blocks=blocks)


def plain_heads():
    """Attention as in Llama, Nemotron-H and Granite: heads without norms, or that do not turn."""
    configs = (
        {"head_dim": 64, "qk_norm": False, "queries_per_kv": 4},
        {"head_dim": 128, "qk_norm": False, "rope_theta": None, "num_heads": 4, "scale": 0.05},
        {"head_dim": 64, "rope_theta": None},
    )
    blocks = tuple(
        BlockSpec(mixers=(MixerSpec(name="gqa", config=config),), channel_mixer=DENSE)
        for config in configs
    )
    return spec().replace(blocks=blocks)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_heads_without_norms_or_turns(batch):
    decoder, fused = models(plain_heads())
    assert all(half.is_fused for half in fused.halves)
    ids = torch.randint(0, 512, (batch, 24), device=DEVICE)
    plain, mine = decoder.init_state(batch, 32), fused.init_state(batch, 32)
    for part in (ids[:, :13], ids[:, 13:20]):
        assert error(fused.prefill(part, mine), decoder.prefill(part, plain)) < ERROR
    for t in range(20, 24):
        ref = decoder.step(ids[:, t], plain)
        assert error(fused.step(ids[:, t], mine), ref) < ERROR
    check_states(mine, plain)


@pytest.fixture
def windows(monkeypatch):
    """Flash attention's windows, which exist on a GPU only, by a mask elsewhere."""
    if not INTERPRETED:
        return
    from archloop.runtimes.cuda import attention

    def by_mask(q_BNTH, k_BMTH, v_BMTH, window, scale):
        t = torch.arange(q_BNTH.shape[2])
        mask = (t[None] <= t[:, None]) & (t[None] > t[:, None] - window)
        return F.scaled_dot_product_attention(
            q_BNTH, k_BMTH, v_BMTH, attn_mask=mask, scale=scale, enable_gqa=True
        )

    monkeypatch.setattr(attention, "takes_windows", lambda x, rows, head_dim: True)
    monkeypatch.setattr(attention, "window_attention", by_mask)


@pytest.mark.gpu
@pytest.mark.parametrize("time", [5, 13])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_prompt_into_windows(windows, time, padding):
    """Shorter and longer than the window, padded as a recorded prompt is or not."""
    decoder, fused = models(lfm3())
    ids = torch.randint(0, 512, (2, time + padding), device=DEVICE)
    plain, mine = decoder.init_state(2, 32), fused.init_state(2, 32)
    ref = decoder.prefill(ids[:, :time], plain)
    real_B = torch.full((2,), time, device=DEVICE) if padding else None
    assert error(fused.run_prompt(ids, mine, real_B), ref) < ERROR
    mine.lengths_B += time
    mine.recount(time)
    for t in range(4):
        assert error(fused.step(ids[:, t], mine), decoder.step(ids[:, t], plain)) < ERROR


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_norms_behind_halves_and_gates_on_heads(windows, batch):
    decoder, fused = models(lfm3())
    assert all(half.is_fused for half in fused.halves)
    ids = torch.randint(0, 512, (batch, 24), device=DEVICE)
    plain, mine = decoder.init_state(batch, 32), fused.init_state(batch, 32)
    ref = decoder.prefill(ids[:, :13], plain)
    assert error(fused.prefill(ids[:, :13], mine), ref) < ERROR
    for t in range(13, 18):
        ref = decoder.step(ids[:, t], plain)
        assert error(fused.step(ids[:, t], mine), ref) < ERROR
    ref = decoder.prefill(ids[:, 18:], plain)
    assert error(fused.prefill(ids[:, 18:], mine), ref) < ERROR
    check_states(mine, plain)


@pytest.mark.gpu
def test_rows_of_different_lengths_decode_and_refuse_prefill():
    decoder, fused = models(mixers="CA", channels="DM")
    ids = torch.randint(0, 512, (2, 9), device=DEVICE)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :4] = False
    plain, mine = decoder.init_state(2, 16), fused.init_state(2, 16)
    decoder.prefill(ids, plain, mask_BT=mask)
    fused.decoder.prefill(ids, mine, mask_BT=mask)
    ref = decoder.step(ids[:, 0], plain)
    assert error(fused.step(ids[:, 0], mine), ref) < ERROR
    with pytest.raises(ValueError, match="different numbers"):
        fused.prefill(ids[:, :2], mine)


@pytest.mark.gpu
def test_wrong_shapes_are_refused_not_broadcast():
    _, fused = models(mixers="CA", channels="DM")
    ids, state = torch.ones(3, 4, dtype=torch.int64, device=DEVICE), fused.init_state(3, 8)
    with pytest.raises(ValueError, match="2 rows for a state of 3"):
        fused.prefill(ids[:2], state)
    with pytest.raises(ValueError, match="1 rows for a state of 3"):
        fused.step(ids[:1, 0], state)
    with pytest.raises(ValueError, match="at least one token"):
        fused.prefill(ids[:, :0], state)
    assert state.num_tokens == 0


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="graphs need a CUDA device")
def test_a_step_is_captured_over_the_smallest_state():
    """Warm-up steps stay within one slot."""
    decoder, fused = models()
    plain, mine = decoder.init_state(1, 1), fused.init_state(1, 1)
    for state in (plain, mine):
        for own in state.mixers.values():
            for tensor in own.tensors.values():
                tensor.zero_()
    ids = torch.randint(0, 512, (1,), device=DEVICE)
    graph = fused.capture(mine)
    assert error(graph.step(ids), decoder.step(ids, plain)) < ERROR
    check_states(mine, plain)
    with pytest.raises(ValueError, match="room for max_context=1 tokens, holds 1"):
        graph.step(ids)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="graphs need a CUDA device")
@pytest.mark.parametrize("batch", [1, 5])
def test_captured_steps_equal_plain_ones(batch):
    decoder, fused = models()
    ids = torch.randint(0, 512, (batch, 16), device=DEVICE)
    plain, mine = decoder.init_state(batch, 64), fused.init_state(batch, 64)
    fused.prefill(ids, mine)
    graph = fused.capture(mine)
    decoder.prefill(ids, plain)
    for t in range(8):
        ref = decoder.step(ids[:, t], plain)
        assert error(graph.step(ids[:, t]), ref) < ERROR
    check_states(mine, plain)
