"""Artifacts of one measurement: whose they are, and for how long."""

from pathlib import Path
from typing import Any

import pytest

from archloop.devices.host import Host
from archloop.profiling import artifacts
from archloop.profiling.artifacts import Wanted, held_artifacts
from archloop.profiling.exporter import Export
from archloop.profiling.target import Target
from archloop.runtimes.artifact import Manifest, checksums
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.spec import StackSpec

REFERENCE = StackSpec(d_model=64, vocab_size=8, blocks=())
CANDIDATE = StackSpec(d_model=128, vocab_size=8, blocks=())


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of what was exported: a folder each, since no engine is needed here."""
    widths: list[int] = []

    def write(asked: Export, *_: object, **__: object) -> None:
        asked.directory.mkdir()
        (asked.directory / "weights").write_bytes(b"float32")
        manifest = Manifest(
            spec=asked.spec,
            runtime=asked.runtime,
            version="1",
            quant=asked.quant,
            precision="float32",
            weight_bytes={},
            files=checksums(asked.directory),
        )
        manifest.write(asked.directory)
        widths.append(asked.spec.d_model)

    monkeypatch.setattr(artifacts, "export_apart", write)
    return widths


def held(kept: Path, scratch: Path) -> Any:
    scratch.mkdir()
    wanted = Wanted(
        {"candidate": CANDIDATE, "reference": REFERENCE},
        Target(runtime="torch_eager"),
        0,
        60.0,
        scratch / "logs",
    )
    return held_artifacts(wanted, TorchEager(), Host(), kept=kept, scratch=scratch)


def no_runner(*_: object) -> Any:
    raise AssertionError("nothing is to be compared")


def test_two_measurements_of_one_candidate_at_once_do_not_share_its_artifact(
    tmp_path: Path, written: list[int]
) -> None:
    with held(tmp_path / "kept", tmp_path / "second") as second:
        with held(tmp_path / "kept", tmp_path / "first") as first:
            mine = Path(first.on_device("candidate", no_runner))
            other = Path(second.on_device("candidate", no_runner))
        # The first ended, and took nothing from the second.
        assert not mine.exists()
        assert (other / "manifest.json").exists()
        assert Path(second.on_device("candidate", no_runner)) == other
    assert not other.exists()
    assert written == [128, 128]


def test_other_code_exports_the_reference_again(
    tmp_path: Path, written: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in ("old", "new", "new"):
        monkeypatch.setattr(artifacts, "code_digest", lambda code=code: code)
        with held(tmp_path / "kept", tmp_path / f"{code}{len(written)}") as found:
            found.on_device("reference", no_runner)
    assert written == [64, 64]


def test_the_references_is_exported_once_and_stays(tmp_path: Path, written: list[int]) -> None:
    for name in ("first", "second"):
        with held(tmp_path / "kept", tmp_path / name) as found:
            path = Path(found.on_device("reference", no_runner))
    assert (path / "manifest.json").exists()
    assert written == [64]


@pytest.mark.parametrize("damage", ["lost", "changed", "no manifest"])
def test_a_kept_one_that_is_not_whole_is_exported_again(
    damage: str, tmp_path: Path, written: list[int]
) -> None:
    with held(tmp_path / "kept", tmp_path / "first") as found:
        path = Path(found.on_device("reference", no_runner))
    if damage == "lost":
        (path / "weights").unlink()
    elif damage == "changed":
        (path / "weights").write_bytes(b"float16")
    else:
        (path / "manifest.json").unlink()
    with held(tmp_path / "kept", tmp_path / "second") as found:
        assert Path(found.on_device("reference", no_runner)) == path
        assert found.manifest("reference").spec == REFERENCE
    assert (path / "weights").read_bytes() == b"float32"
    assert written == [64, 64]
