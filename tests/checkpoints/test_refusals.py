"""Whatever is wrong with a checkpoint is refused with a message that names it."""

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from archloop import checkpoints
from archloop.checkpoints import files
from archloop.errors import UserError
from checkpoints import folders

Damage = Callable[[Path], object]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> object:
        return Path.touch, (self.trace,)


def drop(name: str) -> Damage:
    return lambda f: folders.edit_tensors(f / files.WEIGHTS, lambda t: t.pop(name))


def put(name: str, tensor: torch.Tensor) -> Damage:
    return lambda f: folders.edit_tensors(f / files.WEIGHTS, lambda t: t.update({name: tensor}))


def truncate(name: str, keep: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep * len(content))])

    return damage


def say(**settings: object) -> Damage:
    return lambda f: folders.edit_json(f / files.CONFIG, lambda config: config.update(settings))


def link_to_itself(folder: Path) -> None:
    (folder / files.WEIGHTS).unlink()
    (folder / files.WEIGHTS).symlink_to(files.WEIGHTS)


NORM = "model.embedding_norm.weight"
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "damage, named",
    [
        (truncate(files.WEIGHTS, 0.6), r"model\.safetensors is truncated"),
        (truncate(files.WEIGHTS, 0.001), r"model\.safetensors is truncated"),
        (truncate(files.WEIGHTS, 0), r"model\.safetensors is truncated"),
        (lambda f: (f / files.WEIGHTS).write_bytes(pickle.dumps([1] * 99)), "no safetensors file"),
        (lambda f: (f / files.WEIGHTS).unlink(), r"neither model\.safetensors nor"),
        (drop(Q), "q_proj.weight' is missing"),
        (put("model.layers.0.extra", torch.ones(2)), "extra' is not part of the model"),
        (put("model.layers.2.ffn_norm.weight", torch.ones(32)), "layers.2.*not part of the model"),
        (put(NORM, torch.ones(31)), r"embedding_norm.*shape \[31\].*asks for \[32\]"),
        (put(Q, torch.ones(32, 32).T[:16].contiguous()), r"q_proj.*shape \[16, 32\]"),
        (put(NORM, torch.ones(32, dtype=torch.int32)), "embedding_norm.*dtype I32"),
        (put(NORM, torch.ones(32).to(torch.float8_e4m3fn)), "embedding_norm.*dtype F8_E4M3"),
        (put(NORM, torch.ones(32).bfloat16()), "bfloat16 and float32.*dtype="),
        (put("lm_head.weight", torch.ones(40, 32)), "lm_head.*differs.*tied"),
        (lambda f: (f / files.CONFIG).unlink(), r"neither config\.json nor spec\.json"),
        (truncate(files.CONFIG, 0.5), r"config\.json is not valid JSON"),
        (lambda f: (f / files.CONFIG).write_text("[1]"), "JSON object"),
        (lambda f: (f / files.CONFIG).write_text("[" * 200_000), "not valid JSON"),
        (lambda f: (f / files.CONFIG).write_bytes(b"\xff\xfe"), "not UTF-8"),
        (say(hidden_size=1 << 30), r"embed_tokens.*asks for \[40, 1073741824\]"),
        (say(intermediate_size=1 << 30), r"config\.json: swiglu\.expansion=33554432"),
        (link_to_itself, r"'model\.safetensors' cannot be followed"),
    ],
)
def test_damaged_folder(damage: Damage, named: str, tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "model")
    checkpoints.load(folder)
    damage(folder)
    with pytest.raises(ValueError, match=named):
        checkpoints.load(folder)


def move_tensor(folder: Path) -> None:
    """The index names a shard that does not hold the tensor."""

    def change(index: dict[str, dict[str, str]]) -> None:
        shards = sorted(set(index["weight_map"].values()))
        index["weight_map"][NORM] = shards[-1]

    folders.edit_json(folder / files.INDEX, change)


