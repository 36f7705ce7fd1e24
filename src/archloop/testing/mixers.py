"""The contract of sequence mixers: all that `blocks.base` promises of every family."""

from typing import ClassVar

import pytest

from archloop.testing.contract import Contract
from archloop.testing.mixer_costs import MixerCosts
from archloop.testing.mixer_forms import MixerForms
from archloop.testing.mixer_numbers import MixerNumbers
from archloop.testing.modules import case_id, cases


class MixerContract(MixerForms, MixerNumbers, MixerCosts, Contract):
    """Tests of sequence mixers, each with its default config and every value of closed choices."""

    kind: ClassVar[str] = "mixers"

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once for each plug-in, or for each of its configs."""
        super().pytest_generate_tests(metafunc)
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", cases(self.kind, self.plugins()), ids=case_id)
