"""Usable cores: the smallest of what the scheduler and each control group allow."""

import os
from pathlib import Path

import pytest

from archloop.devices import cores


@pytest.mark.parametrize(
    ("own", "around", "expected"),
    [
        ("max 100000", "max 100000", 8),
        ("250000 100000", "max 100000", 2),
        ("max 100000", "300000 100000", 3),
        ("50000 100000", "300000 100000", 1),
        ("no quota at all", "max 100000", 8),
    ],
)
def test_quotas_of_every_group_count(
    own: str, around: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groups" / "pod" / "box").mkdir(parents=True)
    (tmp_path / "groups" / "pod" / "box" / "cpu.max").write_text(own + "\n")
    (tmp_path / "groups" / "pod" / "cpu.max").write_text(around + "\n")
    (tmp_path / "cgroup").write_text("1:cpu:/elsewhere\n0::/pod/box\n")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores.usable_cores() == expected


def test_a_system_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "OWN_CGROUP", tmp_path / "absent")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert cores.usable_cores() == 2
