"""Compressed weights of an OpenVINO model: written by nncf, and read back as the engine reads them.

nncf finds constants that matrix products read and puts their integers in place, each with what
turns them back. Which constants of the graph are which parameters of a decoder is not written in
the file, so it is told by the numbers: a rounded matrix is far nearer to its own original than to
any other.
"""

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from archloop.runtimes.rounding import Product, Rounding, groups_to_int8, matrices

if TYPE_CHECKING:
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
_INPUTS: Rounding = groups_to_int8(32)
"""The CPU plug-in's own default (`DYNAMIC_QUANTIZATION_GROUP_SIZE`)."""


def write(onnx_model: Path, quant: str) -> Path:
    """Write a compressed model beside an ONNX file; returns its place."""
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
            "advanced_parameters": nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=ignore
            ),
        }
    compressed = onnx_model.with_name(MODEL)
    # Read from an ONNX file, a model holds nodes that nothing reads, and nncf stumbles over those
    # of loops; read from its own file it does not.
    openvino.save_model(_read(onnx_model), str(compressed), compress_to_fp16=False)
    model = _read(compressed)
    # It draws a progress bar on standard output, which is the command's own.
    with redirect_stdout(StringIO()):
        model = nncf.compress_weights(model, **settings)
    _compress_bodies(model)
    whole = compressed.with_name("compressed.xml")
    openvino.save_model(model, str(whole), compress_to_fp16=False)
    del model
    for suffix in (".xml", ".bin"):
        whole.with_suffix(suffix).replace(compressed.with_suffix(suffix))
    return compressed


def _compress_bodies(model: Any) -> None:
    """Have products in bodies of loops read what the compressor wrote for those outside.

    nncf leaves bodies as they are. A mixer in parts multiplies by the same matrices in its step,
    which stands outside, and in its pass, the body: left alone, the pass would compute with float32
    and the artifact hold those weights twice.
    """
    import openvino

    nodes, values_of = model.get_ordered_ops(), _Values()
    outside = [
        (source, values)
        for node in nodes
        if node.get_type_name() == "MatMul"
        and (values := values_of(source := node.input_value(1).get_node())) is not None
    ]
    bodies = [node.get_function() for node in nodes if hasattr(node, "get_function")]
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
    """Bytes of a file's weights by precision."""
    sizes: dict[str, int] = {}
    for node in _nodes(_read(file)):
        if node.get_type_name() == "Constant":
            dtype = _NAMES.get(node.get_element_type().get_type_name())
            if dtype is not None:
                sizes[dtype] = sizes.get(dtype, 0) + int(node.get_byte_size())
    return sizes


def products(decoder: "Decoder", file: Path) -> dict[str, Product]:
    """Every matrix of a decoder that a file holds rounded."""
    own = matrices(decoder)
    found: dict[str, Product] = {}
    # Copies of a piece hold the same numbers: once found, they are found for all.
    for values, looked_up in dict.fromkeys(_rounded(_read(file))):
        for turned in (values, values.T):
            for name, first in _nearest(turned, own):
                before = found.get(name, Product(own[name]))
                weight = before.weight.clone()
                weight[first : first + len(turned)] = turned
                found[name] = Product(
                    weight,
                    before.inputs if looked_up else _INPUTS,
                    looked_up or before.in_lookups,
                )
    return found


def _nearest(values: Tensor, own: dict[str, Tensor]) -> list[tuple[str, int]]:
    """The matrix whose rows these are, rounded, and the first of them; equal matrices are several.

    Mixers that multiply by parts of one matrix (queries, keys, values) leave constants of its rows.
    """
    found: dict[tuple[str, int], float] = {}
    for name, weight in own.items():
        if weight.shape[1] == values.shape[1] and len(weight) >= len(values):
            first = 0
            if len(weight) > len(values):
                first = int((weight - values[0]).norm(dim=1).argmin())
            found[name, first] = _far(values, weight[first : first + len(values)])
    least = min(found.values(), default=math.inf)
    return [place for place, far in found.items() if far == least < _FARTHEST]


def _far(values: Tensor, original: Tensor) -> float:
    """Norm of the difference over that of the original; infinite between unlike shapes."""
    if values.shape != original.shape:
        return math.inf
    return float((values - original).norm() / original.norm())


def _rounded(model: Any) -> Iterator[tuple[Tensor, bool]]:
    """Matrices that products or lookups read from integers, and whether it is a lookup."""
    values_of = _Values()
    for node in _nodes(model):
        op_type = node.get_type_name()
        if op_type in ("MatMul", "Gather"):
            source = node.input_value(0 if op_type == "Gather" else 1).get_node()
            if (values := values_of(source)) is not None:
                yield values, op_type == "Gather"


class _Values:
    """The matrix that a node makes of integers, computed once where several make it of the same."""

    def __init__(self) -> None:
        self._known: dict[bytes, Tensor | None] = {}

    def __call__(self, source: Any) -> Tensor | None:
        """None of a node that makes no matrix, or makes it of no integers."""
        import openvino

        if not _comes_from_integers(source):
            return None
        alone = openvino.Model([source.output(0)], [])
        digest = hashlib.sha256()
        for node in alone.get_ordered_ops():
            digest.update(f"{node.get_type_name()} {node.get_output_shape(0)}".encode())
            if node.get_type_name() == "Constant":
                digest.update(node.get_data().tobytes())
        key = digest.digest()
        if key not in self._known:
            values = openvino.Core().compile_model(alone, "CPU")([])[0]
            is_matrix = values.ndim == 2
            numbers = torch.from_numpy(np.array(values, np.float32)) if is_matrix else None
            self._known[key] = numbers
        return self._known[key]


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
        if hasattr(node, "get_function"):
            yield from _nodes(node.get_function())
        yield node


def _read(file: Path) -> Any:
    import openvino

    return openvino.Core().read_model(str(file))
