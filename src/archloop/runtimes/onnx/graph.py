"""A decoder's state graph as an ONNX file, for the engines that read one.

Two axes are free: the tokens of a call, and the slots of caches. Each engine fixes the second when
it opens the artifact.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from archloop.runtimes.graphs import TRACED_SLOTS, StateGraph
from archloop.runtimes.onnx import parts as onnx_parts
from archloop.stack import cost
from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.onnx import ONNXProgram

    from archloop.runtimes.pieces import PartName
    from archloop.stack.decoder import Decoder

MODEL, STATE = "model.onnx", "state.json"
FREE = frozenset({"gqa", "mla", "short_conv"})
"""Mixers whose passes trace with any number of tokens; the others are parts (`onnx.parts`)."""
_TRACED_TOKENS = 16
_MOST_SLOTS, _MOST_TOKENS = 2**24, 2**20
"""Bounds that tracing asks for. It takes a size of 1 for a constant, so no bound is below 2; the
graph runs with one token all the same, which the comparison of every export shows."""


class StateTensor(NamedTuple):
    """One tensor of the state, as an engine allocates it.

    Attributes:
        name: of the input.
        next_name: of the output.
        shape: with any number where the slots stand.
        dtype: NumPy's name.
        slots: axis of the slots; None where there is none.
        in_place: the output is the input but for some numbers, and nothing else reads the input:
            an engine may give both the same memory.
        grows: the input has a slot for each token that is held, and the output those of the new
            tokens behind them.
    """

    name: str
    next_name: str
    shape: tuple[int, ...]
    dtype: str
    slots: int | None
    in_place: bool = False
    grows: bool = False

    def sized(self, max_context: int) -> tuple[int, ...]:
        """Shape with room for so many tokens."""
        return tuple(max_context if i == self.slots else size for i, size in enumerate(self.shape))


class Dialect(NamedTuple):
    """What an engine reads besides ONNX's own operators, and which of these it computes badly.

    Attributes:
        attends: it has ONNX Runtime's operator for attention over a cache; else that is left for
            the engine's reader (`onnx.attention`).
        head_multiple: of head widths that its operator for attention takes.
        writes_out_softplus: by other operators, since its own is not accurate.
    """

    attends: bool
    head_multiple: int = 1
    writes_out_softplus: bool = False


def unsupported(spec: StackSpec) -> str | None:
    """Why a stack has no such graph, or None."""
    for index, block in enumerate(spec.blocks):
        for mixer in block.mixers:
            if mixer.name in FREE:
                continue
            if mixer.state_from is not None:
                return f"block {index} reads the features of another block's {mixer.name}"
            # What is no part of the traced graph is traced with a state of one size.
            if cost.keeps_more_than(spec, mixer, TRACED_SLOTS):
                return f"block {index}: {mixer.name} keeps more than {TRACED_SLOTS:,} tokens"
    return None


def write(
    decoder: "Decoder", directory: Path, dialect: Dialect, part: "PartName | None" = None
) -> None:
    """Write `model.onnx`, its weights beside it, and `state.json`, in float32.

    Args:
        decoder: cast to float32, and its mixers to what the engine has operators for.
        directory: to write into.
        dialect: the engine's.
        part: as in `StateGraph`.
    """
    from archloop.runtimes.onnx import attention as onnx_attention
    from archloop.runtimes.onnx import filling as onnx_filling
    from archloop.runtimes.onnx import softplus as onnx_softplus

    onnx_attention.fuse(decoder, dialect.head_multiple)
    graph = StateGraph(decoder.float(), part)
    parts = _parts(graph)
    made = _traced(graph, parts)
    model = made.model
    onnx_filling.fill_in(model, parts, attends=dialect.attends)
    if dialect.writes_out_softplus:
        onnx_softplus.write_out(model.graph)
    made.save(str(directory / MODEL), external_data=True)
    write_state(
        directory,
        [
            StateTensor(
                held.name,
                held.next_name,
                held.shape,
                str(held.dtype).removeprefix("torch."),
                held.slots,
                *_goes_on(model, held.name, held.next_name),
            )
            for held in graph.held
        ],
    )


def _traced(graph: StateGraph, parts: dict[str, onnx_parts.Placed]) -> "ONNXProgram":
    """The graph with placeholders for parts, and any number of tokens and slots."""
    import torch
    from torch.export import Dim

    given_BT = torch.zeros(1, _TRACED_TOKENS, dtype=torch.int64)
    if not graph.embeds:
        given_BT = torch.zeros(1, _TRACED_TOKENS, graph.decoder.spec.d_model)
    length_B = torch.zeros(1, dtype=torch.int64)
    slots = Dim("slots", min=3, max=_MOST_SLOTS)
    shapes: dict[str, Any] = {
        "given": {1: Dim("tokens", min=2, max=_MOST_TOKENS)},
        "length_B": None,
        "tensors": [None if held.slots is None else {held.slots: slots} for held in graph.held],
    }
    inputs, outputs = graph.names
    with torch.no_grad():
        with onnx_parts.placeholders(graph.decoder, parts):
            program = torch.export.export(
                graph, (given_BT, length_B, graph.empty), dynamic_shapes=shapes, strict=False
            )
        made = torch.onnx.export(
            program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False
        )
    assert made is not None
    return made


def _goes_on(model: "ir.Model", name: str, next_name: str) -> tuple[bool, bool]:
    """Whether what comes of an input may lie in its place, and whether it grows.

    In its place: it is read to be written into alone, and what comes of that is the output.
    """
    from archloop.runtimes.onnx.attention import CACHED

    (value,) = (each for each in model.graph.inputs if each.name == name)
    # Its shape is the same before and after.
    readers = [use.node for use in value.uses() if use.node.op_type != "Shape"]
    if len(readers) != 1 or next_name not in [made.name for made in readers[0].outputs]:
        return False, False
    op_type = readers[0].op_type
    return op_type in ("ScatterElements", "GroupQueryAttention"), op_type == CACHED


def write_state(directory: Path, held: Sequence[StateTensor]) -> None:
    """Write `state.json`."""
    (directory / STATE).write_text(json.dumps([each._asdict() for each in held], indent=1))


def _parts(graph: StateGraph) -> dict[str, onnx_parts.Placed]:
    """The mixers that are traced on their own, by a name of each."""
    return {
        f"mixer_{index}_{slot}": onnx_parts.Placed(graph.decoder.mixer(index, slot), state)
        for (index, slot), state in graph.states.items()
        if graph.decoder.mixer(index, slot).name not in FREE
    }


def read_state(directory: Path) -> list[StateTensor]:
    """The state's tensors, in the order of the graph's inputs."""
    described = json.loads((directory / STATE).read_bytes())
    return [StateTensor(**{**each, "shape": tuple(each["shape"])}) for each in described]


def replace(model: Path, by: Path) -> None:
    """Put another model with weights beside it in a model's place, under the model's names."""
    import onnx

    content = onnx.load(str(by))
    remove(model)
    remove(by)
    location = f"{model.name}.data"
    onnx.save(content, str(model), save_as_external_data=True, location=location)


def remove(model: Path) -> None:
    """Delete a model and the weights beside it."""
    for file in model.parent.glob(f"{model.name}*"):
        file.unlink()


def weight_bytes(model: Path) -> dict[str, int]:
    """Bytes of a file's weights by precision."""
    import onnx

    names = {
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.INT8: "int8",
        onnx.TensorProto.UINT8: "uint8",
    }
    sizes: dict[str, int] = {}
    for tensor in onnx.load(str(model), load_external_data=False).graph.initializer:
        # 64-bit integers in a graph are shapes and positions; only the types in `names` are
        # weights.
        if tensor.data_type in names:
            name = names[tensor.data_type]
            width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            sizes[name] = sizes.get(name, 0) + math.prod(tensor.dims) * width
    return sizes
