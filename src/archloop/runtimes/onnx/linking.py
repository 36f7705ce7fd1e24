"""Lowered pieces put together as one ONNX graph, without tracing anything.

Pieces run one after another, so the graph is their nodes in order: what one gives is what the next
reads, all read one length, and the state's tensors are those of all. Names are told apart by the
piece's place. Each copy of a piece has weights of its own in the file, as the stack that it stands
for has; pieces that share weights read one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from archloop.runtimes.graphs import IDS, LENGTH, LOGITS, STREAM, STREAM_NEXT, TOKEN
from archloop.runtimes.onnx import graph as onnx_graph
from archloop.runtimes.pieces import Lowered, Placed


def link(pieces: Sequence[Lowered], directory: Path) -> Path:
    """Write `model.onnx`, its weights and `state.json` of a stack, given its pieces in order.

    Returns:
        the model's place.
    """
    linker, held = _Linker(), []
    for index, (placed, home, _) in enumerate(pieces):
        names, tensors = state_of(placed, home)
        linker.add(ir.load(home / onnx_graph.MODEL), names, f"p{index}.", copy_of(placed))
        held += tensors
    file = directory / onnx_graph.MODEL
    ir.save(linker.model(), file, external_data=f"{file.name}.data")
    onnx_graph.write_state(directory, held)
    return file


def copy_of(placed: Placed) -> str:
    """Which copy of weights a piece reads: a tied head reads the embedding's."""
    is_end = placed.block is None
    return "ends" if is_end else f"{placed.piece.part} {placed.weights}"


def state_of(placed: Placed, home: Path) -> tuple[dict[str, str], list[onnx_graph.StateTensor]]:
    """The state of a piece in a stack: names there by the piece's own, and the tensors."""
    tensors = onnx_graph.read_state(home)
    # A piece's only block is block 0 to it.
    names = {
        name: _in_block(name, placed.block)
        for each in tensors
        for name in (each.name, each.next_name)
    }
    renamed = [
        each._replace(name=names[each.name], next_name=names[each.next_name]) for each in tensors
    ]
    return names, renamed


def _in_block(name: str, block: int | None) -> str:
    """A state tensor's name in a stack: ``state_<block>_<slot>_<name>``."""
    kind, _, rest = name.split("_", 2)
    return f"{kind}_{block}_{rest}"


class _Linker:
    """A graph that pieces are added to."""

    def __init__(self) -> None:
        self._nodes: list[ir.Node] = []
        self._inputs: dict[str, ir.Value] = {}
        self._outputs: dict[str, ir.Value] = {}
        self._weights: list[ir.Value] = []
        self._kept: dict[tuple[object, ...], ir.Value] = {}
        self._opsets: dict[str, int] = {}
        self._version = 0

    def add(self, piece: ir.Model, state: dict[str, str], prefix: str, copy: str) -> None:
        """Run a piece after those that are there.

        Args:
            piece: emptied.
            state: names of its state's tensors in the stack, by name.
            prefix: of its other names.
            copy: which copy of weights it has.
        """
        assert not piece.functions, "an exporter leaves functions in no graph"
        graph = piece.graph
        nodes, inputs, outputs = list(graph), list(graph.inputs), list(graph.outputs)
        weights = list(graph.initializers.values())
        given = {value: value.name or "" for value in inputs}
        made = {state.get(value.name or "", value.name or ""): value for value in outputs}
        _rename(graph, prefix)
        graph.initializers.clear()
        graph.inputs.clear()
        graph.outputs.clear()
        graph.remove(nodes)
        for value in weights:
            self._keep(value, copy)
        for value, name in given.items():
            if name == STREAM:
                ir.convenience.replace_all_uses_with(value, self._outputs.pop(STREAM_NEXT))
                continue
            value.name = state.get(name, name)
            kept = self._inputs.setdefault(value.name, value)
            if kept is not value:
                ir.convenience.replace_all_uses_with(value, kept)
        for name, value in made.items():
            if name != STREAM_NEXT:
                value.name = name
            self._outputs[name] = value
        self._nodes += nodes
        self._opsets |= graph.opset_imports
        self._version = max(self._version, piece.ir_version)

    def model(self) -> ir.Model:
        """The stack's."""
        first, last = (IDS, LENGTH), (TOKEN, LOGITS)
        graph = ir.Graph(
            [*(self._inputs.pop(name) for name in first), *self._inputs.values()],
            [*(self._outputs.pop(name) for name in last), *self._outputs.values()],
            nodes=self._nodes,
            initializers=self._weights,
            opset_imports=self._opsets,
            name="stack",
        )
        return ir.Model(graph, ir_version=self._version, producer_name="archloop")

    def _keep(self, value: ir.Value, copy: str) -> None:
        """Add an initialiser, or use that of another piece with the same copy of weights."""
        tensor = value.const_value
        assert tensor is not None
        digest = hashlib.sha256(tensor.tobytes()).digest()
        key = (copy, str(tensor.dtype), tuple(tensor.shape), digest)
        kept = self._kept.setdefault(key, value)
        if kept is value:
            self._weights.append(value)
        else:
            ir.convenience.replace_all_uses_with(value, kept)


def _rename(graph: ir.Graph, prefix: str) -> None:
    """Put a prefix before every name of a graph, those in bodies of loops too.

    Shapes in between are left out, since engines find them again: pieces call different sizes by
    one name, such as the tokens of an expert, and ONNX Runtime then uses memory of one for another.
    """
    for node in graph.all_nodes():
        node.name = f"{prefix}{node.name}"
        for value in node.outputs:
            value.name = f"{prefix}{value.name}"
            if not value.is_graph_output():
                value.shape = None
    for each in (graph, *graph.subgraphs()):
        for value in (*each.inputs, *each.initializers.values()):
            # A loop's body reads weights of the graph: they are met once, as the graph's.
            value.name = f"{prefix}{value.name}"
