"""What the tests of mixers and engines share: where what they find is kept."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from archloop import registry


@pytest.fixture
def found() -> Callable[[str, str, float], None]:
    """Keeps how far an engine lies from eager PyTorch, where `make test-engines` asks for it.

    The file is the source of the table in docs/runtimes.md; of several lines on one part and engine
    the last counts, so that a part of the matrix can be run again alone.
    """

    def keep(part: str, engine: str, error: float) -> None:
        if asked := os.environ.get("ARCHLOOP_ENGINES_TABLE"):
            version = registry.get("runtimes", engine)().version()
            row = {
                "part": part,
                "engine": engine,
                "version": version,
                "error": float(f"{error:.2g}"),
            }
            with Path(asked).open("a") as file:
                file.write(json.dumps(row) + "\n")

    return keep
