"""ExecuTorch: every mixer and channel mixer, whole and put together from pieces."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from archloop import registry
from archloop.runtimes.artifact import Manifest
from archloop.runtimes.block_cache import BlockCache
from archloop.runtimes.deciding import decided_experts
from archloop.runtimes.exporting import build_random, compose, export
from archloop.runtimes.parity import distance, eager_logits, session_rows
from archloop.runtimes.pte import graph as executorch_graph
from archloop.runtimes.pte import quantizing as executorch_quantizing
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

EVERY = [*registry.shipped("mixers"), *registry.shipped("channel_mixers")]
SETTINGS = {"gqa": {"head_dim": 32}, "swa": {"head_dim": 32, "window": 32}}
IN_CI = {"gqa"}
"""make test-engines runs all."""
PARTS = (69, 1, 2, 31)
"""Of a prompt: more than a pass and a window, fewer than a convolution's kernel, the rest."""
STEPS = 4


def stack(name: str) -> StackSpec:
    """A block of one mixer, or of one channel mixer."""
    is_mixer = name in registry.shipped("mixers")
    mixer = MixerSpec(name=name if is_mixer else "short_conv", config=SETTINGS.get(name, {}))
    channel = None if is_mixer else ChannelMixerSpec(name=name)
    block = BlockSpec(mixers=(mixer,), channel_mixer=channel)
    return StackSpec(d_model=128, vocab_size=64, blocks=(block,))


@pytest.fixture
def runtime() -> Any:
    found = registry.get("runtimes", "executorch")()
    if missing := found.missing_to_export():
        pytest.skip(missing)
    found.start(1)
    return found


def marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.ci if name in IN_CI else pytest.mark.engines)


