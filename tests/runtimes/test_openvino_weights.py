"""Compressed OpenVINO models: every matrix is rounded wherever it is read, and read back."""

from pathlib import Path

import pytest
import torch

from archloop import registry
from archloop.runtimes.exporting import build_random
from archloop.runtimes.rounding import matrices
from archloop.stack.spec import BlockSpec, MixerSpec, StackSpec


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
