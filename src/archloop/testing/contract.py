"""What all kits share: whose plug-ins they test.

A kit is a class of tests to inherit from. Its tests run over the plug-ins that `names` lists or,
left open, over those of `folder`:

    from pathlib import Path
    from archloop.testing import MixerContract

    class TestMine(MixerContract):
        folder = Path(__file__).parent / "plugins"  # with plugins/mixers/mine.py
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from archloop import registry


class Contract:
    """Tests of every plug-in of one kind.

    Attributes:
        kind: of plug-in, as `registry.KINDS` spells it; set by each kit.
        folder: plug-ins outside the package, ``<folder>/<kind>/<name>.py``; None for none.
        names: the plug-ins to test; None for all in `folder`.
    """

    kind: ClassVar[str]
    folder: ClassVar[Path | None] = None
    names: ClassVar[Sequence[str] | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once for each plug-in that it asks for by `name`."""
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.plugins())

    @classmethod
    def plugins(cls) -> list[str]:
        """Names of the plug-ins to test.

        Raises:
            UserError: there are none.
        """
        if cls.folder is not None:
            registry.add_folder(cls.folder)
        names = cls.names
        if names is None:
            found = () if cls.folder is None else (cls.folder / cls.kind).glob("[!_]*.py")
            names = sorted(file.stem for file in found)
        if not names:
            raise ValueError(
                f"{cls.__name__} has no plug-in to test: set folder to one with {cls.kind}/*.py, "
                "or names"
            )
        return list(names)
