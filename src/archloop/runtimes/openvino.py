"""OpenVINO on a CPU: the state graph's tensors become variables that the engine keeps.

Caches of attention grow (`openvino_attention`); all others keep the size that they are opened with.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Ids, Logits, Runtime, Session
from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    from archloop.runtimes.pieces import Lowered, PartName
    from archloop.runtimes.rounding import Products
    from archloop.stack.decoder import Decoder

PREFILL_PASS = 512
"""Tokens per call in prefill: bounds the memory of activations."""


class OpenVino(Runtime):
    """OpenVINO; the artifact is its own file (`model.xml`), compiled when it is opened."""

    quants = ("fp32", "int8", "int4")
    lowers_pieces = True
    writers = ("nncf", "onnx", "onnx_ir", "onnxscript", "torch")
    parity_tolerance: ClassVar[Mapping[str, float]] = dict.fromkeys(quants, 1e-4)

    def version(self) -> str:
        return metadata.version("openvino")

    def missing_to_export(self) -> str | None:
        if all(find_spec(name) for name in ("onnx", "onnxscript", "openvino", "nncf")):
            return None
        return "needs OpenVINO, nncf and ONNX's exporter; pip install 'archloop[openvino]'"

    def missing_to_run(self) -> str | None:
        if find_spec("openvino"):
            return None
        return "needs OpenVINO; pip install 'archloop[openvino]'"

    def unsupported(self, spec: StackSpec) -> str | None:
        from archloop.runtimes.onnx import graph as onnx_graph

        return onnx_graph.unsupported(spec)

    def write(self, decoder: "Decoder", directory: Path, quant: str) -> dict[str, int]:
        return _write(decoder, None, directory, quant)

    def lower(
        self, decoder: "Decoder", part: "PartName", directory: Path, quant: str
    ) -> dict[str, int]:
        weight_bytes = _write(decoder, part, directory, quant)
        if quant != "fp32":
            from archloop.runtimes import piece_products

            piece_products.keep(self.products(decoder, directory, quant), directory)
        return weight_bytes

    def join(self, pieces: Sequence["Lowered"], directory: Path, quant: str) -> dict[str, int]:
        from archloop.runtimes import openvino_linking, openvino_weights

        del quant
        return openvino_weights.weight_bytes(openvino_linking.link(pieces, directory))

    def products(self, decoder: "Decoder", directory: Path, quant: str) -> "Products":
        from archloop.runtimes import openvino_weights

        if quant == "fp32":
            return {}
        return openvino_weights.products(decoder, directory / openvino_weights.MODEL)

    def joined_products(
        self, pieces: Sequence["Lowered"], decoder: "Decoder", directory: Path, quant: str
    ) -> "Products":
        from archloop.runtimes import openvino_weights, piece_products

        del decoder, directory
        if quant == "fp32":
            return {}
        return piece_products.joined(pieces, openvino_weights.INPUTS)

    def command(self, directory: Path) -> str:
        from archloop.runtimes import openvino_weights
        from archloop.runtimes.onnx import graph as onnx_graph

        held = onnx_graph.read_state(directory)
        shapes = "".join(f",{each.name}[{','.join(map(str, each.sized(1024)))}]" for each in held)
        return (
            f"benchmark_app -m {directory / openvino_weights.MODEL} -d CPU -hint latency "
            f"-shape ids[1,1],length[1]{shapes}"
        )

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        return _OpenVinoSession(directory, manifest.spec.vocab_size, threads, max_context)

    def start(self, threads: int) -> None:
        import openvino

        del threads  # A compiled model's own.
        openvino.Core().get_versions("CPU")


def _write(
    decoder: "Decoder", part: "PartName | None", directory: Path, quant: str
) -> dict[str, int]:
    """The files of a decoder, or of a piece; returns weight bytes by precision."""
    import copy

    from archloop.runtimes import openvino_weights
    from archloop.runtimes.onnx import graph as onnx_graph

    dialect = onnx_graph.Dialect(attends=False, writes_out_softplus=True)
    onnx_graph.write(copy.deepcopy(decoder), directory, dialect, part)
    model = directory / onnx_graph.MODEL
    written = openvino_weights.write(model, quant, part)
    onnx_graph.remove(model)
    return openvino_weights.weight_bytes(written)


class _OpenVinoSession(Session):
    """A compiled model, whose request keeps the state."""

    def __init__(self, directory: Path, vocab_size: int, threads: int, max_context: int) -> None:
        import openvino

        from archloop.runtimes import graphs
        from archloop.runtimes.onnx import graph as onnx_graph

        self.max_context, self.vocab_size, self.num_tokens = max_context, vocab_size, 0
        self._held = onnx_graph.read_state(directory)
        self._tensor = openvino.Tensor
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            # By itself the engine rounds keys and values to eight bits.
            "KV_CACHE_PRECISION": "f32",
            "CPU_DENORMALS_OPTIMIZATION": True,
        }
        model = stateful(directory, max_context)
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._names = graphs
        self._ids, self._length = np.zeros((1, 1), np.int64), np.zeros(1, np.int64)
        self._filled_with: int | None = None

    def prefill(self, ids: Ids) -> int:
        self.check_room(self.num_tokens, len(ids))
        for start in range(0, len(ids), PREFILL_PASS):
            token = self._run(ids[None, start : start + PREFILL_PASS])
        return token

    def decode_step(self, token: int) -> int:
        self.check_known(token)
        self.check_room(self.num_tokens, 1)
        self._ids[0, 0] = token
        return self._run(self._ids)

    def logits(self) -> Logits:
        logits_V: Logits = self._request.get_tensor(self._names.LOGITS).data[0]
        return logits_V

    def reset(self) -> None:
        self.num_tokens, self._filled_with = 0, None
        self._request.reset_state()

    def fill(self, num_tokens: int, seed: int) -> None:
        self.num_tokens = 0
        self.check_room(self.num_tokens, num_tokens)
        rng = np.random.default_rng(seed)
        growing = {held.name: held for held in self._held if held.grows}
        # Caches of one shape are filled with the same numbers, since drawing them takes longest.
        drawn: dict[tuple[int, ...], Any] = {}
        for variable in self._request.query_state():
            if (held := growing.get(variable.name)) is not None:
                # It has grown since, so it is set anew.
                shape = held.sized(num_tokens)
                if shape not in drawn:
                    # Drawn where they lie: numbers beside them would count in a peak of memory.
                    drawn[shape] = self._tensor(np.dtype(np.float32), shape)
                    rng.standard_normal(dtype=np.float32, out=drawn[shape].data)
                variable.state = drawn[shape]
            elif self._filled_with != seed:
                numbers = rng.standard_normal(tuple(variable.state.shape), np.float32)
                variable.state = self._tensor(numbers.astype(variable.state.data.dtype))
        self._filled_with = seed
        self.num_tokens = num_tokens

    @property
    def state_bytes(self) -> int:
        return sum(
            int(np.prod(held.sized(self.max_context))) * np.dtype(held.dtype).itemsize
            for held in self._held
        )

    @property
    def prefill_pass(self) -> int:
        return min(PREFILL_PASS, self.max_context)

    def close(self) -> None:
        self._request = None

    def _run(self, ids_BT: Ids) -> int:
        self._length[0] = self.num_tokens
        self._request.infer(
            {self._names.IDS: ids_BT, self._names.LENGTH: self._length}, share_inputs=True
        )
        self.num_tokens += ids_BT.shape[1]
        return int(self._request.get_tensor(self._names.TOKEN).data[0])


def stateful(directory: Path, max_context: int) -> Any:
    """An artifact's model with its state as variables, with room for so many tokens."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    from archloop.runtimes import graphs, openvino_attention, openvino_weights
    from archloop.runtimes.onnx import graph as onnx_graph

    held = onnx_graph.read_state(directory)
    model = openvino_weights.read(directory / openvino_weights.MODEL)
    shapes: dict[str, list[int]] = {graphs.IDS: [1, -1], graphs.LENGTH: [1]}
    for each in held:
        shapes[each.name] = list(each.sized(max_context))
        if each.grows and each.slots is not None:
            shapes[each.name][each.slots] = -1
    model.reshape(shapes)
    fixed = {each.name: each.next_name for each in held if not each.grows}
    apply_make_stateful_transformation(model, fixed)
    return openvino_attention.with_variables(model, [each for each in held if each.grows])
