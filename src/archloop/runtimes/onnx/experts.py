"""Experts of an ONNX graph in int8: a matrix is chosen by number first and multiplied by then.

Quantisers look for products with constants, and an expert's matrix is a row of a constant with
three axes (`onnx.filling`). Here the constant becomes int8 with a scale for each output, and the
product one that rounds its other factor as it comes, as every other matrix has it.

Shape suffixes: E experts, N outputs of a matrix, K inputs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_DOMAIN = "com.microsoft"


def to_int8(model: Path) -> None:
    """Round the experts of a model in place; one without experts is left as it is."""
    import onnx

    from archloop.runtimes.onnx import graph as onnx_graph

    loaded = onnx.load(str(model), load_external_data=False)
    found = list(_chosen(loaded.graph, {each.name for each in loaded.graph.initializer}))
    if not found:
        return
    loaded = onnx.load(str(model))
    matrices = {each.name: each for each in loaded.graph.initializer}
    for name in {choice.input[0] for _, choice, _ in found}:
        _round(loaded.graph, matrices[name])
    for body, choice, product in list(_chosen(loaded.graph, set(matrices))):
        _forget_type(loaded.graph, choice.input[0])
        _replace(body, choice, product)
    if all(each.domain != _DOMAIN for each in loaded.opset_import):
        loaded.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    rounded = model.with_name("experts.onnx")
    location = f"{rounded.name}.data"
    onnx.save(loaded, str(rounded), save_as_external_data=True, location=location)
    onnx_graph.replace(model, rounded)


def _chosen(graph: Any, constants: set[str]) -> Iterator[tuple[Any, Any, Any]]:
    """Bodies with the choice of a matrix and the product with it."""
    choices = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "Gather" and node.input[0] in constants
    }
    for node in graph.node:
        for attribute in node.attribute:
            yield from _chosen(attribute.g, constants)
        if node.op_type == "Gemm" and (choice := choices.get(node.input[1])) is not None:
            yield graph, choice, node


def _round(graph: Any, matrix: Any) -> None:
    """Put a matrix of each expert (E, N, K) into int8 (E, K, N), with scales (E, N)."""
    from onnx import numpy_helper

    weight_ENK = numpy_helper.to_array(matrix)
    scale_EN = np.maximum(np.abs(weight_ENK).max(-1), 1e-30) / np.float32(127)
    whole_ENK = np.clip(np.round(weight_ENK / scale_EN[:, :, None]), -127, 127).astype(np.int8)
    whole_EKN = np.ascontiguousarray(whole_ENK.transpose(0, 2, 1))
    scales = numpy_helper.from_array(scale_EN.astype(np.float32), f"{matrix.name}.scales")
    matrix.CopyFrom(numpy_helper.from_array(whole_EKN, matrix.name))
    graph.initializer.append(scales)


def _replace(body: Any, choice: Any, product: Any) -> None:
    """Multiply by the chosen matrix in int8."""
    import onnx

    matrix, expert = choice.input
    scales = f"{choice.output[0]}.scales"
    at = [node.output[0] for node in body.node].index(product.output[0])
    new = [
        onnx.helper.make_node("Gather", [f"{matrix}.scales", expert], [scales], f"{scales}.node"),
        onnx.helper.make_node(
            "DynamicQuantizeMatMul",
            [product.input[0], choice.output[0], scales],
            [product.output[0]],
            product.name,
            domain=_DOMAIN,
        ),
    ]
    nodes = [*body.node[:at], *new, *body.node[at + 1 :]]
    del body.node[:]
    body.node.extend(nodes)
    _forget_type(body, choice.output[0])


def _forget_type(graph: Any, name: str) -> None:
    """Take out what a graph says of a value's type and shape, which have changed."""
    kept = [each for each in graph.value_info if each.name != name]
    del graph.value_info[:]
    graph.value_info.extend(kept)
