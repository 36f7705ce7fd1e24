"""What XNNPACK has no operator for, said with operators that it has.

XNNPACK takes over the longest stretches of a graph that it knows all operators of. Each operator
that it lacks ends a stretch: a call more when the graph runs, and half a second more of graph
passes when it is lowered. Most of what it lacks are ways to say what it has: a sum along an axis
is a product with ones, a split is several slices, a new axis is a view.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten


def rewritten(program: ExportedProgram) -> ExportedProgram:
    """The same program, computed by operators that XNNPACK has where there are such."""
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    kept = set(_quantisers())
    program = program.run_decompositions(_decompositions())
    program = constant_prop_pass(program, custom_skip_targets=kept)
    for name, constant in program.constants.items():
        if isinstance(constant, Tensor):
            # XNNPACK's exporter writes the storage that a constant lies in from its start, so a
            # slice of a larger weight (1.5.1) would become the weight's first rows.
            program.constants[name] = constant.clone(memory_format=torch.contiguous_format)
    rewriter = _Rewriter(program)
    for node in list(program.graph.nodes):
        if node.target in _CHECKS:
            program.graph.erase_node(node)
    for node in list(program.graph.nodes):
        write = _RULES.get(node.target) if node.op == "call_function" else None
        if write is not None:
            rewriter.replace(node, write)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _decompositions() -> Any:
    """PyTorch's, but what XNNPACK takes as it is, and what is said otherwise below."""
    table = torch.export.default_decompositions()
    taken = (aten.linear.default, aten.conv1d.default, aten.conv1d.padding, *_quantisers())
    taken += (aten.lerp.Tensor,)
    for operator in taken:
        table.pop(operator, None)
    return table


def _quantisers() -> list[Any]:
    """torchao's operators, which XNNPACK knows by name; they exist once torchao is loaded."""
    names = ("choose_qparams_affine", "quantize_affine", "dequantize_affine")
    return [
        getattr(torch.ops.torchao, name).default
        for name in names
        if hasattr(torch.ops.torchao, name)
    ]


class _Rewriter:
    """Writes nodes in front of the one that they replace.

    Attributes:
        program: changed in place.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self._constants: dict[tuple[Any, ...], Node] = {}
        self._first = next(
            node
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
        )
        self._at = self._first

    def replace(self, node: Node, write: Callable[["_Rewriter", Node], Node | None]) -> None:
        """Put what `write` gives in a node's place; None leaves it."""
        self._at = node
        with self.program.graph.inserting_before(node):
            new = write(self, node)
        if new is not None:
            node.replace_all_uses_with(new)
            self.program.graph.erase_node(node)

    def call(self, operator: Any, *args: Any) -> Node:
        """A node's result."""
        node: Node = self.program.graph.call_function(operator, args)
        given = torch.fx.node.map_arg(args, lambda each: each.meta["val"])
        node.meta["val"] = operator(*given)
        return node

    def constant(self, shape: Sequence[int], value: float) -> Node:
        """A tensor of one number, of which there is one for each shape and number."""
        from executorch.backends.transforms.utils import create_constant_placeholder
        from torch.export.graph_signature import InputKind

        key = (*shape, value)
        if key not in self._constants:
            with self.program.graph.inserting_before(self._first):
                made: Node = create_constant_placeholder(
                    self.program,
                    self.program.graph,
                    f"b_rewritten_{len(self._constants)}",
                    InputKind.BUFFER,
                    torch.full(tuple(shape), value),
                    persistent_buffer=True,
                )
            self._constants[key] = made
        return self._constants[key]


def _value(node: Any) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _is_static(*values: Tensor) -> bool:
    return all(isinstance(size, int) for value in values for size in value.shape)


def _summed(rewriter: _Rewriter, node: Node, factor: float) -> Node | None:
    """A sum along the last axis or the one before, times a factor, as a product with a vector."""
    x: Any = node.args[0]
    axes: Any = node.args[1]
    value = _value(x)
    if not isinstance(axes, list | tuple) or len(axes) != 1 or value.dtype != torch.float32:
        return None
    if not _is_static(value) or node.kwargs:
        return None
    axis = int(axes[0]) % value.dim()
    size, out = value.shape[axis], list(_value(node).shape)
    if axis == value.dim() - 1:
        made = rewriter.call(aten.linear.default, x, rewriter.constant((1, size), factor))
    elif axis == value.dim() - 2:
        rows = value.shape[:axis].numel()
        flat = rewriter.call(aten.view.default, x, [rows, size, value.shape[-1]])
        made = rewriter.call(aten.bmm.default, rewriter.constant((rows, 1, size), factor), flat)
    else:
        return None
    return rewriter.call(aten.view.default, made, out)


def _sum(rewriter: _Rewriter, node: Node) -> Node | None:
    return _summed(rewriter, node, 1.0)


def _mean(rewriter: _Rewriter, node: Node) -> Node | None:
    axes: Any = node.args[1]
    if not isinstance(axes, list | tuple) or len(axes) != 1:
        return None
    return _summed(rewriter, node, 1 / int(_value(node.args[0]).shape[int(axes[0])]))


