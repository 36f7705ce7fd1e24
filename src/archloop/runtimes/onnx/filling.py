"""The content of parts (`onnx.parts`) in a traced decoder's ONNX graph.

A mixer's placeholder becomes

    Loop(the pass, over all tokens of the call but the last, PASS at a time), then the step

In a call of one token, which is a decode step, the loop runs not once. The state goes from pass to
pass and into the step; both read one copy of the weights. A choice between them (`If`) would say
the same, but OpenVINO 2026.4 computes a loop inside a choice wrongly; a `Scan` over no passes is an
error in ONNX Runtime 1.32.

Experts become a loop over those that any token of the call chose: it picks an expert's tokens, runs
it on them, and adds the weighted results where they came from. So a decode step reads the weights
of its experts alone, and a prompt costs each token its own experts.

Shape suffixes: as in `onnx.parts`; n passes, H experts that are hit, R tokens of one, F its width.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from archloop.runtimes.onnx.attention import CACHED
from archloop.runtimes.onnx.folding import fold
from archloop.runtimes.onnx.parts import DOMAIN, PASS, Pass, Placed, Step, traced

Value = Any
"""An `onnx_ir.Value`, which the library's own signatures give up to None."""
_CONTRIBUTED = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


def fill_in(model: ir.Model, parts: Mapping[str, Placed], *, attends: bool) -> None:
    """Give each placeholder of a traced decoder its content, in place.

    Args:
        model: with nodes of domain `DOMAIN`.
        parts: mixers by the placeholders' names.
        attends: attention over a cache becomes ONNX Runtime's operator; else it is left.
    """
    graph = model.graph
    given = [node for node in graph if node.domain == DOMAIN]
    for index, node in enumerate(given):
        if node.op_type == CACHED and not attends:
            continue
        writer = _Writer(f"part_{index}")
        if node.op_type == CACHED:
            graph.opset_imports[_CONTRIBUTED] = 1
            results = _attention(writer, node)
        elif node.op_type == "Experts":
            gated = bool(node.attributes["gated"].as_int())
            results = _experts(writer, *node.inputs, gated=gated)
        else:
            part = parts[node.attributes["part"].as_string()]
            results = _mixer(writer, part, *node.inputs)
        new = writer.main.nodes
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, results)
        for value in writer.constants:
            graph.initializers.add(value)
    fold(graph)
    _share_equal(graph)


