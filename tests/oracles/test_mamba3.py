"""Mamba-3 against a second derivation: its complex state space, one token at a time.

No package is trustworthy (the one in the index blends without decaying the earlier term). Here the
rotated half of the state is complex, turned by ``exp(-i theta)`` in the recurrence itself, as the
paper derives it before moving the rotation into B and C; nothing of our code is used but weights.
"""

import math

import peers
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.mixers.mamba3 import Mamba3


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("time", [4, 70])
def test_agrees_with_the_complex_recurrence(rank: int, time: int) -> None:
    config = Mamba3.Config(head_dim=32, state_dim=8, rank=rank)
    ours = config.build(64).double()
    peers.jitter(ours, scale=0.3)
    x_BTD = peers.inputs(2, time, 64)
    peers.compare(ours(x_BTD)[0], recurrence(ours, x_BTD), x_BTD, *ours.parameters())


def recurrence(ours: Mamba3, x_BTD: Tensor) -> Tensor:
    heads, rank, width = ours.num_heads, ours.config.rank, ours.config.state_dim
    z, c = (x_BTD @ ours.query_proj.weight.T).split(ours.query_widths, -1)
    parts = (x_BTD @ ours.feature_proj.weight.T).split(ours.feature_widths, -1)
    value, b, dt, rate, trap, turn = parts
    dt = torch.log1p(torch.exp(dt + ours.dt_bias))
    heavy_tail = torch.where(rate >= 0, 1 + rate, 1 / (1 - rate.clamp(max=0)))
    a = torch.exp(-heavy_tail.clamp(min=1e-4) * dt)
    blend = torch.sigmoid(trap)
    theta = math.pi * torch.tanh(turn)[:, :, None] * dt[..., None]
    value = value.unflatten(-1, (heads, -1))[:, :, :, None]
    gate = z.unflatten(-1, (heads, -1))[:, :, :, None]
    if rank > 1:
        value, gate = value * ours.mimo_x, gate * ours.mimo_z
    key = modes(b, ours.b_norm.weight, ours.b_bias, ours.num_angles, rank)
    query = modes(c, ours.c_norm.weight, ours.c_bias, ours.num_angles, rank)
    state: Tensor | None = None
    added: Tensor | None = None
    outputs = []
    for t in range(x_BTD.shape[1]):
        # Rotating modes turn by theta at each step; the rest only decay.
        still = torch.zeros(*theta.shape[:1], heads, width - 2 * ours.num_angles)
        angle = torch.cat([theta[:, t], still.double()], -1)
        spin = (a[:, t, :, None] * torch.polar(torch.ones_like(angle), -angle))[..., None]
        new = torch.einsum("bhrk,bhrv->bhkv", key[:, t], value[:, t].to(key.dtype))
        state = torch.zeros_like(new) if state is None else state
        added = torch.zeros_like(new) if added is None else added
        before = ((1 - blend) * dt)[:, t, :, None, None]
        now = (blend * dt)[:, t, :, None, None]
        state = spin * (state + before * added) + now * new
        added = new
        # The real inner product of pairs is the real part of conj(query) times state.
        read = torch.einsum("bhrk,bhkv->bhrv", query[:, t].conj(), state).real
        y = read + ours.skip[:, None, None] * value[:, t]
        y = y * F.silu(gate[:, t])
        outputs.append((y * ours.mimo_o).sum(2) if rank > 1 else y[:, :, 0])
    return torch.stack(outputs, 1).flatten(2) @ ours.out_proj.weight.T


def modes(x_BTd: Tensor, weight: Tensor, bias: Tensor, num_angles: int, rank: int) -> Tensor:
    """Normalised, biased, and with the pairs that rotate made complex: (B, T, N, R, modes)."""
    x = x_BTd.unflatten(-1, (rank, -1))
    x = weight * x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    x = x[:, :, None] + bias
    first, second, rest = x.tensor_split([num_angles, 2 * num_angles], -1)
    return torch.cat([torch.complex(first, second), rest.to(torch.complex128)], -1)
