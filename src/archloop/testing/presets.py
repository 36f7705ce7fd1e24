"""The contract of presets: a file that says a whole stack, which can be built and counted."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from archloop import registry
from archloop.stack import cost, presets
from archloop.stack.spec import StackSpec


class PresetContract:
    """Tests of presets, those of ``<folder>/presets/*.yaml`` where `names` says nothing else."""

    folder: ClassVar[Path | None] = None
    names: ClassVar[Sequence[str] | None] = None

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once for each preset."""
        if "preset" in metafunc.fixturenames:
            metafunc.parametrize("preset", self.presets())

    @classmethod
    def presets(cls) -> list[str]:
        """Names of the presets to test.

        Raises:
            ValueError: there are none.
        """
        names = list(cls.names or ())
        if cls.folder is not None:
            registry.add_folder(cls.folder)
            names = names or sorted(file.stem for file in (cls.folder / "presets").glob("*.yaml"))
        if not names:
            raise ValueError(f"{cls.__name__}: set folder to one with presets/*.yaml, or names")
        return names

    def test_is_listed_and_says_itself_in_json(self, preset: str) -> None:
        assert preset in presets.names()
        spec = presets.load(preset)
        assert StackSpec.from_json(spec.to_json()) == spec

    def test_can_be_built_and_is_counted(self, preset: str) -> None:
        spec = presets.load(preset)
        cost.check(spec)
        assert 0 < cost.num_active_params(spec) <= cost.num_params(spec)
        assert 0 < cost.decode_flops(spec, 100) < cost.prefill_flops(spec, 100)
        assert len(spec.layout) == spec.num_blocks

    def test_its_twin_if_any_has_as_many_parameters(self, preset: str) -> None:
        name = preset + presets.TWIN_SUFFIX
        if name not in presets.names():
            pytest.skip("has no all-attention twin")
        spec, twin = presets.load(preset), presets.load(name)
        # Hidden widths are whole multiples of 8, which tells in a narrow model.
        rounding = 4 * 3 * spec.d_model * spec.num_blocks
        wanted = cost.num_params(spec)
        assert cost.num_params(twin) == pytest.approx(wanted, rel=1e-3, abs=rounding)
        assert len(Counter(twin.layout)) <= 2
