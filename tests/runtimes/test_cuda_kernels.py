"""Each fused kernel equals its plain form on fresh random inputs."""

import pytest
import torch
from torch.nn import functional as F

from accelerator import DEVICE, INTERPRETED
from archloop.blocks.base import Span
from archloop.blocks.channel_mixers.moe import MoE
from archloop.blocks.mixers.gqa import GQA
from archloop.blocks.mixers.short_conv import ShortConv
from archloop.blocks.mixers.swa import SWA
from archloop.blocks.ops.experts import sorted_experts
from archloop.blocks.ops.rope import rotate
from archloop.runtimes.cuda.choice import Choice
from archloop.runtimes.cuda.kernels import attention, experts, gemv, gemv_experts, rows
from archloop.runtimes.cuda.kernels.plans import Plan
from archloop.runtimes.cuda.row import Row

pytestmark = pytest.mark.gpu

DTYPE = torch.float32 if INTERPRETED else torch.bfloat16
ERROR = 1e-5 if INTERPRETED else 1e-2
PDL = not INTERPRETED


def randn(*shape, scale=1.0):
    return (torch.randn(*shape, device=DEVICE) * scale).to(DTYPE)


def norm_of(x, weight, eps=1e-5):
    return F.rms_norm(x, weight.shape, weight, eps)


def close(out, ref):
    out, ref = out.double(), ref.double()
    assert torch.isfinite(out).all()
    assert (out - ref).norm() <= ERROR * ref.norm()


@pytest.fixture(autouse=True)
def fresh_seed():
    torch.manual_seed(torch.seed() % 2**31)


PLANS = [Plan(2, 4), Plan(4, 4, resident=1), Plan(1, 1, resident=3, early=True)]
"""A program for each piece; fewer programs than pieces, by fours and one by one."""


@pytest.mark.parametrize("width", [96, 256, 2304])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_linear(width, residual, plan):
    x, w, weight = randn(width), randn(41, width), 1 + randn(width, scale=0.1)
    out = randn(41)
    ref = F.linear(norm_of(x, weight), w) + (out if residual else 0)
    norm = weight, 1e-5
    close(gemv.linear(x, w, out, norm=norm, residual=residual, plan=plan, pdl=PDL), ref)
    ref = F.linear(x, w) + (out if residual else 0)
    close(gemv.linear(x, w, out, residual=residual, plan=plan, pdl=PDL), ref)


@pytest.mark.parametrize("plan", PLANS)
def test_a_second_matrix_over_the_same_input(plan):
    x, w, more, weight = randn(96), randn(41, 96), randn(7, 96), 1 + randn(96, scale=0.1)
    out, out_more = randn(41), randn(7)
    gemv.linear(x, w, out, norm=(weight, 1e-5), more=(more, out_more), plan=plan, pdl=PDL)
    normed = norm_of(x, weight)
    close(out, F.linear(normed, w))
    close(out_more, F.linear(normed, more))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("width", [96, 256, 2304])
def test_what_waits_is_added_on_the_way_in(width, plan):
    """By each kernel that reads the stream, as `rows.add_normed` would have added it."""
    x, y = randn(width), randn(width)
    weight, post_weight = (1 + randn(width, scale=0.1) for _ in range(2))
    total = x.clone()[None]
    rows.add_normed(total, y[None], (post_weight, 1e-3))
    mixer = ShortConv.Config(kernel=5).build(width).to(DEVICE, DTYPE)
    past = randn(4, width)
    w, norm = randn(48, width), (weight, 1e-5)
    kernels = {
        "linear": lambda read: gemv.linear(read, w, randn(48), norm=norm, plan=plan),
        "gate_up": lambda read: gemv.gate_up(read, norm, w, randn(24), plan=plan),
        "conv": lambda read: gemv.conv(
            read, norm, mixer.in_proj.weight, mixer.conv, past.clone(), randn(width), plan=plan
        ),
    }
    for kernel in kernels.values():
        row = Row(x)
        row.add_later(y, (post_weight, 1e-3))
        close(kernel(row.read()), kernel(total[0]))
        close(row.x_D, total[0])
        assert row.settled() is row.x_D


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kernel", [2, 3, 7])
def test_conv_of_one_token(kernel, plan):
    width = 128
    x, weight = randn(width), 1 + randn(width, scale=0.1)
    mixer = ShortConv.Config(kernel=kernel).build(width).to(DEVICE, DTYPE)
    state = mixer.init_state(1, 8)
    state["conv"].copy_(randn(1, kernel - 1, width))
    past = state["conv"][0].clone()
    ref = mixer.mix_step(norm_of(x, weight)[None], state, torch.zeros(1))
    y = torch.full_like(x, torch.nan)
    norm = weight, 1e-5
    gemv.conv(x, norm, mixer.in_proj.weight, mixer.conv, past, y, plan=plan, pdl=PDL)
    close(F.linear(y, mixer.out_proj.weight), ref[0])
    close(past, state["conv"][0])


