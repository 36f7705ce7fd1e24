"""Files of stacks that memory does not hold: the bytes that the whole decoder would have given."""

from pathlib import Path

import pytest
import torch

from archloop.errors import UserError
from archloop.runtimes import exporting, pieces
from archloop.runtimes.llama_cpp import MODEL, LlamaCpp
from archloop.runtimes.streamed import StreamedTensors
from archloop.stack import weights
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

SWIGLU = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
# Eight experts are rounded otherwise than four: llama.cpp has a rule for eight.
MOE = ChannelMixerSpec(name="moe", config={"num_experts": 8, "top_k": 2, "expansion": 0.5})
CONV = BlockSpec(mixers=(MixerSpec(name="short_conv"),), channel_mixer=SWIGLU)
SPARSE = BlockSpec(mixers=(MixerSpec(name="gqa", config={"head_dim": 64}),), channel_mixer=MOE)
# Dense blocks come first in LFM2-MoE.
SPEC = StackSpec(d_model=256, vocab_size=512, blocks=(CONV, CONV, SPARSE, SPARSE))


def test_tensors_made_one_by_one_are_those_of_the_whole_decoder() -> None:
    streamed = StreamedTensors(SPEC)
    whole = weights.tensors(pieces.assembled(SPEC))
    assert list(streamed) == list(whole)
    for name, tensor in whole.items():
        torch.testing.assert_close(streamed[name], tensor, rtol=0, atol=0, msg=name)


def test_one_piece_of_a_part_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[pieces.Piece] = []

    def build(piece: pieces.Piece) -> object:
        built.append(piece)
        return pieces.build(piece)

    monkeypatch.setattr("archloop.runtimes.streamed.build", build)
    streamed = StreamedTensors(SPEC.replace(blocks=(SPARSE,) * 4 + (CONV,)))
    for name in streamed:
        assert streamed[name].numel()
    assert len(built) == 5, "ends, and two halves of both blocks"


def test_weights_that_blocks_share_are_refused() -> None:
    shared = SWIGLU.model_copy(update={"weights_from": 0})
    spec = SPEC.replace(blocks=(CONV, CONV.model_copy(update={"channel_mixer": shared})))
    with pytest.raises(UserError, match="block 1 has weights of another"):
        StreamedTensors(spec)


@pytest.mark.ci
@pytest.mark.parametrize("quant", LlamaCpp.quants)
def test_a_streamed_file_is_the_quantised_file(quant: str, tmp_path: Path) -> None:
    runtime = LlamaCpp()
    if missing := runtime.missing_to_export():
        pytest.skip(missing)
    from gguf import GGUFReader

    exporting.export(runtime, pieces.assembled(SPEC), tmp_path / "whole", quant)
    manifest = exporting.stream(runtime, SPEC, tmp_path / "streamed", quant)
    assert (manifest.parity_error, manifest.composed) == (None, True)
    assert set(manifest.files) == {MODEL}
    whole, streamed = (tmp_path / home / MODEL for home in ("whole", "streamed"))
    assert streamed.read_bytes() == whole.read_bytes()
    tensors = GGUFReader(streamed).tensors
    assert len({held.tensor_type for held in tensors}) > 1


def test_a_large_stack_is_streamed_where_the_engine_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(exporting, "stream", lambda *_: asked.append("streamed"))
    monkeypatch.setattr(exporting, "export", lambda *_: asked.append("whole"))
    assert not exporting.is_too_large(SPEC)
    for size in (4096, 2**33):
        monkeypatch.setattr("os.sysconf", lambda name, size=size: size if "PHYS" in name else 1)
        exporting.export_random(LlamaCpp(), SPEC, 0, tmp_path / "no", "q4_0")
    assert asked == ["streamed", "whole"]
