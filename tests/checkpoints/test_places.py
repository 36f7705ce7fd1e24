"""Where people save to: mounted volumes, hub folders, the folder that a process stands in."""

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from archloop import checkpoints
from archloop.checkpoints import files
from archloop.errors import UserError
from archloop.stack import weights
from archloop.stack.decoder import Decoder
from checkpoints import folders


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def same(folder: Path, decoder: Decoder) -> bool:
    found, wanted = weights.tensors(checkpoints.load(folder)), weights.tensors(decoder)
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system, which no folder can be renamed to or from."""
    folder = tmp_path / "volume"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_mounted_volume(volume: Path) -> None:
    (volume / "lost+found").mkdir()
    for _ in range(2):
        checkpoints.save(folders.decoder(), volume)
        assert same(volume, folders.decoder())
    assert {path.name for path in volume.iterdir()} == {
        "config.json", files.WEIGHTS, "lost+found",
    }  # fmt: skip


def test_the_folder_is_the_same_one_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stands in it, and whoever holds it open, sees what was saved."""
    folder = folders.whole(tmp_path / "model")
    inode = folder.stat().st_ino
    monkeypatch.chdir(folder)
    checkpoints.save(checkpoints.load("."), ".")
    assert Path(files.WEIGHTS) in list(Path().iterdir())
    assert same(Path(), folders.decoder())
    assert folder.stat().st_ino == inode


@pytest.mark.parametrize("inside", [".cache/huggingface", ".git", "onnx"])
def test_folders_as_the_hub_makes_them(inside: str, tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "model")
    (folder / inside).mkdir(parents=True)
    (folder / inside / "note").write_text("kept")
    checkpoints.save(folders.decoder(), folder)
    assert (folder / inside / "note").read_text() == "kept"
    assert same(folder, folders.decoder())


def test_a_new_repository_and_a_folder_with_a_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / ".git").mkdir(parents=True)
    for name in (".gitattributes", "README.md", "tokenizer.json"):
        (folder / name).write_text("{}")
    checkpoints.save(folders.decoder(), folder)
    assert same(folder, folders.decoder())


def test_weights_of_other_formats_do_not_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A loader that prefers them would load the old model; exports are named and kept."""
    folder = folders.whole(tmp_path / "model")
    stale = ("pytorch_model.bin", "pytorch_model-1-of-2.bin", "tf_model.h5", "x.safetensors")
    for name in (*stale, "model-q4.gguf", "training_args.bin"):
        (folder / name).write_text("old")
    with caplog.at_level(logging.WARNING):
        checkpoints.save(folders.decoder(), folder)
    assert set(content(folder)) == {
        "config.json", files.WEIGHTS, "model-q4.gguf", "training_args.bin",
    }  # fmt: skip
    assert "model-q4.gguf was made from the weights before" in caplog.text


@pytest.mark.parametrize("num_done", range(4))
def test_an_error_between_two_files_leaves_the_old_checkpoint(
    num_done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders.sharded(tmp_path / "model")
    before, done = content(folder), []

    def fails(path: Path, target: Path) -> None:
        if len(done) == num_done:
            raise OSError("disk detached")
        done.append(path.replace(target))

    monkeypatch.setattr("archloop.checkpoints.files.publish", fails)
    changed = folders.decoder(folders.spec(vocab_size=41))
    with pytest.raises(OSError, match="detached"):
        checkpoints.save(changed, folder, max_shard_bytes=20_000)
    assert content(folder) == before
    assert len(list(folder.iterdir())) == len(before)
    with pytest.raises(OSError, match="detached"):
        checkpoints.save(changed, tmp_path / "new", layout="archloop", max_shard_bytes=20_000)
    assert num_done == len(done) or not (tmp_path / "new").exists()


def test_a_save_that_was_killed_is_said(tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "model")
    (folder / ".archloop-save-1234").mkdir()
    (folder / "config.json").rename(folder / ".archloop-save-1234" / "config.json")
    with pytest.raises(UserError, match=r"a save was cut off here.*\.archloop-save-1234"):
        checkpoints.load(folder)


def test_a_compiled_decoder_and_compiled_blocks(tmp_path: Path) -> None:
    decoder = folders.decoder()
    whole: torch.nn.Module = torch.compile(decoder)  # type: ignore[assignment]
    checkpoints.save(whole, tmp_path / "whole")
    assert same(tmp_path / "whole", folders.decoder())
    decoder.blocks[0] = torch.compile(decoder.blocks[0])  # type: ignore[assignment]
    checkpoints.save(decoder, tmp_path / "blocks")
    assert same(tmp_path / "blocks", folders.decoder())
    with pytest.raises(ValueError, match="Linear is no Decoder"):
        checkpoints.save(torch.nn.Linear(2, 2), tmp_path / "none")