@pytest.mark.parametrize("plan", PLANS)
def test_gate_up(plan):
    x, w, weight = randn(160), randn(94, 160), 1 + randn(160, scale=0.1)
    gate, up = F.linear(norm_of(x, weight), w).chunk(2)
    out = torch.full_like(gate, torch.nan)
    close(gemv.gate_up(x, (weight, 1e-5), w, out, plan=plan, pdl=PDL), F.silu(gate) * up)


def moe(width=128, num_experts=8, top_k=3):
    config = MoE.Config(num_experts=num_experts, top_k=top_k, expansion=0.5, routed_scale=1.5)
    module = config.build(width).to(DEVICE, DTYPE)
    module.expert_bias.normal_(0, 0.05)
    return module


@torch.no_grad()
def test_experts_of_one_token():
    module, x, weight = moe(), randn(128), 1 + randn(128, scale=0.1)
    normed_1D, norm = norm_of(x, weight)[None], (weight, 1e-5)
    logits = module.router(normed_1D)[0]
    close(gemv.linear(x, module.router.weight, randn(8), norm=norm), logits)
    # Of the same logits, so that both choose and weigh alike; and exactly, since the plain form's
    # own bfloat16 is as far from exact as the kernels may be.
    _, chosen = module.route(normed_1D)
    scores_1K = logits.sigmoid().double()[None].gather(1, chosen)
    weights = 1.5 * scores_1K / scores_1K.sum()
    exact_1D = norm_of(x.double(), weight.double())[None]
    up, down = module.gate_up.double(), module.down.double()
    ref = sorted_experts(exact_1D, weights, chosen, up, down)[0]
    hidden = torch.full((3, 64), torch.nan, device=DEVICE, dtype=DTYPE)
    gemv_experts.experts_up(x, norm, logits, module.expert_bias, module.gate_up, hidden)
    out = torch.zeros_like(x)
    gemv_experts.experts_down(
        hidden, logits, module.expert_bias, module.down, out, normalize=True, routed_scale=1.5
    )
    close(out, ref)


TILINGS = [
    experts.Tiling(16, 32, 32, 4, 2, swap=True, tma=True),
    experts.Tiling(16, 64, 32, 4, 2, swap=False, tma=False),
    experts.Tiling(64, 32, 64, 4, 2, swap=False, tma=True),
    experts.Tiling(128, 32, 64, 4, 2, swap=False, tma=True),
]


@pytest.mark.parametrize("num_tokens", [1, 5, 67, 250])
@pytest.mark.parametrize("tiling", TILINGS)
@torch.no_grad()
def test_experts(num_tokens, tiling):
    module, x = moe(), randn(num_tokens, 128)
    weights, chosen = module.route(x)
    ref = sorted_experts(x, weights, chosen, module.gate_up, module.down)
    counts = torch.zeros(8, dtype=torch.int32, device=DEVICE)
    pair_weights, bins = experts.route(
        module.router(x), module.expert_bias, counts, 3, normalize=True, routed_scale=1.5
    )
    assert counts.tolist() == torch.bincount(chosen.flatten(), minlength=8).tolist()
    y = experts.experts(
        x, pair_weights, bins, counts, module.gate_up, module.down, tiling=(tiling, tiling)
    )
    close(y.sum(1), ref)
    residual, weight = randn(num_tokens, 128), 1 + randn(128, scale=0.1)
    after = residual + y.sum(1)
    close(experts.join(residual, y, weight, 1e-5), norm_of(after, weight))
    close(residual, after)