def point(to: object) -> Damage:
    return lambda f: folders.edit_json(
        f / files.INDEX, lambda index: index["weight_map"].update({NORM: to})
    )


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda f: sorted(f.glob("model-*"))[1].unlink(), "shard 'model-00002.*is missing"),
        (lambda f: truncate(sorted(f.glob("model-*"))[1].name, 0.5)(f), "model-00002.*truncated"),
        (move_tensor, "embedding_norm.*in the (shard|index) but not in the"),
        (point("../model.safetensors"), r"'\.\./model\.safetensors' leads outside"),
        (point("/etc/model.safetensors"), "leads outside"),
        (point("a\\..\\model.safetensors"), "leads outside"),
        (point("a" * 300 + ".safetensors"), "'aaa.* cannot be the name of a file"),
        (point("\ud800.safetensors"), "cannot be the name of a file"),
        (point("a\0.safetensors"), "cannot be the name of a file"),
        (point("pytorch_model.bin"), "embedding_norm.*pytorch_model.bin.*pickled ones never"),
        (point(7), "embedding_norm.*only .safetensors"),
        (lambda f: (f / files.INDEX).write_text("{}"), "no 'weight_map'"),
    ],
)
def test_damaged_shards(damage: Damage, named: str, tmp_path: Path) -> None:
    folder = folders.sharded(tmp_path / "model")
    assert len(list(folder.glob("model-*"))) > 2
    checkpoints.load(folder)
    damage(folder)
    with pytest.raises(ValueError, match=named):
        checkpoints.load(folder)


def test_a_small_file_cannot_ask_for_millions_of_tensors(tmp_path: Path) -> None:
    """Names are compared as they come; listing them all took minutes and gigabytes."""
    folder = folders.whole(tmp_path / "model")
    most = {"num_hidden_layers": 4096, "layer_types": ["conv"] * 4096, "num_experts": 4096}
    say(**most)(folder)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"layers\.1\.conv\.conv\.weight' is missing"):
        checkpoints.load(folder)
    assert time.monotonic() - start < 10


def test_a_spec_too_large_for_memory_addresses(tmp_path: Path) -> None:
    checkpoints.save(folders.decoder(), tmp_path / "model", layout="archloop")
    folders.edit_json(tmp_path / "model" / files.SPEC, lambda spec: spec.update(d_model=1 << 40))
    with pytest.raises(UserError, match="model that cannot be built"):
        checkpoints.load(tmp_path / "model")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "model")
    outside = tmp_path / "elsewhere.safetensors"
    (folder / files.WEIGHTS).rename(outside)
    (folder / files.WEIGHTS).symlink_to(outside)
    with pytest.raises(ValueError, match=r"links to .*elsewhere"):
        checkpoints.load(folder)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "models--a--b" / "snapshots" / "0123")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for path in list(folder.iterdir()):
        path.rename(blobs / f"hash-of-{path.name}")
        path.symlink_to(Path("..") / ".." / "blobs" / f"hash-of-{path.name}")
    assert checkpoints.load(folder).spec.d_model == 32


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(name: str, tmp_path: Path) -> None:
    folder = folders.whole(tmp_path / "model")
    trace = tmp_path / "trace"
    (folder / files.WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ValueError, match=f"pickled weights only.*{name}"):
        checkpoints.load(folder)
    (folder / name).rename(folder / files.WEIGHTS)
    with pytest.raises(ValueError, match="no safetensors file"):
        checkpoints.load(folder)
    assert not trace.exists()


def test_huge_json_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.whole(tmp_path / "model")
    (folder / files.CONFIG).write_text(json.dumps({"pad": " " * (files.MAX_JSON_BYTES + 1)}))
    with pytest.raises(ValueError, match=r"config\.json has .* bytes"):
        checkpoints.load(folder)


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; give the checkpoint's folder"):
        checkpoints.load(file)
    for name in (tmp_path / "absent" / "folder", "a--b/c", "a/b..c", "a/" + "b" * 99, "a/b-"):
        with pytest.raises(UserError, match="no folder, and no hub id"):
            checkpoints.load(name)


def test_offline_hub_id_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"offline: 'LiquidAI/LFM2-350M'.*HF_HUB_OFFLINE"):
        checkpoints.load("LiquidAI/LFM2-350M")
