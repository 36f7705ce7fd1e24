"""One place writes a decoder's tensors and reads them: whole or absent, bit for bit, no pickle."""

import ast
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from archloop.errors import UserError
from archloop.stack import weights
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    moe = ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2})
    blocks = (
        BlockSpec(mixers=(MixerSpec(name="s4"),), channel_mixer=moe),
        BlockSpec(mixers=(MixerSpec(name="s4", weights_from=0),), channel_mixer=moe),
    )
    return Decoder(StackSpec(d_model=64, vocab_size=50, blocks=blocks)).to(torch.bfloat16)


def test_constants_are_left_out_unless_asked_for(decoder: Decoder) -> None:
    held = weights.tensors(decoder)
    assert held.keys() < weights.tensors(decoder, constants=True).keys()
    assert held.keys() <= decoder.state_dict().keys()


def test_both_ways_back_give_the_same_bits(decoder: Decoder, tmp_path: Path) -> None:
    held = weights.tensors(decoder, constants=True)
    weights.write(held, tmp_path / "new" / "w.safetensors", {"step": "3"})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]
    filled = {name: torch.empty_like(tensor) for name, tensor in held.items()}
    weights.fill(filled, tmp_path / "new" / "w.safetensors")
    with ExitStack() as stack:
        stored = weights.Stored(tmp_path / "new" / "w.safetensors", stack)
        assert stored.header == {"step": "3"}
        assert stored.shapes == {name: tuple(tensor.shape) for name, tensor in held.items()}
        for name, tensor in held.items():
            assert torch.equal(stored.tensor(name), tensor), name
            assert torch.equal(filled[name], tensor), name
            assert filled[name].dtype == tensor.dtype


def test_a_write_that_fails_leaves_what_was_there(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    weights.write(weights.tensors(decoder), path)
    before = path.read_bytes()

    def full(_: object, draft: Path, metadata: object) -> None:
        draft.write_bytes(b"half")
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        weights.write(weights.tensors(decoder), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_what_is_no_such_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with ExitStack() as stack, pytest.raises(UserError, match=r"truncated or no safetensors file"):
        weights.Stored(path, stack)


def test_no_other_module_knows_the_format() -> None:
    knowing = {
        file.relative_to(SRC).as_posix()
        for file in SRC.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and "safetensors" in (getattr(node, "module", None) or node.names[0].name).split(".")
    }
    assert knowing == {"archloop/stack/weights.py"}
