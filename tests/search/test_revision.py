"""A study made from a clone knows the commit of its code, and whether files differ from it."""

import subprocess
from pathlib import Path

import pytest

from archloop.search.revision import revision


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "archloop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    return package


def test_of_a_clone_the_commit_and_whether_it_was_changed(clone: Path) -> None:
    head = subprocess.check_output(["git", "-C", str(clone), "rev-parse", "HEAD"], text=True)
    assert revision(clone) == head.strip()
    (clone / "__init__.py").write_text("changed = True\n")
    assert revision(clone) == f"{head.strip()}+changes"


def test_code_that_a_clone_does_not_track_has_no_commit(clone: Path) -> None:
    installed = clone.parent.parent / ".venv" / "archloop"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert revision(installed) is None


def test_without_git_there_is_none(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(clone))
    assert revision(clone) is None
