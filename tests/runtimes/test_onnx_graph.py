"""Graphs with a free number of tokens: every mixer and channel mixer, in both engines."""

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engines_table
from archloop import registry
from archloop.blocks.ops.attention import attention
from archloop.runtimes.artifact import Manifest
from archloop.runtimes.deciding import decided_experts
from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.graphs import StateGraph
from archloop.runtimes.onnx import graph as onnx_graph
from archloop.runtimes.onnx import parts as onnx_parts
from archloop.runtimes.parity import distance, session_rows
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

ENGINES = ("onnx_runtime", "openvino")
SETTINGS = {"gqa": {"head_dim": 32}, "swa": {"head_dim": 32, "window": 32}}
EVERY = [*registry.shipped("mixers"), *registry.shipped("channel_mixers")]
IN_CI = {"gqa", "gated_deltanet", "moe"}
"""One that is traced as it is, one in parts, and experts; make test-engines runs all."""
PARTS = (onnx_parts.PASS + 5, 1, 2, 31)
"""Of a prompt: more than a pass and a window, fewer than a convolution's kernel, the rest."""
STEPS = 4
TOLERANCE = 1e-4


def stack(name: str, num_blocks: int = 2) -> StackSpec:
    """Blocks of one mixer, or of one channel mixer."""
    is_mixer = name in registry.shipped("mixers")
    mixer = MixerSpec(name=name if is_mixer else "short_conv", config=SETTINGS.get(name, {}))
    channel = ChannelMixerSpec(name="swiglu" if is_mixer else name)
    block = BlockSpec(mixers=(mixer,), channel_mixer=channel)
    return StackSpec(d_model=128, vocab_size=64, blocks=(block,) * num_blocks)


def test_only_features_of_mixers_that_trace_as_they_are_can_be_shared() -> None:
    def sharing(name: str) -> StackSpec:
        spec = stack(name)
        reads = spec.blocks[1].mixers[0].model_copy(update={"state_from": 0})
        second = spec.blocks[1].model_copy(update={"mixers": (reads,)})
        return spec.model_copy(update={"blocks": (spec.blocks[0], second)})

    assert onnx_graph.unsupported(sharing("gqa")) is None
    reason = "block 1 reads the features of another block's gla"
    assert reason in (onnx_graph.unsupported(sharing("gla")) or "")
    assert onnx_graph.unsupported(stack("gla")) is None


def test_attention_that_is_exported_is_the_one_that_runs() -> None:
    class Attend(torch.nn.Module):
        def forward(
            self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
        ) -> torch.Tensor:
            return attention(q, k, v, mask, 0.3)

    torch.manual_seed(0)
    for heads, kv_heads, rows in ((6, 2, 1), (4, 4, 2), (3, 1, 2)):
        q, k = torch.randn(2, heads, 5, 8), torch.randn(2, kv_heads, 9, 8)
        v = torch.randn(2, kv_heads, 9, 8)
        mask = torch.rand(rows, 1, 5, 9) < 0.6
        mask[..., 0] = True
        exported = torch.export.export(Attend(), (q, k, v, mask), strict=False)
        assert "scaled_dot_product" not in str(exported.graph)
        got, plain = exported.module()(q, k, v, mask), Attend()(q, k, v, mask)
        torch.testing.assert_close(got, plain, rtol=0, atol=2e-6)


def test_the_slots_of_a_cache_are_found() -> None:
    graph = StateGraph(build_random(stack("gqa", 1), 0))
    assert [held.slots for held in graph.held] == [2, 2]
    assert [held.next_name for held in graph.held] == ["state_0_0_k_next", "state_0_0_v_next"]
    graph = StateGraph(build_random(stack("short_conv", 1), 0))
    assert [held.slots for held in graph.held] == [None]


def test_every_mixer_in_parts_has_a_state_of_one_size() -> None:
    for name in set(registry.shipped("mixers")) - onnx_graph.FREE:
        graph = StateGraph(build_random(stack(name, 1), 0))
        assert [held.slots for held in graph.held] == [None] * len(graph.held), name


def test_a_window_wider_than_what_is_traced_is_no_part() -> None:
    def of(window: int) -> StackSpec:
        mixer = MixerSpec(name="swa", config={"head_dim": 16, "window": window})
        return StackSpec(d_model=32, vocab_size=8, blocks=(BlockSpec(mixers=(mixer,)),))

    assert onnx_graph.unsupported(of(4096)) is None
    assert onnx_graph.unsupported(of(4097)) == "block 0: swa keeps more than 4,096 tokens"


