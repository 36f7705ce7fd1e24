"""Every strategy of the library keeps its contract."""

import pytest

from archloop import registry
from archloop.testing import StrategyContract


class TestStrategies(StrategyContract):
    names = registry.shipped("strategies")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One process for all tests of a strategy: they look at one study, made once."""
        if "name" in metafunc.fixturenames:
            groups = [
                pytest.param(name, marks=pytest.mark.xdist_group(f"strategy {name}"))
                for name in self.plugins()
            ]
            metafunc.parametrize("name", groups)
