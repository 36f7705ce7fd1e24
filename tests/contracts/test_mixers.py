"""Every mixer of the library keeps its contract, each length of the full grid too (slow)."""

import pytest
import torch

from archloop import registry
from archloop.testing import MixerContract
from archloop.testing import modules as kit

NAMES = registry.shipped("mixers")


class TestMixers(MixerContract):
    names = NAMES


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", kit.cases("mixers", NAMES) + kit.gene_cases(NAMES), ids=kit.case_id
)
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 127, 257, 1_000, 4_097])
def test_any_length_in_any_chunks(case: kit.Case, time: int) -> None:
    mixer = kit.make(case)
    x_BTD = kit.inputs(time)
    with torch.no_grad():
        full_BTD, _ = mixer(x_BTD)
    generator = torch.Generator().manual_seed(time)
    sizes: list[int] = []
    while sum(sizes) < time:
        size = int(torch.randint(1, max(2, time // 2), (1,), generator=generator))
        sizes.append(min(size, time - sum(sizes)))
    assert (
        kit.error(kit.chunks(mixer, x_BTD, kit.init_state(mixer, time), sizes), full_BTD)
        < kit.EXACT
    )
