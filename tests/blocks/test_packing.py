"""Packed rows with padding among their tokens."""

import pytest
import torch

from archloop import registry
from archloop.blocks.packing import segment_positions


@pytest.mark.parametrize("name, config", [("gqa", {}), ("swa", {"window": 3}), ("mla", {})])
def test_padding_inside_a_packed_sequence_takes_no_position(
    name: str, config: dict[str, int]
) -> None:
    torch.manual_seed(0)
    mixer = registry.get("mixers", name).Config(head_dim=16, **config).build(32).double()
    x_BTD = torch.randn(2, 12, 32, dtype=torch.float64)
    segments_BT = torch.tensor([[0] * 7 + [1] * 5, [3] * 2 + [0] * 10])
    mask_BT = torch.tensor(
        [[1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1, 1], [0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1]]
    )
    mask_BT = mask_BT.bool()
    with torch.no_grad():
        y_BTD, _ = mixer(x_BTD, segments_BT=segments_BT, mask_BT=mask_BT)
        for row, segment in ((0, 0), (0, 1), (1, 3), (1, 0)):
            here_T = (segments_BT[row] == segment) & mask_BT[row]
            alone_1TD, _ = mixer(x_BTD[row, here_T][None])
            assert torch.allclose(y_BTD[row, here_T][None], alone_1TD, atol=1e-12)


def test_positions_count_real_tokens() -> None:
    segments_BT = torch.tensor([[5, 5, 5, 2, 2, 2]])
    assert segment_positions(segments_BT).tolist() == [[0, 1, 2, 0, 1, 2]]
    mask_BT = torch.tensor([[True, False, True, False, True, True]])
    positions_BT = segment_positions(segments_BT, mask_BT)
    assert positions_BT[mask_BT].tolist() == [0, 1, 0, 1]
