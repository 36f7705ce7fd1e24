"""Compressed weights of an OpenVINO model: written by nncf, and read back as the engine reads them.

nncf finds constants that matrix products read and puts their integers in place, each with what
turns them back. Which constants of the graph are which parameters of a decoder is not written in
the file, so it is told by the numbers: a rounded matrix is far nearer to its own original than to
any other.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from archloop.runtimes.rounding import Product, Rounding, groups_to_int8, matrices

if TYPE_CHECKING:
    from archloop.runtimes.pieces import PartName
    from archloop.stack.decoder import Decoder

MODEL = "model.xml"
GROUP = 32
"""Numbers of a row that share a scale in int4."""
_NAMES = {
    "f32": "float32",
    "f16": "float16",
    "i8": "int8",
    "u8": "uint8",
    "i4": "int4",
    "u4": "uint4",
}
_FARTHEST = 0.5
"""Norm of a difference over that of the original; matrices that have nothing in common lie 1.4
apart, int4 rounds by a tenth."""
INPUTS: Rounding = groups_to_int8(32)
"""The CPU plug-in's own default (`DYNAMIC_QUANTIZATION_GROUP_SIZE`)."""


def write(onnx_model: Path, quant: str, part: "PartName | None" = None) -> Path:
    """Write OpenVINO's own model beside an ONNX file; returns its place.

    Args:
        onnx_model: in float32.
        quant: fp32, int8 or int4.
        part: of a stack that the model is alone; None: it is a whole stack.
    """
    import openvino

    from archloop.runtimes import openvino_attention

    # Read from an ONNX file, a model holds nodes that nothing reads, and nncf stumbles over those
    # of loops; read from its own file it does not.
    written = onnx_model.with_name(MODEL)
    model = openvino_attention.read(onnx_model)
    openvino.save_model(model, str(written), compress_to_fp16=False)
    if quant != "fp32":
        _compress(written, quant, part)
    return written


def _compress(file: Path, quant: str, part: "PartName | None") -> None:
    """Round a model's matrices, in its file."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    settings: dict[str, Any] = {"mode": nncf.CompressWeightsMode.INT8_SYM}
    if quant == "int4":
        # Rows that are no whole groups (a gate's 16 inputs) stay as they are.
        ignore = nncf.GroupSizeFallbackMode.IGNORE
        settings = {
            "mode": nncf.CompressWeightsMode.INT4_SYM,
            "group_size": GROUP,
            "ratio": 1.0,
            # The last product of a model keeps 8 bits, which is meant for heads: that of a half of
            # a block has 4 bits, as it has inside its stack.
            "all_layers": part in ("mixers", "channel"),
            "advanced_parameters": nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=ignore
            ),
        }
    model = read(file)
    # It draws a progress bar on standard output, which is the command's own.
    with redirect_stdout(StringIO()):
        model = nncf.compress_weights(model, **settings)
    _compress_bodies(model)
    whole = file.with_name("compressed.xml")
    openvino.save_model(model, str(whole), compress_to_fp16=False)
    del model
    for suffix in (".xml", ".bin"):
        whole.with_suffix(suffix).replace(file.with_suffix(suffix))


def _compress_bodies(model: Any) -> None:
    """Have products in bodies of loops read what the compressor wrote for those outside.

    nncf leaves bodies as they are. A mixer in parts multiplies by the same matrices in its step,
    which stands outside, and in its pass, the body: left alone, the pass would compute with float32
    and the artifact hold those weights twice.
    """
    import openvino

    nodes = model.get_ordered_ops()
    products = [node for node in nodes if node.get_type_name() == "MatMul"]
    sources = [node.input_value(1).get_node() for node in products]
    outside = [
        (source, values)
        for source, values in zip(sources, _values(sources), strict=True)
        if values is not None
    ]
    bodies = [body for node in nodes if (body := _body(node)) is not None]
    for node in (node for body in bodies for node in _nodes(body)):
        source = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if source is None or source.get_type_name() != "Constant":
            continue
        exact = torch.from_numpy(np.array(source.get_data(), np.float32))
        alike = [(_far(values, exact), at) for at, (_, values) in enumerate(outside)]
        far, nearest = min(alike, default=(1.0, 0))
        if far < _FARTHEST:
            copy = openvino.Model([outside[nearest][0].output(0)], []).clone()
            node.input(1).replace_source_output(copy.get_results()[0].input_value(0))


def weight_bytes(file: Path) -> dict[str, int]:
    """Bytes of a file's weights by precision, each counted once, however many nodes read it."""
    sizes: dict[str, int] = {}
    found = {
        data.attrib["offset"]: data.attrib
        for data in ElementTree.parse(file).iter("data")
        if "offset" in data.attrib and data.attrib["element_type"] in _NAMES
    }
    for constant in found.values():
        dtype = _NAMES[constant["element_type"]]
        sizes[dtype] = sizes.get(dtype, 0) + int(constant["size"])
    return sizes


def is_weight(node: Any) -> bool:
    """Whether a node is a constant that counts as weights: not a shape or a position."""
    return node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in _NAMES


