"""What an ONNX graph computes of weights alone, computed once, when the file is written.

torch writes a product with part of a weight as a slice of the weight, a transposition of the slice,
then the product. An engine does the first two when it loads the graph, or at every call; a
quantiser looks for products with constants, and leaves a product with a slice as it is.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

_LEFT = frozenset({"ConstantOfShape", "Expand", "If", "Loop", "Range", "Scan", "Tile"})
"""Operators that are left: they have bodies, or give far more numbers than they read."""


def fold(graph: ir.Graph) -> None:
    """Make constants of what operators give of constants, in a graph and in its loops' bodies.

    Initialisers that nothing reads any more are removed.
    """
    for node in list(nodes_of(graph)):
        given = [ir.convenience.get_const_tensor(value) for value in node.inputs if value]
        left = node.op_type in _LEFT or node.domain not in ("", "ai.onnx")
        if left or not given or any(tensor is None for tensor in given):
            continue
        numbers = [tensor.numpy() for tensor in given if tensor is not None]
        for value, found in zip(node.outputs, _computed(node, numbers), strict=True):
            _replace(graph, value, np.ascontiguousarray(found))
        assert node.graph is not None
        node.graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def nodes_of(graph: ir.Graph) -> Iterator[ir.Node]:
    """Every node, those of bodies too, in an order in which each comes after what it reads."""
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from nodes_of(attribute.as_graph())
        yield node


def _computed(node: ir.Node, given: list[np.ndarray]) -> list[np.ndarray]:
    """What a node gives of these numbers."""
    from onnx.reference import ReferenceEvaluator

    names = [f"x{index}" for index, value in enumerate(node.inputs) if value is not None]
    alone = ir.serde.serialize_node(node)
    places = iter(names)
    alone.input[:] = ["" if value is None else next(places) for value in node.inputs]
    return list(ReferenceEvaluator(alone).run(None, dict(zip(names, given, strict=True))))


def _replace(graph: ir.Graph, value: ir.Value, numbers: np.ndarray) -> None:
    """Let an initialiser of the whole graph stand for a value: bodies see it too."""
    made = ir.Value(
        name=f"{value.name}.folded",
        shape=ir.Shape(numbers.shape),
        type=ir.TensorType(ir.DataType.from_numpy(numbers.dtype)),
        const_value=ir.tensor(numbers),
    )
    ir.convenience.replace_all_uses_with(value, made, replace_graph_outputs=True)
    graph.initializers.add(made)