def test_a_table_of_what_was_found_says_what_ran() -> None:
    found = [
        {"part": "gqa", "engine": "onnx_runtime", "version": "1.32.0", "error": 0.5},
        {"part": "gqa", "engine": "onnx_runtime", "version": "1.32.0", "error": 3.9e-6},
        {"part": "moe", "engine": "openvino", "version": "2026.4.1", "error": 0.2},
    ]
    rows = engines_table.table([json.dumps(row) for row in found]).splitlines()
    heads = "| | in the graph | `onnx_runtime` 1.32.0 | `openvino` 2026.4.1 | `executorch` |"
    assert rows[0] == heads
    assert "| `gqa` | as it is | runs, 3.9e-06 | not run | not run |" in rows
    assert "| `moe` | as a loop over experts | not run | differs, 2.0e-01 | not run |" in rows
    assert len(rows) == 2 + len(EVERY)
    # A part that is run again replaces its own row alone.
    kept = [json.loads(line) for line in engines_table.last_of_each(list(map(json.dumps, found)))]
    assert kept == found[1:]


def test_the_table_in_the_docs_lists_every_mixer_where_the_graph_has_it() -> None:
    page = engines_table.PAGE.read_text()
    if engines_table.FOUND.exists():
        assert engines_table.table(engines_table.FOUND.read_text().splitlines()) in page
        return
    listed = {}
    for row in page.split("## Mixers and engines")[1].splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 2 + len(ENGINES) and cells[2:] == ["runs"] * len(ENGINES):
            listed[cells[0]] = set(re.findall(r"`(\w+)`", cells[1]))
    mixers = set(registry.shipped("mixers"))
    assert listed == {
        "as it is": onnx_graph.FREE | set(registry.shipped("channel_mixers")) - {"moe"},
        "in parts": mixers - onnx_graph.FREE,
        "as a loop over experts": {"moe"},
    }


