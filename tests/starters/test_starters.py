"""What `archloop init` writes works: recipes that plan accepts, a mixer that keeps its contract."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from archloop import starters
from archloop.cli import app
from archloop.errors import UserError
from archloop.search import plan
from archloop.search.recipe.recipe import load


def begun(folder: Path, *arguments: str) -> list[Path]:
    shown = CliRunner().invoke(app, ["init", str(folder), *arguments, "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert told["next"][-1] == f"archloop search {told['files'][0]}"
    return [Path(path) for path in told["files"]]


def on_this_machine(path: Path) -> Path:
    """The recipe with what this machine lacks (a card, a phone, text) put in what it has."""
    data = yaml.safe_load(path.read_text())
    for target in data["targets"].values():
        target.update(device="host", runtime="torch_eager", quant="fp32")
    data["proxy"] = {**data["proxy"], "device": "cpu"}
    data["proxy"].pop("corpus", None)
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize("plugin", [False, True], ids=["alone", "plugin"])
@pytest.mark.parametrize("purpose", starters.PURPOSES)
def test_a_recipe_of_every_purpose_is_one_that_plan_resolves(
    purpose: str, plugin: bool, tmp_path: Path
) -> None:
    path, *others = begun(tmp_path, "--for", purpose, "--name", "mine", *["--plugin"] * plugin)
    assert path == tmp_path / "mine.yaml"
    assert (tmp_path / "plugins" / "mixers" / "my_mixer.py" in others) == plugin
    # As it was written: every name, key and value; a comment for every section.
    recipe = load(path)
    assert recipe.name == "mine"
    assert ("my_mixer" in recipe.space.mixers) == plugin
    assert path.read_text().count("# ") > 10
    assert "#plugin" not in path.read_text()
    resolved = plan.resolve(load(on_this_machine(path)))
    assert resolved.space.mixers


def test_plan_accepts_the_recipe_of_a_laptop_as_it_is(tmp_path: Path) -> None:
    path, *_ = begun(tmp_path)
    shown = CliRunner().invoke(app, ["plan", str(path), "--no-probe"])
    assert shown.exit_code == 0, shown.output


@pytest.mark.ci
def test_plan_accepts_the_recipe_of_a_phone_as_it_is_where_its_engine_is_installed(
    tmp_path: Path,
) -> None:
    path, *_ = begun(tmp_path, "--for", "phone", "--plugin")
    shown = CliRunner().invoke(app, ["plan", str(path), "--no-probe", "--no-kits"])
    assert shown.exit_code == 0, shown.output


@pytest.mark.ci
def test_the_mixer_that_goes_along_passes_the_tests_that_go_along(tmp_path: Path) -> None:
    *_, test = begun(tmp_path, "--plugin")
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(
        call,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_nothing_is_overwritten_and_wrong_words_are_one_line(tmp_path: Path) -> None:
    begun(tmp_path)
    before = (tmp_path / "laptop.yaml").read_text()
    for arguments, what in [
        ((), "laptop.yaml exists already"),
        (("--plugin",), "exists already"),
        (("--for", "labtop"), "did you mean 'laptop'"),
        (("--name", "../out"), "a study's name is a folder's"),
    ]:
        shown = CliRunner().invoke(app, ["init", str(tmp_path), *arguments])
        assert shown.exit_code == 2
        assert what in shown.stderr
        assert shown.stderr.count("\n") == 1
    assert (tmp_path / "laptop.yaml").read_text() == before
    assert not (tmp_path / "plugins").exists()
    with pytest.raises(UserError, match="exists already"):
        starters.write(tmp_path, {"new.yaml": "a: 1\n", "laptop.yaml": "b: 2\n"})
    assert not (tmp_path / "new.yaml").exists()
