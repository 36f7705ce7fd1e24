"""What works here, as the command says it, and with plug-ins that do not work."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from archloop import registry
from archloop.cli import app
from archloop.devices.ssh import Ssh
from archloop.profiling.doctor import examine

Plugin = Callable[[str, str], None]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    monkeypatch.setattr(registry, "_folders", {tmp_path: None})
    (tmp_path / "runtimes").mkdir()

    def write(name: str, source: str) -> None:
        (tmp_path / "runtimes" / f"{name}.py").write_text(source)

    return write


def test_every_runtime_and_device_is_told() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert [each["name"] for each in told["runtimes"]] == registry.names("runtimes")
    assert [each["name"] for each in told["devices"]] == registry.names("devices")
    for each in told["runtimes"] + told["devices"]:
        assert each["works"] or each["remedy"]
    eager = next(each for each in told["runtimes"] if each["name"] == "torch_eager")
    assert (eager["exports"], eager["works"], eager["remedy"]) == (True, True, None)


def test_what_is_missing_comes_with_its_remedy(plugin: Plugin) -> None:
    plugin(
        "chip",
        "from archloop.runtimes.torch_eager import TorchEager\n\n"
        "class Chip(TorchEager):\n"
        "    def missing_to_run(self):\n        return 'a chip; buy one'\n",
    )
    plugin("broken", "import nothing_of_this_name\n")
    found = {each.name: each for each in examine()}
    assert (found["chip"].exports, found["chip"].works) == (True, False)
    assert found["chip"].remedy == "a chip; buy one"
    assert not found["broken"].works
    assert "nothing_of_this_name" in (found["broken"].remedy or "")


def test_a_device_whose_client_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Ssh.missing() == "needs the ssh command; apt-get install openssh-client"


def test_a_remedy_is_shown_letter_by_letter(plugin: Plugin) -> None:
    """The name of an extra in brackets, which would be a tag in rich's mark-up."""
    plugin(
        "chip",
        "from archloop.runtimes.torch_eager import TorchEager\n\n"
        "class Chip(TorchEager):\n"
        "    def missing_to_run(self):\n        return \"pip install 'chip[fast]'\"\n",
    )
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "'chip[fast]'" in result.stdout