def products(decoder: "Decoder", file: Path) -> dict[str, Product]:
    """Every matrix of a decoder that a file holds rounded."""
    own = matrices(decoder)
    # Copies of a piece hold the same numbers: once found, they are found for all.
    rounded = [
        (turned, looked_up)
        for values, looked_up in dict.fromkeys(_rounded(read(file)))
        for turned in (values, values.T)
    ]
    found: dict[str, Product] = {}
    places = _nearest([values for values, _ in rounded], own)
    for (values, looked_up), at in zip(rounded, places, strict=True):
        for name, first in at:
            before = found.get(name, Product(own[name]))
            weight = before.weight.clone()
            weight[first : first + len(values)] = values
            found[name] = Product(
                weight, before.inputs if looked_up else INPUTS, looked_up or before.in_lookups
            )
    return found


def _nearest(rounded: Sequence[Tensor], own: dict[str, Tensor]) -> list[list[tuple[str, int]]]:
    """For each, the matrix whose rows it is, rounded, and the first of them; equal ones are all.

    Mixers that multiply by parts of one matrix (queries, keys, values) leave constants of its rows.
    """
    far: list[dict[tuple[str, int], float]] = [{} for _ in rounded]
    longest = [int(values.square().sum(1).argmax()) for values in rounded]
    for name, weight in own.items():
        fitting = [
            index
            for index, values in enumerate(rounded)
            if values.shape[1] == weight.shape[1] and len(values) <= len(weight)
        ]
        if not fitting:
            continue
        # Where no row is near to the longest one of a matrix, its rows are not here. That tells
        # most matrices, and one product says it of all.
        rows = torch.stack([rounded[index][longest[index]] for index in fitting])
        square = weight.square().sum(1, keepdim=True)
        near = square - 2 * (weight @ rows.T) + rows.square().sum(1) < _FARTHEST**2 * square
        for index, is_near in zip(fitting, near.T, strict=True):
            values, at = rounded[index], longest[index]
            end = at + len(weight) - len(values) + 1
            if is_near[at:end].any():
                first = int((weight[at:end] - values[at]).norm(dim=1).argmin())
                part = weight[first : first + len(values)]
                far[index][name, first] = _far(values.contiguous(), part)
    least = [min(found.values(), default=math.inf) for found in far]
    return [
        [place for place, distance in found.items() if distance == nearest < _FARTHEST]
        for found, nearest in zip(far, least, strict=True)
    ]


def _far(values: Tensor, original: Tensor) -> float:
    """Norm of the difference over that of the original; infinite between unlike shapes."""
    if values.shape != original.shape:
        return math.inf
    return float((values - original).norm() / original.norm())


def _rounded(model: Any) -> Iterator[tuple[Tensor, bool]]:
    """Matrices that products or lookups read from integers, and whether it is a lookup."""
    read_by = [
        (node.input_value(0 if op_type == "Gather" else 1).get_node(), op_type == "Gather")
        for node in _nodes(model)
        if (op_type := node.get_type_name()) in ("MatMul", "Gather")
    ]
    made = _values([source for source, _ in read_by])
    for (_, looked_up), values in zip(read_by, made, strict=True):
        if values is not None:
            yield values, looked_up


def _values(sources: Sequence[Any]) -> list[Tensor | None]:
    """The matrices that nodes make of integers, one tensor where several make the same.

    None of a node that makes no matrix, or makes it of no integers. The engine computes them all in
    one go, since compiling takes it longer than multiplying.
    """
    import openvino

    keys = [_digest(source) if _comes_from_integers(source) else None for source in sources]
    distinct = {key: source for key, source in zip(keys, sources, strict=True) if key is not None}
    if not distinct:
        return [None] * len(sources)
    alone = openvino.Model([source.output(0) for source in distinct.values()], [])
    made = openvino.Core().compile_model(alone, "CPU")([])
    known: dict[bytes | None, Tensor | None] = {None: None}
    for index, key in enumerate(distinct):
        is_matrix = made[index].ndim == 2
        known[key] = torch.from_numpy(np.array(made[index], np.float32)) if is_matrix else None
    return [known[key] for key in keys]


def _digest(source: Any) -> bytes:
    """Of all that a node makes its numbers of."""
    digest, left = hashlib.sha256(), [source]
    while left:
        node = left.pop()
        kind = f"{node.get_type_name()} {node.get_element_type()} {node.get_output_shape(0)}"
        digest.update(kind.encode())
        if node.get_type_name() == "Constant":
            digest.update(node.get_data().tobytes())
        left += [value.get_node() for value in node.input_values()]
    return digest.digest()


def _comes_from_integers(node: Any) -> bool:
    """Whether a node is integers of few bits that operations turn into numbers."""
    below = [value.get_node() for value in node.input_values()]
    if node.get_type_name() == "Constant":
        return node.get_element_type().get_type_name() in ("i8", "u8", "i4", "u4")
    constant = {"Constant", "Convert", "Multiply", "Subtract", "Reshape", "Transpose"}
    if node.get_type_name() not in constant or not below:
        return False
    return _comes_from_integers(below[0])


def _nodes(model: Any) -> Iterator[Any]:
    """Every node, those of bodies too."""
    for node in model.get_ordered_ops():
        if (body := _body(node)) is not None:
            yield from _nodes(body)
        yield node


def _body(node: Any) -> Any | None:
    """What a loop repeats; None of other nodes."""
    # Asked of the type: a node that lacks an attribute takes long to say so.
    return node.get_function() if hasattr(type(node), "get_function") else None


def read(file: Path) -> Any:
    """A file's model."""
    import openvino

    return openvino.Core().read_model(str(file))
