"""Memory of this process, and where another system's comes from."""

import mmap
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from archloop.errors import UserError
from archloop.profiling import memory


def test_what_is_touched_is_resident_and_in_the_peak() -> None:
    before = memory.read()
    # Pages of its own: an array might get memory that this process freed and still has.
    with mmap.mmap(-1, num_bytes := 1 << 26) as held:
        held.write(b"x" * num_bytes)
        after = memory.read()
    assert after["resident_bytes"] - before["resident_bytes"] > 0.9 * num_bytes
    assert after["peak_bytes"] >= after["resident_bytes"]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system without /proc."""
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")


@pytest.mark.parametrize("told", [{"rss": 5, "peak_wset": 9}, {"rss": 5}])
def test_other_systems_are_asked_through_psutil(
    elsewhere: None, told: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(**told))
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    found = memory.read()
    assert set(found) == {
        "peak_bytes",
        "resident_bytes",
        "anonymous_bytes",
        "file_bytes",
        "swapped_bytes",
    }
    assert (found["resident_bytes"], found["file_bytes"]) == (5, 0)
    if "peak_wset" in told:
        assert found["peak_bytes"] == 9
    else:
        assert found["peak_bytes"] > 1 << 10


def test_a_system_without_either_says_what_to_install(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(UserError, match="pip install psutil"):
        memory.read()