def test_norm_and_gates():
    x, weight = randn(7, 96), 1 + randn(96, scale=0.1)
    close(rows.norm(x, weight, 1e-5), norm_of(x, weight))
    gate, up = x.chunk(2, -1)
    close(rows.silu_mul(x), F.silu(gate) * up)
    stream = randn(7, 96)
    expected = stream + norm_of(x, weight)
    assert rows.add_normed(stream, x, (weight, 1e-5)) is None
    close(stream, expected)


def test_what_is_added_normed_is_normed_for_who_reads_next():
    x, y = randn(7, 96), randn(7, 96)
    weight, after = (1 + randn(96, scale=0.1) for _ in range(2))
    expected = x + norm_of(y, weight)
    normed = rows.add_normed(x, y, (weight, 1e-5), after=(after, 1e-3))
    close(x, expected)
    close(normed, norm_of(x, after, 1e-3))


@pytest.mark.parametrize("num_heads", [3, 40])
def test_heads_are_scaled_by_their_gates(num_heads):
    x, gate = randn(5, num_heads * 64), randn(5, num_heads)
    expected = (x.view(5, num_heads, 64) * gate.sigmoid()[..., None]).flatten(1)
    rows.gate_heads(x, gate)
    close(x, expected)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("time", [1, 2, 3, 37])
@torch.no_grad()
def test_conv(kernel, time):
    mixer = ShortConv.Config(kernel=kernel).build(96).to(DEVICE, DTYPE)
    x, state = randn(2, time, 96), mixer.init_state(2, 64)
    state["conv"].copy_(randn(2, kernel - 1, 96))
    past = state["conv"].clone()
    ref, _ = mixer(x, state)
    y = rows.conv(F.linear(x, mixer.in_proj.weight), mixer.conv, past)
    close(F.linear(y, mixer.out_proj.weight), ref)
    close(past, state["conv"])
    x = randn(2, 96)
    ref, _ = mixer.step(x, state, positions_B=torch.zeros(2))
    y = rows.conv_step(F.linear(x, mixer.in_proj.weight), mixer.conv, past)
    close(F.linear(y, mixer.out_proj.weight), ref)
    close(past, state["conv"])


