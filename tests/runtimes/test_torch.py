"""The PyTorch runtimes: artifacts of every mixer, threads and settings left alone, compilers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from archloop import registry
from archloop.runtimes.artifact import read_manifest
from archloop.runtimes.deciding import decided_experts
from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.parity import distance, eager_logits, read_case
from archloop.runtimes.torch_compile import TorchCompile
from archloop.runtimes.torch_eager import TorchEager, TorchSession
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec


def one_mixer(mixer: str, channel: str = "swiglu") -> StackSpec:
    block = BlockSpec(mixers=(MixerSpec(name=mixer),), channel_mixer=ChannelMixerSpec(name=channel))
    return StackSpec(d_model=64, vocab_size=64, blocks=(block,))


@pytest.mark.parametrize("mixer", registry.names("mixers"))
def test_every_mixer_survives_the_artifact(mixer: str, tmp_path: Path) -> None:
    """The decoder is built without weights and takes every number from the file."""
    decoder = build_random(one_mixer(mixer), seed=3)
    manifest = export(TorchEager(), decoder, tmp_path, "fp32")
    assert manifest.parity_error is not None
    session = TorchEager().open(tmp_path, threads=torch.get_num_threads(), max_context=32)
    assert isinstance(session, TorchSession)
    expected = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    found = dict(session.decoder.named_parameters()) | dict(session.decoder.named_buffers())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    session.fill(20, seed=0)
    session.decode_step(1)
    assert np.isfinite(session.logits()).all()


@pytest.mark.parametrize("channel", registry.names("channel_mixers"))
@pytest.mark.parametrize("quant", TorchEager.quants)
def test_every_channel_mixer_survives_the_artifact(
    channel: str, quant: str, tmp_path: Path
) -> None:
    decoder = build_random(one_mixer("short_conv", channel), seed=3)
    manifest = export(TorchEager(), decoder, tmp_path, quant)
    assert sum(manifest.weight_bytes.values()) < 5 * sum(p.numel() for p in decoder.parameters())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "embedding.weight" in file.keys()  # noqa: SIM118  (it is no mapping)


def test_shared_blocks_are_stored_once_and_stay_shared(tmp_path: Path) -> None:
    conv = MixerSpec(name="short_conv")
    swiglu = ChannelMixerSpec(name="swiglu")
    blocks = (
        BlockSpec(mixers=(conv,), channel_mixer=swiglu),
        BlockSpec(mixers=(conv.model_copy(update={"weights_from": 0}),), channel_mixer=swiglu),
    )
    spec = StackSpec(d_model=64, vocab_size=64, blocks=blocks)
    manifest = export(TorchEager(), build_random(spec, 0), tmp_path, "fp32")
    session = TorchEager().open(tmp_path, threads=torch.get_num_threads(), max_context=8)
    assert isinstance(session, TorchSession)
    decoder = session.decoder
    assert decoder.blocks[0].mixers[0] is decoder.blocks[1].mixers[0]
    assert sum(manifest.weight_bytes.values()) == 4 * sum(p.numel() for p in decoder.parameters())


def test_export_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    decoder = build_random(one_mixer("gqa"), seed=0).train()
    torch.manual_seed(7)
    before = torch.random.get_rng_state(), torch.get_num_threads()
    build_random(one_mixer("gqa"), seed=1)
    export(TorchEager(), decoder, tmp_path, "bf16")
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert decoder.training
    assert decoder.embedding.weight.dtype == torch.float32


def test_rounding_that_swaps_experts_is_no_parity_error(tmp_path: Path) -> None:
    """Experts are decided while logits are compared, in the artifact and in the reference."""
    spec = one_mixer("short_conv", "moe")
    spec = spec.replace(blocks=spec.blocks * 6)
    decoder = build_random(spec, seed=0)
    biases = [block.channel_mixer.expert_bias.clone() for block in decoder.each_block()]
    prompt, more = list(range(40)), list(range(6))
    with decided_experts(decoder) as is_changed:
        rounded = eager_logits(decoder, prompt, more, "bfloat16")
        exact = eager_logits(decoder, prompt, more, "float32", weights="bfloat16")
    assert is_changed
    assert 0.01 < distance(rounded, exact) < 0.5
    manifest = export(TorchEager(), decoder, tmp_path, "bf16")
    assert manifest.parity_bound is not None
    assert manifest.parity_error <= 0.1 <= manifest.parity_bound < 1
    for block, bias in zip(decoder.each_block(), biases, strict=True):
        assert torch.equal(block.channel_mixer.expert_bias, bias)
    session = TorchEager().open(tmp_path, threads=torch.get_num_threads(), max_context=8)
    assert isinstance(session, TorchSession)
    for block, bias in zip(session.decoder.each_block(), biases, strict=True):
        assert torch.equal(block.channel_mixer.expert_bias, bias)


def test_equal_seeds_give_equal_weights() -> None:
    one, same, other = (build_random(one_mixer("gqa"), seed) for seed in (5, 5, 6))
    assert torch.equal(one.embedding.weight, same.embedding.weight)
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def test_wrong_logits_are_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchSession, "take_one", lambda self, ids_B: torch.randn(1, 64))
    artifact, decoder = tmp_path / "artifact", build_random(one_mixer("gqa"), 0)
    with pytest.raises(ValueError, match="logits differ from eager PyTorch"):
        export(TorchEager(), decoder, artifact, "fp32")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    manifest = export(TorchEager(), decoder, artifact, "fp32")
    assert read_manifest(artifact) == manifest
    assert list(tmp_path.iterdir()) == [artifact]


def test_what_a_folder_holds_is_neither_lost_nor_taken_into_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "parity.json").write_text("stale")
    with pytest.raises(ValueError, match="holds something already; name another folder"):
        export(TorchEager(), build_random(one_mixer("gqa"), 0), tmp_path, "fp32")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["stale"]


def test_artifact_of_another_runtime_is_refused(tmp_path: Path) -> None:
    runtime = registry.get("runtimes", "torch_eager")()
    export(runtime, build_random(one_mixer("gqa"), 0), tmp_path, "fp32")
    with pytest.raises(ValueError, match="exported for torch_eager, not torch_compile"):
        registry.get("runtimes", "torch_compile")().open(tmp_path, threads=1, max_context=8)


def test_compiling_without_a_compiler_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    artifact = tmp_path / "artifact"
    manifest = export(TorchCompile(), build_random(one_mixer("gqa"), 0), artifact, "fp32")
    # Written all the same, for a device that has a compiler, and compared there.
    assert manifest.parity_error is None
    assert read_case(artifact) is not None
    with pytest.raises(ValueError, match=r"C\+\+ compiler: install g\+\+"):
        TorchCompile().open(artifact, threads=1, max_context=64)
    with pytest.raises(ValueError, match=r"C\+\+ compiler: install g\+\+"):
        TorchCompile().open(tmp_path, threads=1, max_context=8)


@pytest.mark.parametrize("max_context", [8, 9])
def test_opening_compiles_pass_and_step_whatever_room_there_is(
    max_context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to be compiled inside what is timed; a room of 8 is one pass."""
    called: list[str] = []

    def noted(function: Callable[[Tensor], Tensor], **_: object) -> Callable[[Tensor], Tensor]:
        def call(ids: Tensor) -> Tensor:
            called.append(function.__name__)
            return function(ids)

        return call

    manifest = export(
        TorchCompile(), build_random(one_mixer("gqa"), 0), tmp_path, "fp32", parity=False
    )
    monkeypatch.setattr(torch, "compile", noted)
    session = TorchCompile().load(tmp_path, manifest, torch.get_num_threads(), max_context)
    assert called == ["_pass_once", "_step_once"]
    session.prefill(session.prepare([1] * max_context))  # all its room is free again


@pytest.mark.slow
@pytest.mark.parametrize("channel", registry.names("channel_mixers"))
def test_compiled_steps_do_not_recompile(channel: str, tmp_path: Path) -> None:
    runtime = TorchCompile()
    if missing := runtime.missing_to_run():
        pytest.skip(missing)
    export(runtime, build_random(one_mixer("gqa", channel), 0), tmp_path, "fp32", parity=False)
    session = runtime.open(tmp_path, threads=1, max_context=100)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (64, 3, 70):
            session.reset()
            session.prefill(session.prepare([1] * length))
            session.decode_step(2)
        session.fill(90, seed=0)
        session.decode_step(2)
