"""Every runtime of the library keeps its contract."""

from typing import Any

import pytest

from archloop import registry
from archloop.testing import RuntimeContract


class TestRuntimes(RuntimeContract):
    names = registry.shipped("runtimes")

    @classmethod
    def marks(cls, name: str, quant: str) -> tuple[Any, ...]:
        """Compiling takes seconds a session: by default eager alone runs."""
        if name == "torch_cuda":
            return (pytest.mark.gpu,)
        if not name.startswith("torch_"):
            # Engines of other packages, which make test-ci installs; some lower for a minute.
            return (pytest.mark.ci, pytest.mark.timeout(900))
        if name == "torch_eager":
            return ()
        first = quant == registry.get("runtimes", name).quants[0]
        return (pytest.mark.ci if first else pytest.mark.slow,)
