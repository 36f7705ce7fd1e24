"""What state space mixers must keep to beyond the contracts that hold for every family."""

import copy

import pytest
import torch

from archloop.blocks import Mamba3


@pytest.mark.parametrize("rank", [1, 2])
def test_mamba3_reads_of_itself_what_a_longer_next_step_does_not_round_away(rank: int) -> None:
    """Short and long steps in turn: a token adds far more to the state than it reads of it."""
    torch.manual_seed(0)
    mixer = Mamba3.Config(rank=rank, state_dim=8, head_dim=8).build(16).bfloat16()
    with torch.no_grad():
        mixer.skip.zero_()
    x_BTD = 0.1 * torch.randn(2, 40, 16)
    x_BTD[:, 1::2] *= 100
    x_BTD = x_BTD.bfloat16()
    with torch.no_grad():
        want_BTD, _ = copy.deepcopy(mixer).double()(x_BTD.double())
        got_BTD, _ = mixer(x_BTD)
    error_BT = (got_BTD.double() - want_BTD).norm(dim=-1) / want_BTD.norm(dim=-1)
    assert error_BT.max() < 0.12
