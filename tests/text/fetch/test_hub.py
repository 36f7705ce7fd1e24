"""Data sets of the hub: which of their files are taken, and what is said when none can be."""

import errno
import json
from types import SimpleNamespace

import pytest
from huggingface_hub.hf_api import RepoFile

from archloop.text.fetch import hub

HELD = {
    "README.md": 10,
    "LICENSE.txt": 10,
    "data/a.jsonl": 900,
    "data/b.jsonl": 90,
    "data/c.jsonl": 90,
    "dataset_infos.json": 10,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A hub with one data set, whose files are those of a folder."""
    for name in HELD:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": f"of {name}"}))
    entries = [RepoFile(path=name, size=size, oid="0") for name, size in HELD.items()]
    api = SimpleNamespace(
        dataset_info=lambda name: SimpleNamespace(sha="abc", card_data=None),
        list_repo_tree=lambda name, **_: iter(entries),
    )
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, path, **_: str(tmp_path / path))
    return tmp_path


def taken(**limits):
    documents = hub.download("owner/name", hub.Limits(**limits)).documents()
    return [document.name.partition(":")[0] for document in documents]


def test_what_describes_a_data_set_is_none_of_its_data(folder):
    assert taken() == ["data/a.jsonl", "data/b.jsonl", "data/c.jsonl"]


def test_the_first_file_of_data_is_taken_however_large(folder):
    assert taken(max_bytes=100) == ["data/a.jsonl"]
    assert taken(max_bytes=1000) == ["data/a.jsonl", "data/b.jsonl"]


def test_a_pattern_is_a_regular_expression(folder):
    assert taken(pattern="[bc][.]jsonl$") == ["data/b.jsonl", "data/c.jsonl"]
    with pytest.raises(ValueError, match="is no regular expression"):
        taken(pattern="*.parquet")
    with pytest.raises(ValueError, match="give another pattern"):
        taken(pattern="README")


def test_a_full_disk_is_not_called_a_network(folder, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(ValueError, match=r"No space left.*make room") as caught:
        taken()
    assert "offline" not in str(caught.value)


def test_no_network_is_said(folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("whatever the HTTP library raises")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(ValueError, match="offline: the hub did not answer"):
        taken()
