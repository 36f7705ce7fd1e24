"""Every checkpoint layout of the library keeps its contract."""

import pytest

from archloop import registry
from archloop.checkpoints import families
from archloop.stack import cost, presets
from archloop.testing import LayoutContract


class TestLayouts(LayoutContract):
    names = registry.shipped("layouts")


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_can_be_said_in_a_family(name: str) -> None:
    spec = presets.load(name)
    layout, config = families.saying(spec)
    again = layout.read(config)
    assert cost.num_params(again) == cost.num_params(spec)
    assert again.layout == spec.layout
