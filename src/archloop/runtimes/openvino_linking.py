"""Compressed pieces put together as one OpenVINO model: what nncf wrote of each stays as it is.

As `onnx.linking` does with ONNX graphs: nodes of one piece after those of another, the stream from
each to the next, one length, all tensors of the state, and one copy of weights where pieces share.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from archloop.runtimes import openvino_weights
from archloop.runtimes.graphs import IDS, LENGTH, LOGITS, STREAM, STREAM_NEXT, TOKEN
from archloop.runtimes.onnx import graph as onnx_graph
from archloop.runtimes.onnx.linking import copy_of, state_of
from archloop.runtimes.pieces import Lowered

_ALIGNED = 64
"""Bytes at whose multiples the library places numbers."""


def link(pieces: Sequence[Lowered], directory: Path) -> Path:
    """Write `model.xml`, its weights and `state.json` of a stack, given its pieces in order.

    Returns:
        the model's place.
    """
    import openvino

    linker, held = _Linker(), []
    copies = [copy_of(placed) for placed, _, _ in pieces]
    for index, (placed, home, _) in enumerate(pieces):
        names, tensors = state_of(placed, home)
        model = openvino_weights.read(home / openvino_weights.MODEL)
        linker.add(model, names, f"p{index}.", copies[index])
        held += tensors
    file = directory / openvino_weights.MODEL
    openvino.save_model(linker.model(), str(file), compress_to_fp16=False)
    _separate(file, copies)
    onnx_graph.write_state(directory, held)
    return file


def _separate(file: Path, copies: Sequence[str]) -> None:
    """Give every copy of weights a place of its own in a saved model.

    The library writes equal numbers once, and copies of a piece are equal until they are trained:
    the engine would map a stack of eight equal blocks from the bytes of one.

    Args:
        file: whose nodes are named by their pieces' numbers.
        copies: which copy each piece reads.
    """
    tree = ElementTree.parse(file)
    layers = tree.getroot().find("layers")
    assert layers is not None, "a saved model has nodes"
    owner: dict[int, str] = {}
    own: dict[tuple[str, int], int] = {}
    with file.with_suffix(".bin").open("r+b") as weights:
        for layer in layers:
            for data in layer.iter("data"):
                if "offset" not in data.attrib:
                    continue
                number = layer.get("name", "").split(".")[0].removeprefix("p")
                copy, place = copies[int(number)], int(data.attrib["offset"])
                if owner.setdefault(place, copy) != copy and (copy, place) not in own:
                    weights.seek(place)
                    numbers = weights.read(int(data.attrib["size"]))
                    end = weights.seek(0, 2)
                    own[copy, place] = end + -end % _ALIGNED
                    weights.write(bytes(-end % _ALIGNED) + numbers)
                data.set("offset", str(own.get((copy, place), place)))
    tree.write(file, encoding="utf-8", xml_declaration=True)


class _Linker:
    """A model that pieces are added to."""

    def __init__(self) -> None:
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._kept: dict[tuple[object, ...], Any] = {}

    def add(self, piece: Any, state: dict[str, str], prefix: str, copy: str) -> None:
        """Run a piece after those that are there.

        Args:
            piece: taken apart.
            state: names of its state's tensors in the stack, by name.
            prefix: of its other names.
            copy: which copy of weights it has.
        """
        given = {parameter.output(0).any_name: parameter for parameter in piece.get_parameters()}
        made = {result.output(0).any_name: result for result in piece.get_results()}
        for node in piece.get_ops():
            node.set_friendly_name(f"{prefix}{node.get_friendly_name()}")
            if openvino_weights.is_weight(node):
                self._keep(node, copy)
            for output in node.outputs():
                output.get_tensor().set_names(set())
        for name, parameter in given.items():
            if name == STREAM:
                _replace(parameter, self._outputs.pop(STREAM_NEXT).input_value(0))
                continue
            whole = state.get(name, name)
            kept = self._inputs.setdefault(whole, parameter)
            if kept is parameter:
                _name(parameter, parameter.output(0), whole)
            else:
                _replace(parameter, kept.output(0))
        for name, result in made.items():
            whole = state.get(name, name)
            self._outputs[whole] = result
            if name != STREAM_NEXT:
                _name(result, result.input_value(0), whole)

    def model(self) -> Any:
        """The stack's."""
        import openvino

        first, last = (IDS, LENGTH), (TOKEN, LOGITS)
        return openvino.Model(
            [*(self._outputs.pop(name) for name in last), *self._outputs.values()],
            [*(self._inputs.pop(name) for name in first), *self._inputs.values()],
            "stack",
        )

    def _keep(self, constant: Any, copy: str) -> None:
        """Read the constant of another piece with the same copy of weights, where there is one."""
        digest = hashlib.sha256(constant.get_data().tobytes()).digest()
        element = constant.get_element_type().get_type_name()
        key = (copy, element, tuple(constant.get_output_shape(0)), digest)
        kept = self._kept.setdefault(key, constant)
        if kept is not constant:
            _replace(constant, kept.output(0))


def _replace(node: Any, by: Any) -> None:
    """Let all that read a node read another output."""
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(by)


def _name(node: Any, output: Any, name: str) -> None:
    """Name a node and the tensor that it stands for."""
    node.set_friendly_name(name)
    output.get_tensor().set_names({name})