def _share_equal(graph: ir.Graph) -> None:
    """One initialiser where several hold the same numbers: a step's weights are its pass's."""
    first: dict[tuple[str, tuple[Any, ...], bytes], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        digest = hashlib.sha256(tensor.tobytes()).digest()
        kept = first.setdefault((str(tensor.dtype), tuple(tensor.shape), digest), value)
        if kept is not value:
            ir.convenience.replace_all_uses_with(value, kept)
            del graph.initializers[name]


class _Nodes:
    """Nodes in the order in which they are written."""

    def __init__(self, writer: "_Writer") -> None:
        self.nodes: list[ir.Node] = []
        self._writer = writer

    def op(
        self, op_type: str, *inputs: Value, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> Value:
        """A node's result, or its results where it has several."""
        node = ir.node(
            op_type, list(inputs), attributes or None, num_outputs=outputs, domain=domain
        )
        self._writer.rename(node)
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)


class _Writer:
    """Writes the content of one part.

    Attributes:
        main: nodes of the graph itself; bodies of loops have their own.
        constants: numbers and weights that the nodes read.
    """

    def __init__(self, prefix: str) -> None:
        self.main = _Nodes(self)
        self.constants: list[ir.Value] = []
        self._prefix, self._count = prefix, 0

    def name(self) -> str:
        """One that nothing else in the graph has."""
        self._count += 1
        return f"{self._prefix}.{self._count}"

    def rename(self, node: ir.Node) -> None:
        """Give a node and its results names of their own."""
        node.name = self.name()
        for value in node.outputs:
            value.name = self.name()

    def number(self, value: Any, dtype: Any = np.int64) -> Value:
        """A constant."""
        return self.constant(np.array(value, dtype))

    def constant(self, numbers: NDArray[Any]) -> Value:
        """A constant of these numbers."""
        made = self._value(ir.Shape(numbers.shape), ir.DataType.from_numpy(numbers.dtype))
        made.const_value = ir.tensor(numbers)
        self.constants.append(made)
        return made

    def loop(self, count: Value, body: "_Nodes", carried: list[Value], **given: Any) -> list[Value]:
        """What a loop gives: what is carried after it, then what each turn adds.

        Args:
            count: turns.
            body: nodes of a turn.
            carried: what goes into the first turn.
            given: `index` and `now`, the turn's number and what is carried into it, as `turn` made
                them; `after` and `adds`, what it carries on and what it adds.
        """
        again = self._value(ir.Shape([]), ir.DataType.BOOL)
        same = body.op("Identity", again)
        inputs = [given["index"], again, *given["now"]]
        outputs = [same, *given["after"], *given["adds"]]
        graph = ir.Graph(inputs, outputs, nodes=body.nodes, name=self.name())
        num = len(carried) + len(given["adds"])
        always = self.number(True, np.bool_)
        results = self.main.op("Loop", count, always, *carried, outputs=num, body=graph)
        return [results] if num == 1 else results

    def turn(self, carried: list[Value]) -> tuple[Value, list[Value]]:
        """A turn's number and what is carried into it, as inputs of a loop's body."""
        now = [self._value(each.shape, each.dtype) for each in carried]
        return self._value(ir.Shape([]), ir.DataType.INT64), now

    def inline(
        self, part: Step | Pass, num_tokens: int, given: list[Value], into: _Nodes
    ) -> list[Value]:
        """Results of a part on these inputs."""
        graph = traced(part, num_tokens)
        for value, outer in zip(list(graph.inputs), given, strict=True):
            ir.convenience.replace_all_uses_with(value, outer)
        results, nodes = list(graph.outputs), list(graph)
        constants = list(graph.initializers.values())
        graph.inputs.clear()
        graph.outputs.clear()
        graph.remove(nodes)
        graph.initializers.clear()
        for value in constants:
            value.name = self.name()
        self.constants += constants
        for node in nodes:
            self.rename(node)
            product = self._as_matmul(node, into) if node.op_type == "Gemm" else None
            if product is None:
                into.nodes.append(node)
                continue
            ir.convenience.replace_all_uses_with(node.outputs[0], product)
            results = [product if each is node.outputs[0] else each for each in results]
        return results

    def _as_matmul(self, node: ir.Node, into: _Nodes) -> Value | None:
        """A product of a step as a pass has it, so that both read one copy of the weight.

        What torch writes for one token takes the matrix (N, K) as it is, for many its transpose.
        """
        x, weight, *bias = node.inputs
        if weight is None or weight.const_value is None or len(weight.uses()) > 1:
            return None
        if "transB" not in node.attributes or node.attributes["transB"].as_int() != 1:
            return None
        turned = self.constant(np.ascontiguousarray(weight.const_value.numpy().T))
        self.constants.remove(weight)
        product = into.op("MatMul", x, turned)
        return into.op("Add", product, bias[0]) if bias else product

    def _value(self, shape: Any, dtype: Any) -> Value:
        return ir.Value(name=self.name(), shape=shape, type=ir.TensorType(dtype))


def _mixer(
    writer: _Writer, part: Placed, x_BTD: Value, length_B: Value, *tensors: Value
) -> list[Value]:
    """The state's tensors after the call, then its outputs (B, T, D)."""
    op, number = writer.main.op, writer.number
    tokens = op("Gather", op("Shape", x_BTD), number(1))
    before = op("Sub", tokens, number(1))
    passes = op("Div", op("Add", before, number(PASS - 1)), number(PASS))
    *after, y_nBCD = _passes(writer, part, passes, x_BTD, length_B, list(tensors), before)
    y_BnCD = op("Transpose", y_nBCD, perm=[1, 0, 2, 3])
    flat = op("Reshape", y_BnCD, number([1, -1, part.mixer.d_model]))
    # After no pass at all OpenVINO leaves the outputs of an earlier call here.
    y_BtD = op("Slice", flat, number([0]), op("Unsqueeze", before, number([0])), number([1]))
    last_B1D = op("Gather", x_BTD, op("Unsqueeze", before, number([0])), axis=1)
    given = [last_B1D, op("Add", length_B, before), *after]
    *after, y_B1D = writer.inline(Step(part), 1, given, writer.main)
    return [*after, op("Concat", y_BtD, y_B1D, axis=1)]


def _passes(
    writer: _Writer,
    part: Placed,
    passes: Value,
    x_BTD: Value,
    length_B: Value,
    tensors: list[Value],
    tokens: Value,
) -> list[Value]:
    """State after the first so many tokens, then their outputs (n, B, C, D)."""
    index, now = writer.turn(tensors)
    body, number = _Nodes(writer), writer.number
    start = body.op("Mul", index, number(PASS))
    # What stands behind the end is a copy of the next token, and counts for nothing.
    taken_C = body.op("Min", body.op("Add", start, number(range(PASS))), tokens)
    x_BCD = body.op("Gather", x_BTD, taken_C, axis=1)
    left = body.op("Min", body.op("Sub", tokens, start), number(PASS))
    given = [x_BCD, body.op("Add", length_B, start), *now, body.op("Unsqueeze", left, number([0]))]
    *after, y_BCD = writer.inline(Pass(part), PASS, given, body)
    return writer.loop(passes, body, tensors, index=index, now=now, after=after, adds=[y_BCD])


def _attention(writer: _Writer, node: ir.Node) -> list[Value]:
    """``GroupQueryAttention`` in a node's place: its output (B, N, T, H), the caches after it.

    It takes heads side by side, and how many tokens there are with the new ones. Where an engine
    binds a cache and the one after it to the same memory, the new tokens are all that is written.
    """
    op, number = writer.main.op, writer.number
    q_BNTH, k_BMTH, v_BMTH, *caches, length_B = node.inputs
    heads, kv_heads = (node.attributes[name].as_int() for name in ("heads", "kv_heads"))
    flat = [
        op("Reshape", op("Transpose", x, perm=[0, 2, 1, 3]), number([0, 0, -1]))
        for x in (q_BNTH, k_BMTH, v_BMTH)
    ]
    tokens_1 = op("Gather", op("Shape", q_BNTH), number([2]))
    total = op("Cast", op("Add", length_B, tokens_1), to=ir.DataType.INT32)
    last = op("Sub", total, number(1, np.int32))
    y_BTd, *after = op(
        "GroupQueryAttention",
        *flat,
        *caches,
        last,
        total,
        outputs=3,
        domain=_CONTRIBUTED,
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=node.attributes["scale"].as_float(),
    )
    y_BTNH = op("Reshape", y_BTd, number([0, 0, heads, -1]))
    for cache, new in zip(caches, after, strict=True):
        assert cache is not None
        new.shape, new.type = cache.shape, cache.type
    return [op("Transpose", y_BTNH, perm=[0, 2, 1, 3]), *after]


def _experts(
    writer: _Writer,
    x_XD: Value,
    mixed_XE: Value,
    hits_XE: Value,
    gate_up: Value,
    down: Value,
    *,
    gated: bool,
) -> list[Value]:
    """Outputs (X, D) of the experts of each token, weighted by `mixed_XE`."""
    op, number = writer.main.op, writer.number
    hit_E = op("ReduceMax", hits_XE, number([0]), keepdims=0)
    hit_H = op("Squeeze", op("NonZero", hit_E), number([0]))
    count = op("Squeeze", op("Shape", hit_H))
    zeros_XD = op("Mul", x_XD, number(0.0, np.float32))
    zeros_XD.shape, zeros_XD.dtype = x_XD.shape, x_XD.dtype
    index, (sum_XD,) = writer.turn([zeros_XD])
    body = _Nodes(writer)
    expert = body.op("Gather", hit_H, index)
    rows_1R = body.op("NonZero", body.op("Gather", hits_XE, expert, axis=1))
    rows_R = body.op("Squeeze", rows_1R, number([0]))
    x_RD = body.op("Gather", x_XD, rows_R)
    up_RF = body.op("Gemm", x_RD, body.op("Gather", gate_up, expert), transB=1)
    if gated:
        gate_RF, up_RF = body.op("Split", up_RF, axis=1, num_outputs=2, outputs=2)
        silu_RF = body.op("Mul", gate_RF, body.op("Sigmoid", gate_RF))
        hidden_RF = body.op("Mul", silu_RF, up_RF)
    else:
        relu_RF = body.op("Relu", up_RF)
        hidden_RF = body.op("Mul", relu_RF, relu_RF)
    y_RD = body.op("Gemm", hidden_RF, body.op("Gather", down, expert), transB=1)
    weight_R = body.op("Gather", body.op("Gather", mixed_XE, expert, axis=1), rows_R)
    y_RD = body.op("Mul", y_RD, body.op("Unsqueeze", weight_R, number([1])))
    new_RD = body.op("Add", body.op("Gather", sum_XD, rows_R), y_RD)
    rows_R1 = body.op("Transpose", rows_1R, perm=[1, 0])
    after_XD = body.op("ScatterND", sum_XD, rows_R1, new_RD)
    turn = {"index": index, "now": [sum_XD], "after": [after_XD], "adds": []}
    return writer.loop(count, body, [zeros_XD], **turn)
