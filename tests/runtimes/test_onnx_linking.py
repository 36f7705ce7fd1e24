"""ONNX graphs of pieces put together are the stack's own graph, for both engines that read it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archloop import registry
from archloop.runtimes import pieces
from archloop.runtimes.base import Runtime
from archloop.runtimes.block_cache import BlockCache
from archloop.runtimes.exporting import compose, export
from archloop.runtimes.parity import distance, session_rows
from archloop.runtimes.rounding import matrices
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

D_MODEL, VOCABULARY = 64, 96
SWIGLU = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
CONV = BlockSpec(mixers=(MixerSpec(name="short_conv"),), channel_mixer=SWIGLU)
GQA = BlockSpec(mixers=(MixerSpec(name="gqa", config={"head_dim": 32}),), channel_mixer=SWIGLU)
SPARSE = ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2, "expansion": 0.5})
PASSES = BlockSpec(mixers=(MixerSpec(name="gla"),), channel_mixer=SWIGLU)
"""Its pass over a prompt is a loop, with names of its own."""
SPEC = StackSpec(d_model=D_MODEL, vocab_size=VOCABULARY, blocks=(CONV, GQA, PASSES, CONV))
PARTS, STEPS = (69, 1, 2, 31), 4
CASES = [
    pytest.param(engine, quant, marks=pytest.mark.ci if quant == "fp32" else pytest.mark.engines)
    for engine in ("onnx_runtime", "openvino")
    for quant in ("fp32", "int8", "int4")
]


def engine(name: str) -> Runtime:
    pytest.importorskip("onnx")
    found: Runtime = registry.get("runtimes", name)()
    if missing := found.missing_to_export():
        pytest.skip(missing)
    return found


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_experts_of_several_blocks_have_sizes_of_their_own(tmp_path: Path) -> None:
    """As many tokens as chose an expert of one block are not as many as chose one of another."""
    runtime = engine("onnx_runtime")
    spec = SPEC.replace(blocks=(CONV.model_copy(update={"channel_mixer": SPARSE}),) * 3)
    cache = BlockCache("onnx_runtime", runtime.version(), "int8", tmp_path / "cache")
    manifest = compose(runtime, spec, tmp_path / "pieces", "int8", cache=cache)
    assert manifest.parity_error is not None
    export(runtime, pieces.assembled(spec), tmp_path / "whole", "int8")
    rows = [rows_of(runtime, tmp_path / home, "int8") for home in ("whole", "pieces")]
    assert distance(rows[1], rows[0]) < 1e-5


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "quant"), CASES)
def test_a_stack_of_pieces_computes_what_its_whole_graph_computes(
    name: str, quant: str, tmp_path: Path
) -> None:
    runtime = engine(name)
    cache = BlockCache(name, runtime.version(), quant, tmp_path / "cache")
    manifest = compose(runtime, SPEC, tmp_path / "pieces", quant, cache=cache)
    assert manifest.composed
    # Embedding, head, three mixers and one channel mixer; one mixer and the channel mixer again.
    assert (cache.misses, cache.hits) == (6, 4)
    export(runtime, pieces.assembled(SPEC), tmp_path / "whole", quant)
    rows = [rows_of(runtime, tmp_path / home, quant) for home in ("whole", "pieces")]
    assert distance(rows[1], rows[0]) < 1e-5
    if name == "openvino" and quant != "fp32":
        # Half by half it rounds as in the whole: nncf treats the last product of a model apart.
        whole, joined = (integers_of(tmp_path / home) for home in ("whole", "pieces"))
        assert set(joined) == set(whole)
    # Another order lowers nothing, and has another answer.
    other = SPEC.replace(blocks=(PASSES, GQA, GQA, CONV))
    compose(runtime, other, tmp_path / "other", quant, cache=cache)
    assert cache.misses == 6
    assert distance(rows_of(runtime, tmp_path / "other", quant), rows[0]) > 0.1


@pytest.mark.ci
@pytest.mark.parametrize(
    ("name", "weights"), [("onnx_runtime", "model.onnx.data"), ("openvino", "model.bin")]
)
def test_copies_have_weights_of_their_own_and_shared_ones_are_there_once(
    name: str, weights: str, tmp_path: Path
) -> None:
    runtime = engine(name)
    cache = BlockCache(name, runtime.version(), "fp32", tmp_path / "cache")
    lent = MixerSpec(name="short_conv", weights_from=0)
    borrows = CONV.model_copy(update={"mixers": (lent,)})
    sizes = {}
    for index, last in enumerate((CONV, borrows)):
        spec = SPEC.replace(blocks=(CONV, last))
        home = tmp_path / str(index)
        sizes[index] = compose(runtime, spec, home, "fp32", cache=cache).weight_bytes["float32"]
        data = (home / weights).stat().st_size
        assert sizes[index] <= data + 4096
        params = list(pieces.assembled(spec).parameters())
        matrices = sum(p.numel() for p in params if p.dim() > 1)
        # Norms of a piece that are all ones are there once; epsilons are weights to the file.
        assert 4 * matrices <= sizes[index] < 4 * sum(p.numel() for p in params) + 4096
    assert sizes[1] < sizes[0]


@pytest.mark.engines
@pytest.mark.timeout(600)
@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_compressed_pieces_that_share_weights_have_one_copy(
    quant: str, tied: bool, tmp_path: Path
) -> None:
    runtime = engine("openvino")
    cache = BlockCache("openvino", runtime.version(), quant, tmp_path / "cache")
    lent = MixerSpec(name="short_conv", weights_from=0)
    for index, last in enumerate((CONV, CONV.model_copy(update={"mixers": (lent,)}))):
        spec = SPEC.replace(blocks=(CONV, last), tie_embeddings=tied)
        home = tmp_path / str(index)
        manifest = compose(runtime, spec, home, quant, cache=cache)
        # A parameter that several modules read is named once; taps of a convolution stay.
        own = matrices(pieces.assembled(spec))
        expected = [each.numel() for each in own.values() if min(each.shape) > 3]
        found = integers_of(home)
        assert sorted(math.prod(shape) for _, shape, _ in found) == sorted(expected)
        eighths = {"i4": 4, "u4": 4, "i8": 8, "u8": 8}
        held = sum(math.prod(shape) * eighths[dtype] // 8 for dtype, shape, _ in found)
        sizes = manifest.weight_bytes
        counted = sum(n for dtype, n in sizes.items() if not dtype.startswith("float"))
        # In int4 both ends have a zero point for each token.
        assert held <= counted <= held + 2 * VOCABULARY


def integers_of(home: Path) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Types, shapes and numbers of the integer matrices of a compressed model's graph."""
    import openvino

    model = openvino.Core().read_model(str(home / "model.xml"))
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    return [
        (dtype, tuple(node.get_output_shape(0)), node.get_data().tobytes())
        for node in constants
        if (dtype := node.get_element_type().get_type_name()) in ("i4", "u4", "i8", "u8")
        and math.prod(node.get_output_shape(0)) > VOCABULARY
    ]


def rows_of(runtime: Any, home: Path, quant: str) -> np.ndarray:
    """Logits after a prompt in uneven parts, and after each step."""
    ids = np.random.default_rng(0).integers(VOCABULARY, size=sum(PARTS) + STEPS).tolist()
    ends = np.cumsum(PARTS).tolist()
    parts = [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    session = runtime.open(home, 1, len(ids))
    rows = session_rows(session, parts, ids[sum(PARTS) :])
    session.close()
    return rows
