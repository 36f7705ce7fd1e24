"""archloop profile: what its options ask of the measurement."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from archloop.cli import app
from archloop.devices import lease
from archloop.profiling import protocol
from archloop.profiling.summary import profile_from_samples
from profiling.samples import pair, process, samples

Asked = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the measurement is asked; it answers with samples made by hand."""
    calls: Asked = []

    def measure(*arguments: Any, **named: Any) -> Any:
        calls.append((arguments, named))
        found = samples(*(pair(process(scale), process(1.0)) for scale in (1.0, 1.1)))
        named["directory"].mkdir(parents=True, exist_ok=True)
        found.write(named["directory"])
        return profile_from_samples(found)

    monkeypatch.setattr(protocol, "profile", measure)
    return calls


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["profile", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_model_beside_itself_is_the_noise_floor(asked: Asked) -> None:
    status, told, _ = run("lfm2-350m", "--aa", "--contexts", "100,200")
    assert status == 0
    ((spec, *_), named) = asked[0]
    assert named["reference"] == spec
    assert "one sample of the noise" in told
    status, _, problem = run("lfm2-350m", "--aa", "--reference", "lfm2-350m")
    assert (status, "leave --reference out" in problem) == (2, True)


def test_a_device_comes_with_its_settings(asked: Asked, tmp_path: Path) -> None:
    status, _, _ = run(
        "lfm2-350m", "--device", "ssh:host=box,port=2222", "--output", str(tmp_path / "kept")
    )
    assert status == 0
    (_, target, _), named = asked[0]
    assert target.device.name == "ssh"
    assert target.device.open().config.port == 2222
    assert named["reference"] is None
    status, _, problem = run("lfm2-350m", "--device", "ssh:box")
    assert (status, "'box' has no value" in problem) == (2, True)


def test_it_takes_the_device_while_it_measures(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure, free = protocol.profile, []

    def watched(*arguments: Any, **named: Any) -> Any:
        try:
            with lease.lease("host", alone=False, cancelled=lambda: True):
                free.append("host")
        except lease.LeaseCancelledError:
            pass
        return measure(*arguments, **named)

    monkeypatch.setattr(lease, "FOLDER", tmp_path / "leases")
    monkeypatch.setattr(protocol, "profile", watched)
    assert run("lfm2-350m", "--contexts", "100")[0] == 0
    assert len(asked) == 1
    assert not free


def test_a_presets_own_figures_are_measured_once_and_ratios_each_time(asked: Asked) -> None:
    once = run("lfm2-350m", "--contexts", "100", "--json")
    again = run("lfm2-350m", "--contexts", "100", "--json")
    assert (len(asked), once[1]) == (1, again[1])
    assert "--again measures it anew" in again[2]
    for other in (
        ["--contexts", "100", "--again"],
        ["--contexts", "200"],
        ["--contexts", "100", "--processes", "4"],
        ["--contexts", "100", "--reference", "lfm2-350m-attention"],
        ["--contexts", "100", "--reference", "lfm2-350m-attention"],
    ):
        before = len(asked)
        assert run("lfm2-350m", *other)[0] == 0
        assert len(asked) == before + 1
