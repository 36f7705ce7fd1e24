"""Other packages' layers that the mixer benchmark times: ours' sizes, and a decode that agrees."""

import pytest
import torch

import layer_peers as peers
from archloop import registry

WIDTH, TIME = 64, 20


@pytest.mark.parametrize("mixer", [name for name in peers.PEERS if name != "gla"])
def test_peer_is_as_large_as_ours_and_decodes_what_it_trains(mixer: str) -> None:
    torch.manual_seed(0)
    _, build = peers.PEERS[mixer]
    peer = build(WIDTH)
    ours = registry.get("mixers", mixer).Config().build(WIDTH)
    # s5-pytorch's liquid layer is of another shape: one state space for all channels.
    assert peers.num_params(peer) == pytest.approx(peers.num_params(ours), rel=0.3)
    x_BTD = torch.randn(2, TIME, WIDTH, requires_grad=True)
    y_BTD, _ = peer(x_BTD)
    y_BTD.sum().backward()
    assert y_BTD.shape == x_BTD.shape
    assert y_BTD.isfinite().all()
    assert x_BTD.grad is not None
    state = peer.init_state(2, TIME)
    first_BTD, _ = peer(x_BTD[:, : TIME // 2], state)
    assert not first_BTD.requires_grad
    steps = [
        peer.step(x_BTD[:, t].detach(), state, positions_B=torch.tensor([t, t]))[0]
        for t in range(TIME // 2, TIME)
    ]
    decoded_BTD = torch.cat([first_BTD, torch.stack(steps, 1)], 1)
    torch.testing.assert_close(decoded_BTD, y_BTD.detach(), atol=1e-5, rtol=1e-4)


def test_s5_keeps_its_complex_parameters() -> None:
    _, build = peers.PEERS["s5"]
    peer = build(WIDTH).to(torch.bfloat16)
    y_BTD, _ = peer(torch.randn(1, 3, WIDTH, dtype=torch.bfloat16))
    assert y_BTD.dtype == torch.bfloat16
    assert any(p.is_complex() for p in peer.parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_layer_that_needs_a_gpu_says_so() -> None:
    _, build = peers.PEERS["gla"]
    with pytest.raises(RuntimeError, match="need a GPU"):
        build(WIDTH)
