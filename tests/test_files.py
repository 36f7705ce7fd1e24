"""Whole files that others may read, and a cache folder that can be written."""

from pathlib import Path

import pytest

from archloop.files import usable_cache_dir, write_atomic


def test_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert usable_cache_dir(tmp_path / "other") == tmp_path / "cache" / "archloop"
    assert not (tmp_path / "other").exists()


def test_a_cache_that_cannot_be_written_is_replaced_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A file where the folder should be: not even the superuser can write there.
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert usable_cache_dir(tmp_path / "other") == tmp_path / "other"
    assert len(caplog.records) == 1
    assert str(tmp_path / "other") in caplog.text


def test_a_user_without_a_home_has_no_cache_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert usable_cache_dir(tmp_path) == tmp_path


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name_is_no_file(path: str) -> None:
    with pytest.raises(IsADirectoryError):
        write_atomic(Path(path), b"new")


def test_a_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "file", b"old")
    write_atomic(tmp_path / "a" / "file", b"new")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a" / "file").read_bytes() == b"new"
    assert (tmp_path / "a" / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["file"]
