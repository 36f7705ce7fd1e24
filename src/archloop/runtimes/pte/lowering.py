"""From a traced part of a decoder to a program that ExecuTorch loads, on XNNPACK.

1. both graphs are traced (`pte.graph`);
2. what XNNPACK lacks is said with what it has (`pte.rewrite`);
3. XNNPACK takes over what it can, ExecuTorch's own kernels the rest;
4. the state's write-backs are made where they are needed and nowhere else.
"""

import warnings
from typing import Any

import torch
from torch.export import ExportedProgram

from archloop.runtimes.pte import attention as executorch_attention
from archloop.runtimes.pte import graph as executorch_graph
from archloop.runtimes.pte import rewrite as executorch_rewrite

_MOST_AXES = 6
"""Of a tensor of XNNPACK (`XNN_MAX_TENSOR_DIMS`)."""


def lowered(part: executorch_graph.Part) -> Any:
    """A program of two methods (`ExecutorchProgramManager`)."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge_transform_and_lower,
    )
    from executorch.exir.passes import MemoryPlanningPass

    executorch_attention.load_operators()
    with warnings.catch_warnings():
        # Deprecations between PyTorch and ExecuTorch, of no use to whoever exports.
        warnings.simplefilter("ignore")
        programs = executorch_graph.traced(part)
        edge = to_edge_transform_and_lower(
            {name: executorch_rewrite.rewritten(each) for name, each in programs.items()},
            # Quantised products first, or the general one would take their halves apart.
            partitioner=[
                _of_few_axes(each())
                for each in (XnnpackDynamicallyQuantizedPartitioner, XnnpackPartitioner)
            ],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        for name in edge.methods:
            _drop_copies(edge.exported_program(name))
        return edge.to_executorch(
            ExecutorchBackendConfig(
                # The state and the tokens are the caller's own tensors.
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            )
        )


def _of_few_axes(partitioner: Any) -> Any:
    """The partitioner, leaving alone what XNNPACK's tensors have too few axes for.

    It takes such nodes all the same, and the program then fails when it is loaded. The passes of
    linear attention and of state-space models (batch, chunks, heads, two halves of a chunk, …) have
    some.
    """
    matched = partitioner.get_matched_nodes_from_configs

    def fitting(program: ExportedProgram) -> Any:
        return [nodes for nodes in matched(program) if all(map(_has_few_axes, nodes))]

    partitioner.get_matched_nodes_from_configs = fitting
    return partitioner


def _has_few_axes(node: Any) -> bool:
    """Whether a node's tensors, those it reads and the one it gives, have at most so many axes."""
    values = [each.meta.get("val") for each in (node, *node.all_input_nodes)]
    return all(value.dim() <= _MOST_AXES for value in values if isinstance(value, torch.Tensor))


def _drop_copies(program: ExportedProgram) -> None:
    """Copies of a tensor over another of its size are that tensor.

    Writing into a state leaves one such copy a tensor and layer of PyTorch's bookkeeping, a whole
    cache each. The one that is needed, into the caller's tensor, the engine adds by itself where
    the graph did not write there already.
    """
    from executorch.exir.dialects._ops import ops

    for node in list(program.graph.nodes):
        if node.op != "call_function" or node.target is not ops.edge.aten.copy.default:
            continue
        over, new = node.args[:2]
        same = over.meta["val"].dtype == new.meta["val"].dtype
        if same and over.meta["val"].shape == new.meta["val"].shape:
            node.replace_all_uses_with(new)
            program.graph.erase_node(node)
    names = [node.name for node in program.graph.output_node().args[0]]
    for spec, name in zip(program.graph_signature.output_specs, names, strict=True):
        spec.arg = torch.export.graph_signature.TensorArgument(name=name)
    program.graph_module.recompile()
