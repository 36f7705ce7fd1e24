"""Compressed OpenVINO models: every matrix is rounded wherever it is read, and read back."""

from pathlib import Path

import pytest
import torch

from archloop import registry
from archloop.runtimes import pieces
from archloop.runtimes.block_cache import BlockCache
from archloop.runtimes.exporting import build_random, compose
from archloop.runtimes.rounding import matrices
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_matrices_read_in_parts_and_in_bodies_of_loops_are_rounded_and_found(
    tmp_path: Path,
) -> None:
    """Windowed attention is a step and, in a loop, a pass; both read queries, keys, values."""
    runtime = registry.get("runtimes", "openvino")()
    if missing := runtime.missing_to_export():
        pytest.skip(missing)
    window = MixerSpec(name="swa", config={"head_dim": 64, "window": 16})
    spec = StackSpec(d_model=128, vocab_size=256, blocks=(BlockSpec(mixers=(window,)),))
    decoder = build_random(spec, 0)
    weight_bytes = runtime.write(decoder, tmp_path, "int4")
    # Norms and tables of positions; one matrix of the body alone would be 32,768 bytes.
    assert weight_bytes["float32"] < 4096
    found = runtime.products(decoder, tmp_path, "int4")
    own = matrices(decoder)
    assert set(found) == set(own)
    for name, product in found.items():
        far = (product.weight - own[name]).norm() / own[name].norm()
        assert 1e-3 < far < 0.2, name
        assert torch.isfinite(product.weight).all()
        assert product.inputs is not None, name


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_what_pieces_keep_of_their_products_is_what_the_joined_file_holds(tmp_path: Path) -> None:
    """A tied embedding is a lookup in one piece and a product in another; two halves are equal."""
    runtime = registry.get("runtimes", "openvino")()
    if missing := runtime.missing_to_export():
        pytest.skip(missing)
    attention = BlockSpec(
        mixers=(MixerSpec(name="gqa", config={"head_dim": 32}),),
        channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": 2.0}),
    )
    convolution = attention.model_copy(update={"mixers": (MixerSpec(name="short_conv"),)})
    spec = StackSpec(d_model=64, vocab_size=96, blocks=(attention, convolution, attention))
    cache = BlockCache(runtime.name, runtime.version(), "int8", tmp_path / "cache")
    compose(runtime, spec, tmp_path / "joined", "int8", cache=cache)
    decoder = pieces.assembled(spec)
    lowered = [
        pieces.Lowered(placed, *cache.get(placed.piece, _not_again))
        for placed in pieces.pieces(spec)
    ]
    kept = runtime.joined_products(lowered, decoder, tmp_path / "joined", "int8")
    found = runtime.products(decoder, tmp_path / "joined", "int8")
    # All but the convolution's taps, which stay as they are.
    assert set(kept) == set(found) == set(matrices(decoder)) - {"blocks.1.mixers.0.conv"}
    for name, product in found.items():
        assert torch.equal(kept[name].weight, product.weight), name
        assert (kept[name].inputs is None) == (product.inputs is None), name
        assert kept[name].in_lookups == product.in_lookups, name


def _not_again(*_: object) -> dict[str, int]:
    raise AssertionError("the piece was lowered before")
