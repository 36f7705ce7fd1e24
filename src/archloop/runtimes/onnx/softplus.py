"""Softplus by other operators, for an engine whose own rounds too much.

OpenVINO computes ``log(1 + exp(x))``, and beside 1 little is left of a small exp(x): around -4 the
result is off by 1.2e-7 (root mean square), and where it is smallest by up to 2e-3 of itself. Decays
are such steps times a rate, multiplied over all tokens, so a state that reads them drifts.
``log(1 + e)`` is also ``2 atanh(e / (2 + e))``, which loses nothing.
"""

import onnx_ir as ir

from archloop.runtimes.onnx.folding import nodes_of


def write_out(graph: ir.Graph) -> None:
    """Replace each Softplus of a graph and of its bodies, in place."""
    found = [node for node in nodes_of(graph) if node.op_type == "Softplus"]
    if not found:
        return
    two = ir.Value(
        name="softplus.two",
        shape=ir.Shape(()),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(2.0, dtype=ir.DataType.FLOAT),
    )
    # Bodies see it too.
    graph.initializers.add(two)
    for node in found:
        assert node.graph is not None
        new = _written_out(node, two)
        ir.convenience.replace_nodes_and_values(
            node.graph, node, [node], new, node.outputs, new[-1].outputs
        )


def _written_out(node: ir.Node, two: ir.Value) -> list[ir.Node]:
    """``max(x, 0) + 2 atanh(e / (2 + e))`` with ``e = exp(-|x|)``."""
    made: list[ir.Node] = []
    (x,), out = node.inputs, node.outputs[0]

    def op(op_type: str, *inputs: ir.Value | None) -> ir.Value:
        new = ir.node(op_type, list(inputs))
        new.outputs[0].name = f"{out.name}.{len(made)}"
        new.outputs[0].shape, new.outputs[0].type = out.shape, out.type
        made.append(new)
        return new.outputs[0]

    e = op("Exp", op("Neg", op("Abs", x)))
    half = op("Atanh", op("Div", e, op("Add", e, two)))
    op("Add", op("Relu", x), op("Add", half, half))
    return made
