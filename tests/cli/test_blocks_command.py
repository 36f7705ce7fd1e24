"""`archloop blocks`: ends, halves and whole stacks of a recipe's space in one table."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from archloop.cli import app
from archloop.profiling.block_table import read_table
from archloop.profiling.record import Profile
from archloop.stack.spec import StackSpec
from search.stand_in import CONTEXTS, settings
from search.test_screening import said


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[StackSpec]:
    """Stacks that were measured; none is, their figures are made up."""
    found: list[StackSpec] = []

    def profile(spec: StackSpec, target: Any, config: Any, *, directory: Path) -> Profile:
        del target, config
        found.append(spec)
        return said(spec, directory)

    monkeypatch.setattr("archloop.profiling.profile", profile)
    return found


@pytest.mark.parametrize("place", [".", "", "/"])
def test_a_folder_is_refused_before_anything_is_measured(
    measured: list[StackSpec], tmp_path: Path, place: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings()))
    found = CliRunner().invoke(app, ["blocks", str(recipe), "-o", place, "--most", "1"])
    assert (found.exit_code, "is a folder; name the table's file" in found.stderr) == (2, True)
    assert not measured


def test_a_table_has_ends_halves_and_whole_stacks(
    measured: list[StackSpec], tmp_path: Path
) -> None:
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "blocks.json"
    recipe.write_text(yaml.safe_dump(settings()))
    asked = ["blocks", str(recipe), "-o", str(file), "--most", "3", "--stacks", "2", "--json"]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["rows"] == 6 * len(CONTEXTS)
    rows = [row for row in read_table(file).rows if row.context == CONTEXTS[0]]
    sizes = sorted(len(row.spec.blocks) for row in rows)
    assert sizes == [0, 4, 4, 4, 4, 4], "ends, four copies of three halves, stacks of four blocks"
    assert all(row.where.written_by and row.where.doubt is None for row in rows)
    whole = [row.spec for row in rows if all(b.channel_mixer and b.mixers for b in row.spec.blocks)]
    assert len([spec for spec in whole if spec.blocks]) == 2
    assert len(measured) == 6
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert len(measured) == 6, "what is there is not measured again"