@pytest.mark.parametrize("window", [5, 40])
@pytest.mark.parametrize("real", [None, (21, 9), (3, 14)])
@torch.no_grad()
def test_a_ring_keeps_the_last_tokens(window, real):
    """Of a prompt into an empty state; its keys also stay where they are."""
    mixer = SWA.Config(head_dim=32, queries_per_kv=2, window=window).build(192).to(DEVICE, DTYPE)
    batch, time = 2, 21
    x, state = randn(batch, time, 192), mixer.init_state(batch, 64)
    mine = state.snapshot()
    positions = torch.arange(time, device=DEVICE).expand(batch, time)
    real_B = None if real is None else torch.tensor(real, device=DEVICE)
    shared = mixer.features(x, state, Span(positions, lengths_B=real_B))
    qkv = F.linear(x, mixer.qkv_proj.weight)
    norms = (mixer.q_norm.weight, mixer.k_norm.weight, 1e-5)
    tables = attention.rope_tables(64, 32, mixer.rope, torch.device(DEVICE))
    lengths = torch.zeros(batch, dtype=torch.int64, device=DEVICE)
    attention.store(qkv, norms, tables, mine["k"], mine["v"], lengths, real_B=real_B, keys_too=True)
    for name in ("k", "v"):
        # Slots that no token of a row belongs to hold what they held.
        for row in range(batch):
            filled = min(time if real is None else real[row], mine[name].shape[2])
            close(mine[name][row, :, :filled], state[name][row, :, :filled])
    width = 192
    k_BTMH = qkv[..., width : width + width // 2].unflatten(-1, (-1, 32))
    close(k_BTMH.transpose(1, 2), shared["k"][:, :, -time:])
    close(qkv[..., :width].unflatten(-1, (-1, 32)).transpose(1, 2), mixer.queries(x, positions))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("parts", [1, 4])
@torch.no_grad()
def test_attention(parts, gated):
    config = GQA.Config(head_dim=32, queries_per_kv=2, head_gate=gated)
    mixer = config.build(192).to(DEVICE, DTYPE)
    for weight in (mixer.q_norm.weight, mixer.k_norm.weight):
        weight.normal_(1, 0.1)
    batch, time, slots = 2, 21, 64
    state = mixer.init_state(batch, slots)
    mine = state.snapshot()
    x = randn(batch, time, 192)
    mixer(x, state)
    norms = (mixer.q_norm.weight, mixer.k_norm.weight, 1e-5)
    tables = attention.rope_tables(slots, 32, 1e6, torch.device(DEVICE))
    lengths = torch.zeros(batch, dtype=torch.int64, device=DEVICE)
    qkv = F.linear(x, mixer.qkv_proj.weight)
    attention.store(qkv, norms, tables, mine["k"], mine["v"], lengths)
    close(mine["k"], state["k"])
    close(mine["v"], state["v"])
    positions = torch.arange(time, device=DEVICE).expand(batch, time)
    queries = qkv[..., :192].unflatten(-1, (-1, 32)).transpose(1, 2)
    close(queries, mixer.queries(x, positions))
    lengths += torch.tensor([time, 3], device=DEVICE)
    x = randn(batch, 192)
    ref, _ = mixer.step(x, state, positions_B=lengths)
    y = attention.step(
        F.linear(x, mixer.qkv_proj.weight), norms, tables, mine["k"], mine["v"], lengths,
        mixer.scale, gate_BN=mixer.gate_proj(x) if gated else None, block=16, parts=parts,
    )  # fmt: skip
    close(mixer.out_proj(y), ref)
    close(mine["k"], state["k"])


def test_rope_tables_match_rotate():
    cos, sin = attention.rope_tables(50, 32, 1e4, torch.device(DEVICE))
    x = torch.randn(1, 1, 50, 32, device=DEVICE)
    low, high = x.chunk(2, -1)
    ref = rotate(x, torch.arange(50, device=DEVICE)[None], 1e4)
    close(torch.cat([low * cos - high * sin, high * cos + low * sin], -1), ref)


def test_greedy_choice_takes_the_first_of_equals():
    lengths = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    choice, plain = Choice.of_rows(lengths), Choice.of_rows(lengths)
    for turn in range(3):
        logits = randn(3, 5000).round()
        rows.choose_greedily(logits, choice, lengths)
        top = logits.max(1, keepdim=True).values
        firsts = [int((row == t).nonzero()[0]) for row, t in zip(logits, top, strict=True)]
        assert choice.ids_B.tolist() == firsts
        assert choice.told_22B[turn % 2].tolist() == [firsts, top[:, 0].tolist()]
        assert lengths.tolist() == choice.turns_B.tolist() == [turn + 1] * 3
        plain.take(logits)
        assert torch.equal(plain.told_22B[:, 1], choice.told_22B[:, 1])


@pytest.mark.parametrize("place", [0, 2500, 4999])
def test_no_number_is_chosen_where_one_is_missing(place):
    logits = randn(3, 5000)
    logits[1, place] = torch.nan
    logits[2] = torch.nan
    lengths = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    choice = Choice.of_rows(lengths)
    rows.choose_greedily(logits, choice, lengths)
    assert choice.told_22B[0, 1].isnan().tolist() == [False, True, True]
    assert bool(((choice.ids_B >= 0) & (choice.ids_B < 5000)).all())
