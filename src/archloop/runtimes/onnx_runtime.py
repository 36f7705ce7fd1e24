"""ONNX Runtime on a CPU: the state's tensors are bound once and change places at every call.

An engine whose graphs have no state of their own needs its caches as inputs and outputs. Two sets
are bound, one read and the other written, in turns: nothing is allocated or copied by us.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Ids, Logits, Runtime, Session
from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    from archloop.runtimes.onnx.graph import StateTensor
    from archloop.runtimes.pieces import Lowered, PartName
    from archloop.runtimes.rounding import Products
    from archloop.stack.decoder import Decoder

PREFILL_PASS = 512
"""Tokens per call in prefill: bounds the memory of activations."""
_HEADS = 8
"""Of which the width of heads is a multiple where its attention takes them."""
_GROUP = 32
"""Numbers of a row that share a scale in int4."""


class OnnxRuntime(Runtime):
    """ONNX Runtime; the artifact is an ONNX file with weights beside it."""

    quants = ("fp32", "int8", "int4")
    lowers_pieces = True
    writers = ("onnx", "onnx_ir", "onnxscript", "torch")
    rounds_by_artifact = False
    parity_tolerance: ClassVar[Mapping[str, float]] = dict.fromkeys(quants, 1e-4)

    def version(self) -> str:
        return metadata.version("onnxruntime")

    def missing_to_export(self) -> str | None:
        if all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
            return None
        return "needs ONNX Runtime and ONNX's exporter; pip install 'archloop[onnx]'"

    def missing_to_run(self) -> str | None:
        if find_spec("onnxruntime"):
            return None
        return "needs ONNX Runtime; pip install 'archloop[onnx]'"

    def unsupported(self, spec: StackSpec) -> str | None:
        from archloop.runtimes.onnx import graph as onnx_graph

        return onnx_graph.unsupported(spec)

    def write(self, decoder: "Decoder", directory: Path, quant: str) -> dict[str, int]:
        return _write(decoder, None, directory, quant)

    def lower(
        self, decoder: "Decoder", part: "PartName", directory: Path, quant: str
    ) -> dict[str, int]:
        return _write(decoder, part, directory, quant)

    def join(self, pieces: Sequence["Lowered"], directory: Path, quant: str) -> dict[str, int]:
        from archloop.runtimes.onnx import graph as onnx_graph
        from archloop.runtimes.onnx import linking as onnx_linking

        del quant
        return onnx_graph.weight_bytes(onnx_linking.link(pieces, directory))

    def products(self, decoder: "Decoder", directory: Path, quant: str) -> "Products":
        from archloop.runtimes import rounding

        del directory
        if quant == "fp32":
            return {}
        by_call: rounding.Rounding = rounding.tensor_to_uint8
        experts = {
            name: rounding.Product(rounding.rows_to_int8(weight), by_call)
            for name, weight in rounding.experts(decoder).items()
        }
        matrices = rounding.matrices(decoder)
        if quant == "int8":
            return experts | {
                name: rounding.Product(rounding.rows_to_int8(weight), by_call)
                for name, weight in matrices.items()
            }
        by_group = rounding.groups_to_int8(_GROUP)
        return experts | {
            name: rounding.Product(rounding.groups_to_int4(weight, _GROUP), by_group)
            for name, weight in matrices.items()
        }

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        return _OnnxSession(directory, manifest.spec.vocab_size, threads, max_context)

    def start(self, threads: int) -> None:
        import onnxruntime

        del threads  # A session's own.
        onnxruntime.set_default_logger_severity(3)


def _write(
    decoder: "Decoder", part: "PartName | None", directory: Path, quant: str
) -> dict[str, int]:
    """The files of a decoder, or of a piece; returns weight bytes by precision."""
    import copy

    from archloop.runtimes.onnx import experts as onnx_experts
    from archloop.runtimes.onnx import graph as onnx_graph

    dialect = onnx_graph.Dialect(attends=True, head_multiple=_HEADS)
    onnx_graph.write(copy.deepcopy(decoder), directory, dialect, part)
    model = directory / onnx_graph.MODEL
    if quant != "fp32":
        # In int4 too: the engine's product with four bits wants a constant.
        onnx_experts.to_int8(model)
        onnx_graph.replace(model, {"int8": _to_int8, "int4": _to_int4}[quant](model))
    return onnx_graph.weight_bytes(model)


class _OnnxSession(Session):
    """A model and two sets of its state, which share what is written in place."""

    def __init__(self, directory: Path, vocab_size: int, threads: int, max_context: int) -> None:
        import onnxruntime

        from archloop.runtimes import graphs
        from archloop.runtimes.onnx import graph as onnx_graph

        self.max_context, self.vocab_size, self.num_tokens = max_context, vocab_size, 0
        self._names = graphs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        self._engine = onnxruntime.InferenceSession(
            str(directory / onnx_graph.MODEL), options, providers=["CPUExecutionProvider"]
        )
        self._ort = onnxruntime.OrtValue.ortvalue_from_numpy
        self._held = onnx_graph.read_state(directory)
        self._sets: list[dict[str, tuple[Any, Any]]] = [{}, {}]
        for held in self._held:
            first = self._zeros(held)
            second = first if held.in_place else self._zeros(held)
            self._sets[0][held.name], self._sets[1][held.name] = first, second
        self._length = self._ort(np.zeros(1, np.int64))
        self._one = self._ort(np.zeros((1, 1), np.int64))
        self._token = self._ort(np.zeros(1, np.int64))
        self._logits = self._ort(np.full((1, vocab_size), np.nan, np.float32))
        self._steps = [self._bound(self._one, now) for now in (0, 1)]
        self._now = 0
        self._filled_with: int | None = None

    def prefill(self, ids: Ids) -> int:
        self.check_room(self.num_tokens, len(ids))
        for start in range(0, len(ids), PREFILL_PASS):
            part = ids[None, start : start + PREFILL_PASS]
            self._run(self._bound(self._ort(part), self._now), part.shape[1])
        return int(self._token.numpy()[0])

    def decode_step(self, token: int) -> int:
        self.check_known(token)
        self.check_room(self.num_tokens, 1)
        self._one.update_inplace(np.array([[token]], np.int64))
        self._run(self._steps[self._now], 1)
        return int(self._token.numpy()[0])

    def logits(self) -> Logits:
        logits_V: Logits = self._logits.numpy()[0]
        return logits_V

    def reset(self) -> None:
        self._filled_with = None
        self._set_length(0)
        for _, array in self._sets[self._now].values():
            array.fill(0)

    def fill(self, num_tokens: int, seed: int) -> None:
        self._set_length(0)
        self.check_room(self.num_tokens, num_tokens)
        rng = np.random.default_rng(seed)
        # Most of a state exists twice, since the engine reads one set and writes the other. After
        # the first filling only the set that the next step reads is written anew.
        sets = self._sets if self._filled_with is None else self._sets[self._now : self._now + 1]
        for values in sets:
            for _, array in values.values():
                rng.standard_normal(dtype=array.dtype, out=array)
        self._filled_with = seed
        self._set_length(num_tokens)

    @property
    def state_bytes(self) -> int:
        """Of one set: the other is this engine's way of going on, and counts in its peak."""
        return sum(
            int(np.prod(held.sized(self.max_context))) * np.dtype(held.dtype).itemsize
            for held in self._held
        )

    @property
    def prefill_pass(self) -> int:
        return min(PREFILL_PASS, self.max_context)

    def close(self) -> None:
        self._steps, self._sets = [], []
        self._engine = None

    def _zeros(self, held: "StateTensor") -> tuple[Any, Any]:
        """A tensor of the state as the engine has it, and the array whose memory that is.

        What is written goes into the array: a copy beside it would count in a peak of memory.
        """
        array = np.zeros(held.sized(self.max_context), held.dtype)
        return self._ort(array), array

    def _bound(self, ids: Any, now: int) -> Any:
        """A call's inputs and outputs, the state read from one set and written to the other."""
        binding = self._engine.io_binding()
        binding.bind_ortvalue_input(self._names.IDS, ids)
        binding.bind_ortvalue_input(self._names.LENGTH, self._length)
        binding.bind_ortvalue_output(self._names.TOKEN, self._token)
        binding.bind_ortvalue_output(self._names.LOGITS, self._logits)
        for held in self._held:
            binding.bind_ortvalue_input(held.name, self._sets[now][held.name][0])
            binding.bind_ortvalue_output(held.next_name, self._sets[1 - now][held.name][0])
        return binding

    def _run(self, binding: Any, num_new: int) -> None:
        self._engine.run_with_iobinding(binding)
        self._now = 1 - self._now
        self._set_length(self.num_tokens + num_new)

    def _set_length(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._length.update_inplace(np.array([num_tokens], np.int64))


def _to_int8(model: Path) -> Path:
    """A file of matrices in int8 by output channel, activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rounded = model.with_name("int8.onnx")
    quantize_dynamic(
        str(model),
        str(rounded),
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=_not_by_a_matrix(model),
        # In one file an ONNX model is at most 2 GiB.
        use_external_data_format=True,
        # Bodies of loops: the passes of most mixers.
        extra_options={"EnableSubgraph": True},
    )
    return rounded


def _not_by_a_matrix(model: Path) -> list[str]:
    """Products with constants that are no matrix on the right: by channel, the engine refuses them.

    They are steps of a scan or stacks of small matrices, not weights of a layer.
    """
    import onnx

    graph = onnx.load(str(model), load_external_data=False).graph
    ranks = {each.name: len(each.dims) for each in graph.initializer}

    def found(graph: Any) -> Iterator[str]:
        for node in graph.node:
            for attribute in node.attribute:
                yield from found(attribute.g)
            left, right = (*node.input, "", "")[:2]
            if node.op_type == "MatMul" and (left in ranks or ranks.get(right, 2) != 2):
                yield node.name

    return list(found(graph))


def _to_int4(model: Path) -> Path:
    """A file of matrices in int4 by groups; products round the other factor to int8 by groups too.

    That is what ONNX Runtime's own tools choose for a CPU (`accuracy_level` 4).
    """
    import logging

    import onnx

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Its import sets up logging for the whole program.
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    root.handlers[:], root.level = handlers, level
    from onnxruntime.quantization.onnx_model import ONNXModel

    whole = ONNXModel(onnx.load(str(model)))
    # The head's product is written the other way, which this quantiser does not look for.
    whole.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        whole.model, block_size=_GROUP, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    rounded = model.with_name("int4.onnx")
    quantizer.model.save_model_to_file(str(rounded), use_external_data_format=True)
    return rounded
