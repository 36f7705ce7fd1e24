"""Every strategy of the library keeps its contract."""

from archloop import registry
from archloop.testing import StrategyContract


class TestStrategies(StrategyContract):
    names = registry.shipped("strategies")