def marked(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.ci if name in IN_CI else pytest.mark.engines)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*map(marked, EVERY)])
def test_prefill_in_uneven_parts_and_decode_agree_with_eager_pytorch(
    name: str, tmp_path: Path, found: Callable[[str, str, float], None]
) -> None:
    decoder = build_random(stack(name), 0)
    ids = np.random.default_rng(0).integers(64, size=sum(PARTS) + STEPS).tolist()
    with decided_experts(decoder):
        for engine in ENGINES:
            (tmp_path / engine).mkdir()
            registry.get("runtimes", engine)().write(decoder, tmp_path / engine, "fp32")
        expected = eager_rows(decoder, ids)
    prompt, steps = ids[: sum(PARTS)], ids[sum(PARTS) :]
    ends = np.cumsum(PARTS).tolist()
    parts = [prompt[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    for engine in ENGINES:
        session = load(engine, decoder.spec, tmp_path / engine, len(ids))
        first = session_rows(session, parts, steps)
        error = distance(first, expected)
        found(name, engine, error)
        assert error < TOLERANCE, engine
        # A conversation leaves nothing to the next one.
        np.testing.assert_array_equal(first, session_rows(session, parts, steps), engine)
        session.close()


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_int8_reaches_the_bodies_of_loops_and_keeps_weights_beside_the_model(
    tmp_path: Path,
) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = registry.get("runtimes", "onnx_runtime")()
    manifest = export(runtime, build_random(stack("rtf", 1), 0), tmp_path / "a", "int8")
    assert set(manifest.files) == {"model.onnx", "model.onnx.data", "state.json"}
    graph = onnx.load(str(tmp_path / "a" / "model.onnx"), load_external_data=False).graph
    (loop,) = (node for node in graph.node if node.op_type == "Loop")
    (body,) = (attribute.g for attribute in loop.attribute if attribute.name == "body")
    assert "MatMulInteger" in {node.op_type for node in body.node}


@pytest.mark.ci
def test_int8_and_int4_reach_every_matrix_of_attention(tmp_path: Path) -> None:
    """A product with part of a weight is one with a constant: only then is it quantised."""
    pytest.importorskip("onnxruntime")
    decoder = build_random(stack("gqa", 1), 0)
    norms = sum(p.numel() for p in decoder.parameters() if p.dim() == 1)
    for quant in ("int8", "int4"):
        manifest = export(
            registry.get("runtimes", "onnx_runtime")(), decoder, tmp_path / quant, quant
        )
        matrices = sum(p.numel() for p in decoder.parameters() if p.dim() == 2)
        packed = manifest.weight_bytes[{"int8": "int8", "int4": "uint8"}[quant]]
        assert packed * (1 if quant == "int8" else 2) >= matrices
        # Float32 are the looked-up embedding, norms, scales, and tables of positions.
        kept = 4 * (norms + decoder.embedding.weight.numel())
        scales = 4 * matrices / (32 if quant == "int4" else 64)
        assert manifest.weight_bytes["float32"] <= kept + scales + 4096


@pytest.mark.ci
@pytest.mark.timeout(900)
@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_experts_have_eight_bits(quant: str, activation: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    config = {"num_experts": 4, "top_k": 2, "expansion": 0.5, "activation": activation}
    sparse = BlockSpec(channel_mixer=ChannelMixerSpec(name="moe", config=config))
    decoder = build_random(StackSpec(d_model=64, vocab_size=64, blocks=(sparse,) * 2), 0)
    runtime = registry.get("runtimes", "onnx_runtime")()
    manifest = export(runtime, decoder, tmp_path / "a", quant)
    assert manifest.parity_error is not None
    assert manifest.parity_bound is not None
    of_experts = sum(p.numel() for p in decoder.parameters() if p.dim() == 3)
    assert manifest.weight_bytes["int8"] >= of_experts
    scales = 4 * sum(p.shape[0] * p.shape[1] for p in decoder.parameters() if p.dim() == 3)
    others = 4 * sum(p.numel() for p in decoder.parameters() if p.dim() < 3)
    assert manifest.weight_bytes["float32"] <= scales + others + 4096
    products = runtime.products(decoder, tmp_path / "a", quant)
    assert {name for name, p in decoder.named_parameters() if p.dim() == 3} <= set(products)


@pytest.mark.ci
@pytest.mark.parametrize("engine", ENGINES)
def test_filling_and_emptying_a_state_takes_no_memory_beside_it(
    engine: str, tmp_path: Path
) -> None:
    """It would count in the peak of a measurement."""
    decoder = build_random(stack("gqa", 1), 0)
    runtime = registry.get("runtimes", engine)()
    if missing := runtime.missing_to_export():
        pytest.skip(missing)
    runtime.write(decoder, tmp_path, "fp32")
    session = load(engine, decoder.spec, tmp_path, 4096)
    session.decode_step(3)
    first = session.logits().copy()
    for num_tokens in (0, 8):
        session.fill(num_tokens, seed=0)
    tracemalloc.start()
    try:
        session.fill(4000, seed=0)
        session.reset()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Keys alone, of one head 32 wide, are twice as large.
    assert peak < 2**18
    session.decode_step(3)
    np.testing.assert_array_equal(session.logits(), first)
    session.close()


@pytest.mark.engines
@pytest.mark.timeout(900)
@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_nonlinear_cell_is_compared_with_its_own_matrices_rounded(
    engine: str, quant: str, tmp_path: Path
) -> None:
    runtime = registry.get("runtimes", engine)()
    if missing := runtime.missing_to_export():
        pytest.skip(missing)
    manifest = export(runtime, build_random(stack("cfc", 1), 0), tmp_path / "a", quant)
    assert manifest.parity_error is not None


def eager_rows(decoder: Decoder, ids: list[int]) -> np.ndarray:
    """Logits after the prompt and after each step."""
    state = decoder.init_state(1, len(ids))
    rows = [decoder.prefill(torch.tensor([ids[: sum(PARTS)]]), state)]
    rows += [decoder.step(torch.tensor([token]), state) for token in ids[sum(PARTS) :]]
    return torch.cat(rows).numpy()


def load(engine: str, spec: StackSpec, folder: Path, room: int) -> Any:
    runtime = registry.get("runtimes", engine)()
    if missing := runtime.missing_to_run():
        pytest.skip(missing)
    manifest = Manifest(
        spec=spec,
        runtime=engine,
        version=runtime.version(),
        quant="fp32",
        precision="float32",
        weight_bytes={},
        files={},
    )
    return runtime.load(folder, manifest, 1, room)
