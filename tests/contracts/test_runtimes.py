"""Every runtime of the library keeps its contract."""

from typing import Any

import pytest

from archloop import registry
from archloop.testing import RuntimeContract


class TestRuntimes(RuntimeContract):
    names = registry.shipped("runtimes")

    @classmethod
    def marks(cls, name: str, quant: str) -> tuple[Any, ...]:
        """Compiling and lowering take long: eager alone runs by default, one of each in CI."""
        # One process exports for all tests of a quantisation.
        one = pytest.mark.xdist_group(f"{name}-{quant}")
        if name == "torch_cuda":
            return (one, pytest.mark.gpu)
        if name == "torch_eager":
            return (one,)
        if quant == registry.get("runtimes", name).quants[0]:
            return (one, pytest.mark.ci, pytest.mark.timeout(900))
        # Engines of other packages, which make test-engines installs.
        others = pytest.mark.slow if name.startswith("torch_") else pytest.mark.engines
        return (one, others, pytest.mark.timeout(900))
