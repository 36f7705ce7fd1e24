"""Attention over a cache as OpenVINO has it: a cache that grows, beside its own product.

The engine's plug-in for processors takes a pattern for one operator that writes new keys and values
where the cache lies and reads the filled slots alone: a variable, rows of it picked by an index
(which beam goes on), the new tokens behind them, each KV head repeated for its queries, and
``ScaledDotProductAttention``. The index is needed although there is one row; and heads must be
repeated by a product with ones: by the ``Broadcast`` that was tried (2026.4) the pattern was not
recognised, and every step copied the cache.

Shape suffixes: B batch (1), T new tokens, s tokens held before, S with the new ones, N query heads,
M KV heads, H head width.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from archloop.runtimes.onnx import graph as onnx_graph
from archloop.runtimes.onnx.attention import CACHED
from archloop.runtimes.onnx.parts import DOMAIN


def read(onnx_model: Path) -> Any:
    """The model of an ONNX file whose attention over caches is `CACHED`."""
    import openvino
    from openvino.frontend.onnx import ConversionExtension

    core = openvino.Core()
    core.add_extension(ConversionExtension(CACHED, DOMAIN, _converted))
    return core.read_model(str(onnx_model))


def _converted(node: Any) -> list[Any]:
    """The output (B, N, T, H), and the caches with the new tokens behind them."""
    import openvino.opset13 as ov

    q_BNTH, *new, k_past, v_past = (node.get_input(index) for index in range(5))
    num_heads, kv_heads = (node.get_attribute(name) for name in ("heads", "kv_heads"))
    only_row, batch = ov.constant(np.zeros(1, np.int32)), ov.constant(np.int64(0))
    caches = [
        ov.concat([ov.gather(past_BMsH, only_row, batch), new_BMTH], 2)
        for past_BMsH, new_BMTH in zip((k_past, v_past), new, strict=True)
    ]
    width = q_BNTH.get_partial_shape()[3].get_length()
    ones = ov.constant(np.ones((1, 1, num_heads // kv_heads, 1, 1), np.float32))
    as_heads = ov.constant(np.array([0, num_heads, -1, width]))
    repeated = [
        ov.reshape(
            ov.multiply(ov.unsqueeze(cache, ov.constant(np.array([2]))), ones), as_heads, True
        )
        for cache in caches
    ]
    scale = ov.constant(np.float32(node.get_attribute("scale")))
    mask = _causal(q_BNTH, k_past)
    y_BNTH = ov.scaled_dot_product_attention(q_BNTH, *repeated, mask, scale)
    return [value.output(0) for value in (y_BNTH, *caches)]


def _causal(q_BNTH: Any, past_BMsH: Any) -> Any:
    """What is added to scores, (1, 1, T, S): nothing where a query may look.

    The operator's own causal order counts from the first query by its definition, and from the last
    in the plug-in.
    """
    import openvino.opset13 as ov

    first, one, axis = (ov.constant(np.int64(value)) for value in (0, 1, 2))
    held, new = (ov.gather(ov.shape_of(each), axis, first) for each in (past_BMsH, q_BNTH))
    end = ov.add(held, new)
    slots_1S = ov.unsqueeze(ov.range(first, end, one, "i64"), first)
    positions_T1 = ov.unsqueeze(ov.range(held, end, one, "i64"), one)
    allowed_TS = ov.less_equal(slots_1S, positions_T1)
    nothing, never = (ov.constant(np.float32(value)) for value in (0, -np.inf))
    return ov.unsqueeze(ov.select(allowed_TS, nothing, never), ov.constant(np.array([0, 1])))


def with_variables(model: Any, growing: Iterable[onnx_graph.StateTensor]) -> Any:
    """A model whose growing caches are variables, empty at first.

    The library's own transformation gives variables no first value, which the fused operator needs.
    """
    import openvino
    import openvino.opset13 as ov

    parameters = {each.output(0).any_name: each for each in model.get_parameters()}
    results = {each.output(0).any_name: each for each in model.get_results()}
    sinks = list(model.get_sinks())
    for held in growing:
        parameter, result = parameters.pop(held.name), results.pop(held.next_name)
        empty = ov.constant(np.zeros(held.sized(0), held.dtype))
        kind, shape = parameter.get_element_type(), parameter.get_partial_shape()
        variable = ov.read_value(empty, held.name, kind, shape)
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(variable.output(0))
        sinks.append(ov.assign(result.input_value(0).get_node(), held.name))
    return openvino.Model([*results.values()], sinks, [*parameters.values()], "stack")
