"""Attention over a cache is each engine's own operator, and computes what eager PyTorch does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archloop import registry
from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.onnx import graph as onnx_graph
from archloop.runtimes.parity import distance, eager_logits
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

ENGINES = ("onnx_runtime", "openvino")
OWN = onnx_graph.Dialect(attends=True, head_multiple=8)
"""ONNX Runtime's."""


def stack(num_blocks: int = 1, *, shares: bool = False, **config: Any) -> StackSpec:
    """Blocks of gqa; with `shares`, all after the first read the first one's cache."""
    config = {"head_dim": 32, "queries_per_kv": 2} | config
    channel = ChannelMixerSpec(name="swiglu", config={"expansion": 1.0})
    blocks = [
        BlockSpec(
            mixers=(
                MixerSpec(name="gqa", config=config, state_from=0 if shares and index else None),
            ),
            channel_mixer=channel,
        )
        for index in range(num_blocks)
    ]
    return StackSpec(d_model=128, vocab_size=64, blocks=tuple(blocks))


def nodes(folder: Path) -> list[Any]:
    import onnx

    return list(onnx.load(folder / onnx_graph.MODEL, load_external_data=False).graph.node)


@pytest.mark.ci
def test_a_cache_of_its_own_is_the_operators_to_write(tmp_path: Path) -> None:
    onnx_graph.write(build_random(stack(2), 0), tmp_path, OWN)
    kinds = [node.op_type for node in nodes(tmp_path)]
    assert kinds.count("GroupQueryAttention") == 2
    assert not {"ScatterElements", "Softmax"} & set(kinds)
    assert [held.in_place for held in onnx_graph.read_state(tmp_path)] == [True] * 4


@pytest.mark.ci
def test_a_cache_that_others_read_is_written_out(tmp_path: Path) -> None:
    onnx_graph.write(build_random(stack(2, shares=True), 0), tmp_path, OWN)
    found = nodes(tmp_path)
    readers = {name: [at for at in found if name in at.input] for at in found for name in at.output}
    assert not [at for at in found if at.op_type in ("ScatterND", "GroupQueryAttention")]
    keys, values = (readers[at.output[0]] for at in found if at.op_type == "ScatterElements")
    # Neither is copied for each query head, nor transposed but right before the product.
    assert [at.op_type for at in keys] == ["Transpose"]
    assert [at.op_type for at in readers[keys[0].output[0]]] == ["MatMul"] * 2
    assert [at.op_type for at in values] == ["MatMul"] * 2
    assert [held.in_place for held in onnx_graph.read_state(tmp_path)] == [True] * 2


@pytest.mark.ci
def test_what_is_no_cache_of_attention_is_left(tmp_path: Path) -> None:
    # The window's ring is turned before it is written; ONNX Runtime's heads are eight numbers wide.
    window = MixerSpec(name="swa", config={"head_dim": 32, "window": 32})
    block = stack().blocks[0].model_copy(update={"mixers": (window,)})
    for spec in (stack().model_copy(update={"blocks": (block,)}), stack(head_dim=4)):
        onnx_graph.write(build_random(spec, 0), tmp_path, OWN)
        assert "GroupQueryAttention" not in {node.op_type for node in nodes(tmp_path)}


@pytest.mark.ci
def test_openvino_keeps_a_cache_that_grows_in_one_operator(tmp_path: Path) -> None:
    """Where the plug-in does not recognise the pattern, each step copies the cache."""
    openvino = pytest.importorskip("openvino")
    from archloop.runtimes.openvino import stateful

    runtime = registry.get("runtimes", "openvino")()
    export(runtime, build_random(stack(2), 0), tmp_path / "a", "fp32", parity=False)
    assert [held.grows for held in onnx_graph.read_state(tmp_path / "a")] == [True] * 4
    compiled = openvino.Core().compile_model(stateful(tmp_path / "a", 64), "CPU")
    kinds = [
        node.get_rt_info()["layerType"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
    ]
    assert kinds.count("ScaledDotProductAttention") == 2
    assert "Softmax" not in kinds


def rows(session: Any, calls: list[list[int]]) -> np.ndarray:
    """Logits after each call."""
    found = []
    for call in calls:
        session.prefill(session.prepare(call))
        found.append(session.logits().copy())
    return np.stack(found)


@pytest.mark.ci
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    head_dim=st.sampled_from([2, 8, 24, 32]),
    queries_per_kv=st.sampled_from([1, 2, 4]),
    settings_=st.sampled_from([{}, {"head_gate": True}, {"channel_gate": True}, {"scale": 0.3}]),
    calls=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_calls_of_any_lengths_agree_with_eager_pytorch(
    engine: str,
    head_dim: int,
    queries_per_kv: int,
    settings_: dict[str, Any],
    calls: list[int],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    runtime = registry.get("runtimes", engine)()
    if missing := runtime.missing_to_export() or runtime.missing_to_run():
        pytest.skip(missing)
    config = {"head_dim": head_dim, "num_heads": 4, "queries_per_kv": queries_per_kv} | settings_
    decoder = build_random(stack(2, **config), seed)
    folder = tmp_path_factory.mktemp(engine) / "artifact"
    manifest = export(runtime, decoder, folder, "fp32", parity=False)
    session = runtime.load(folder, manifest, 2, 64)
    ids = np.random.default_rng(seed).integers(64, size=sum(calls)).tolist()
    ends = np.cumsum(calls).tolist()
    parts = [ids[end - size : end] for size, end in zip(calls, ends, strict=True)]
    expected = _each_end(decoder, ids, ends)
    assert distance(rows(session, parts), expected) < 1e-4
    # As if another conversation had been longer: a filled state leaves nothing behind either.
    session.fill(40, 1)
    assert session.num_tokens == 40
    session.decode_step(3)
    session.fill(12, 1)
    session.decode_step(3)
    session.reset()
    assert distance(rows(session, parts), expected) < 1e-4
    session.close()


def _each_end(decoder: Decoder, ids: list[int], ends: list[int]) -> np.ndarray:
    return np.stack([eager_logits(decoder, ids[:end], [], "float32")[0] for end in ends])