def gives_no_state(folder: Path) -> None:
    """Of each output that is no planned memory the engine sets aside as much as it could ever hold.

    A cache of a million tokens, that is, for each block with attention.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary((folder / "model.pte").read_bytes())
    for plan in file.program.execution_plan:
        assert len(plan.outputs) == 2
        assert not set(plan.outputs) & set(plan.inputs)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*map(marked, EVERY)])
def test_prefill_in_uneven_parts_and_decode_agree_with_eager_pytorch(
    name: str, runtime: Any, tmp_path: Path, found: Callable[[str, str, float], None]
) -> None:
    decoder = build_random(stack(name), 0)
    with decided_experts(decoder):
        runtime.write(decoder, tmp_path, "fp32")
        gives_no_state(tmp_path)
        error = twice(runtime, decoder, tmp_path)
    found(name, "executorch", error)
    assert error < 1e-4


@pytest.mark.engines
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EVERY)
def test_8da4w_agrees_with_rounded_pytorch(name: str, runtime: Any, tmp_path: Path) -> None:
    # The export itself compares, prefill in two parts and then steps.
    manifest = export(runtime, build_random(stack(name), 0), tmp_path / "a", "8da4w")
    assert manifest.weight_bytes["int4"] > 0
    assert manifest.parity_error is not None
    assert manifest.parity_bound is not None
    assert manifest.parity_error <= manifest.parity_bound < 1.5


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_a_stack_of_lowered_pieces_is_the_whole_stack(runtime: Any, tmp_path: Path) -> None:
    swiglu = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    conv, gqa = MixerSpec(name="short_conv"), MixerSpec(name="gqa", config={"head_dim": 32})
    blocks = [BlockSpec(mixers=(mixer,), channel_mixer=swiglu) for mixer in (conv, gqa, conv)]
    spec = StackSpec(d_model=64, vocab_size=64, blocks=tuple(blocks))
    cache = BlockCache("executorch", runtime.version(), "fp32", tmp_path / "cache")
    manifest = compose(runtime, spec, tmp_path / "first", "fp32", cache=cache)
    assert manifest.composed
    assert manifest.parity_error is not None
    assert manifest.parity_error < 1e-4
    # Embedding, head, two kinds of mixer, one of channel mixer; of these two occur again.
    assert (cache.misses, cache.hits) == (5, 3)
    # Another order of the same pieces lowers nothing.
    other = spec.replace(blocks=(blocks[1], blocks[0], blocks[1], blocks[1]))
    again = compose(runtime, other, tmp_path / "second", "fp32", cache=cache)
    assert again.parity_error is not None
    assert again.parity_error < 1e-4
    assert (cache.misses, cache.hits) == (5, 13)
    # Copies have weights of their own in the file.
    assert (
        sum(again.weight_bytes.values())
        == 4 * sum(p.numel() for p in build_random(other, 0).parameters()) + 4 * 64 * 64
    )


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_8da4w_is_the_model_that_torchao_quantised(runtime: Any, tmp_path: Path) -> None:
    decoder = build_random(stack("gqa"), 0)
    weight_bytes = runtime.write(decoder, tmp_path, "8da4w")
    matrices = sum(p.numel() for p in decoder.parameters() if p.dim() == 2)
    assert weight_bytes["int4"] == matrices // 2
    assert weight_bytes["bfloat16"] == 2 * matrices // 32
    norms = sum(p.numel() for p in decoder.parameters() if p.dim() == 1)
    assert weight_bytes["float32"] == 4 * (norms + decoder.embedding.weight.numel())
    ids = torch.randint(64, (72,), generator=torch.Generator().manual_seed(0))
    part = executorch_graph.whole(decoder)
    executorch_quantizing.quantize(part)
    state = [torch.zeros(each.sized(200)) for each in part.held]
    expected = []
    with torch.no_grad():
        for start, end in ((0, 64), (64, 70)):
            given = torch.zeros(1, 64, dtype=torch.int64)
            given[0, : end - start] = ids[start:end]
            counts = torch.tensor([start]), torch.tensor([end - start])
            expected = [executorch_graph.Pass(part)(given, *counts, state)[1]]
        for index in (70, 71):
            one = ids[index : index + 1], torch.tensor([index])
            expected.append(executorch_graph.Step(part)(*one, state)[1])
    session = runtime.load(tmp_path, described(runtime, decoder, "8da4w"), 1, 100)
    found = session_rows(session, [ids[:64].tolist(), ids[64:70].tolist()], ids[70:].tolist())
    # Rounding of activations falls either way; weights that were rounded otherwise lie 1 apart.
    assert distance(found, torch.cat(expected).numpy()) < 0.2


@pytest.mark.ci
def test_8da4w_leaves_matrices_for_what_they_are_and_not_for_their_names(
    runtime: Any, tmp_path: Path
) -> None:
    """ReLU2 has an `up_proj` as MLA has, and the linear cell has `heads` as CfC has."""

    def rounded(name: str) -> set[str]:
        return set(runtime.products(build_random(stack(name), 0), tmp_path, "8da4w"))

    mixer, channel = "blocks.0.mixers.0", "blocks.0.channel_mixer"
    assert f"{channel}.up_proj.weight" in rounded("relu2")
    assert f"{mixer}.heads.weight" in rounded("linear_cfc")
    # These are read as tensors, or choose.
    assert f"{mixer}.up_proj.weight" not in rounded("mla")
    assert not {f"{mixer}.heads.weight", f"{mixer}.recurrent.weight"} & rounded("cfc")
    assert f"{channel}.router.weight" not in rounded("moe")


def test_a_tied_embedding_is_counted_as_a_table_and_as_the_heads_matrix() -> None:
    spec = stack("gqa")
    for tied in (True, False):
        decoder = build_random(spec.replace(tie_embeddings=tied), 0)
        held = executorch_graph.whole(decoder).weights().values()
        own = sum(p.numel() for p in decoder.parameters())
        again = decoder.embedding.weight.numel() if tied else 0
        assert sum(p.numel() for p in held) == own + again


@pytest.mark.ci
def test_8da4w_is_compared_with_the_scales_that_xnnpack_holds(runtime: Any, tmp_path: Path) -> None:
    for name, each in runtime.products(build_random(stack("gqa"), 0), tmp_path, "8da4w").items():
        # Integers up to 8 times 8 bits are float16's; times a scale of 24 bits they are not.
        assert torch.equal(each.weight.half().float(), each.weight), name


def described(runtime: Any, decoder: Decoder, quant: str) -> Manifest:
    return Manifest(
        spec=decoder.spec,
        runtime="executorch",
        version=runtime.version(),
        quant=quant,
        precision="float32",
        weight_bytes={},
        files={},
    )


def twice(runtime: Any, decoder: Decoder, folder: Path) -> float:
    """How far a session's logits lie from eager PyTorch's; a second conversation's are the same."""
    ids = np.random.default_rng(0).integers(64, size=sum(PARTS) + STEPS).tolist()
    prompt, steps = ids[: sum(PARTS)], ids[sum(PARTS) :]
    ends = np.cumsum(PARTS).tolist()
    parts = [prompt[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    manifest = described(runtime, decoder, "fp32")
    session = runtime.load(folder, manifest, 1, len(ids))
    first = session_rows(session, parts, steps)
    # A conversation leaves nothing to the next one.
    np.testing.assert_array_equal(first, session_rows(session, parts, steps))
    session.close()
    assert np.isfinite(first).all()
    return distance(first, eager_logits(decoder, prompt, steps, "float32"))


def windowed(window: int) -> StackSpec:
    mixer = MixerSpec(name="swa", config={"head_dim": 32, "window": window})
    return StackSpec(d_model=128, vocab_size=64, blocks=(BlockSpec(mixers=(mixer,)),))


def test_a_ring_is_as_long_as_its_window() -> None:
    part = executorch_graph.whole(build_random(windowed(512), 0))
    assert [each.shape[2] for each in part.held] == [512, 512]
    assert executorch_graph.unsupported(windowed(4096)) is None
    reason = executorch_graph.unsupported(windowed(4097))
    assert reason == "block 0: swa keeps more than 4,096 tokens"


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_a_window_of_many_passes_is_seen_whole(runtime: Any, tmp_path: Path) -> None:
    decoder = build_random(windowed(300), 0)
    runtime.write(decoder, tmp_path, "fp32")
    ids = np.random.default_rng(0).integers(64, size=404).tolist()
    session = runtime.load(tmp_path, described(runtime, decoder, "fp32"), 1, 404)
    found = session_rows(session, [ids[:400]], ids[400:])
    assert distance(found, eager_logits(decoder, ids[:400], ids[400:], "float32")) < 1e-4
