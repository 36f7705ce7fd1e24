"""Softplus by other operators: as exact as PyTorch's in OpenVINO, whose own is not."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

X = np.concatenate([np.linspace(-30, 30, 4001), [-60.0, 0.0, 60.0]]).astype(np.float32)
TEXT = f"""
<ir_version: 10, opset_import: ["" : 18]>
both (float[{len(X)}] x, bool flag) => (float[{len(X)}] outer, float[{len(X)}] chosen) {{
    outer = Softplus(x)
    chosen = If (flag) <
        then_branch = taken () => (float[{len(X)}] inner) {{ inner = Softplus(x) }},
        else_branch = left () => (float[{len(X)}] same) {{ same = Identity(x) }}
    >
}}
"""
"""Softplus of x, twice: in a graph, and in a body of one of its operators."""


def in_openvino(model: bytes) -> list[NDArray[Any]]:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    found = compiled([X, np.array(True)])
    return [found[0], found[1]]


def far(found: NDArray[Any]) -> float:
    """Largest error, in parts of the result."""
    exact = np.logaddexp(0.0, X.astype(np.float64))
    return float((np.abs(found - exact) / exact).max())


@pytest.mark.ci
def test_it_is_written_out_wherever_it_stands_and_loses_nothing() -> None:
    onnx, ir = pytest.importorskip("onnx"), pytest.importorskip("onnx_ir")
    pytest.importorskip("openvino")
    from archloop.runtimes.onnx import softplus

    plain = onnx.parser.parse_model(TEXT)
    made = ir.from_proto(plain)
    softplus.write_out(made.graph)
    written = ir.to_proto(made).SerializeToString()
    assert b"Softplus" not in written
    assert far(torch.nn.functional.softplus(torch.from_numpy(X)).numpy()) < 1e-6
    assert max(map(far, in_openvino(written))) < 1e-6
    # What it is written out for.
    assert max(map(far, in_openvino(plain.SerializeToString()))) > 1e-3