def _view(rewriter: _Rewriter, node: Node) -> Node | None:
    """An axis more or less."""
    made = _value(node)
    if not _is_static(made) or not made.dtype.is_floating_point:
        return None
    return rewriter.call(aten.view.default, node.args[0], list(made.shape))


def _same(rewriter: _Rewriter, node: Node) -> Any:
    """A name of PyTorch's bookkeeping for what is there already."""
    del rewriter
    return node.args[0]


def _remainder(rewriter: _Rewriter, node: Node) -> Node | None:
    """As in Python for negative numbers too, where ExecuTorch's kernel (1.5.1) leaves the sign."""
    x, size = node.args[:2]
    if _value(x).dtype.is_floating_point or not isinstance(size, int):
        return None
    signed = rewriter.call(aten.remainder.Scalar, x, size)
    shifted = rewriter.call(aten.add.Tensor, signed, size)
    return rewriter.call(aten.remainder.Scalar, shifted, size)


def _gelu(rewriter: _Rewriter, node: Node) -> Node | None:
    """GELU by tanh in full: XNNPACK (1.5.1) takes the error function's form for it."""
    x: Any = node.args[0]
    if node.kwargs.get("approximate") != "tanh" or _value(x).dtype != torch.float32:
        return None

    def times(y: Node, factor: float) -> Node:
        return rewriter.call(aten.mul.Tensor, y, rewriter.constant((1,), factor))

    cube = rewriter.call(aten.mul.Tensor, rewriter.call(aten.mul.Tensor, x, x), x)
    inner = rewriter.call(aten.add.Tensor, x, times(cube, 0.044715))
    turned = rewriter.call(aten.tanh.default, times(inner, math.sqrt(2 / math.pi)))
    above = rewriter.call(aten.add.Tensor, turned, rewriter.constant((1,), 1.0))
    return rewriter.call(aten.mul.Tensor, times(x, 0.5), above)


def _lerp(rewriter: _Rewriter, node: Node) -> Node:
    """``start + weight (end - start)``.

    PyTorch's own form chooses between two, number by number; XNNPACK has no such choice.
    """
    start, end, weight = node.args
    apart = rewriter.call(aten.sub.Tensor, end, start)
    return rewriter.call(aten.add.Tensor, start, rewriter.call(aten.mul.Tensor, weight, apart))


def _select(rewriter: _Rewriter, node: Node) -> Node | None:
    x, axis, index = node.args
    made = _value(node)
    if not _is_static(_value(x)) or not made.dtype.is_floating_point:
        return None
    assert isinstance(axis, int)
    assert isinstance(index, int)
    start = index % int(_value(x).shape[axis])
    part = rewriter.call(aten.slice.Tensor, x, axis, start, start + 1)
    return rewriter.call(aten.view.default, part, list(made.shape))


def _split(rewriter: _Rewriter, node: Node) -> Node | None:
    """Slices in place of a list of parts."""
    given: Any = node.args
    x, axis = given[0], given[2] if len(given) > 2 else 0
    parts = node.meta["val"]
    if not _is_static(*parts) or not parts[0].dtype.is_floating_point:
        return None
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + int(part.shape[axis]))
    for user in list(node.users):
        index = user.args[1]
        assert isinstance(index, int)
        part = rewriter.call(aten.slice.Tensor, x, axis, starts[index], starts[index + 1])
        user.replace_all_uses_with(part)
        rewriter.program.graph.erase_node(user)
    return None


def _with_number(rewriter: _Rewriter, node: Node) -> Node | None:
    """A number beside a tensor becomes a tensor too."""
    x, number = node.args[:2]
    if isinstance(number, Node) or not isinstance(x, Node) or len(node.args) > 2 or node.kwargs:
        return None
    if _value(x).dtype != torch.float32 or not isinstance(number, int | float):
        return None
    target: Any = node.target
    operator = _OF_TENSORS.get(target, target)
    if operator is aten.mul.Tensor and number == 1:
        return x
    return rewriter.call(operator, x, rewriter.constant((1,), float(number)))


_CHECKS = (aten._assert_tensor_metadata.default, aten._assert_scalar.default)
"""Of what is known here: whoever runs a program checks tokens and room."""
_OF_TENSORS: dict[Any, Any] = {
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
}


_RULES: dict[Any, Callable[[_Rewriter, Node], Node | None]] = {
    aten.alias.default: _same,
    aten.remainder.Scalar: _remainder,
    aten.gelu.default: _gelu,
    aten.lerp.Tensor: _lerp,
    aten.sum.dim_IntList: _sum,
    aten.mean.dim: _mean,
    aten.unsqueeze.default: _view,
    aten.squeeze.dim: _view,
    aten.squeeze.dims: _view,
    aten.select.int: _select,
    aten.split_with_sizes.default: _split,
    aten.add.Tensor: _with_number,
    aten.sub.Tensor: _with_number,
    aten.mul.Tensor: _with_number,
    aten.div.Tensor: _with_number,
    **dict.fromkeys(_OF_TENSORS, _with_number),
}
