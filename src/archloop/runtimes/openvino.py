"""OpenVINO on a CPU: the state graph's tensors become variables that the engine keeps."""

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
    """OpenVINO; the artifact is an ONNX file, or with int8 and int4 OpenVINO's own (`model.xml`).

    The engine compiles either when it opens it.
    """

    quants = ("fp32", "int8", "int4")
    lowers_pieces = True
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
        import copy

        from archloop.runtimes.onnx import graph as onnx_graph

        onnx_graph.write(copy.deepcopy(decoder), directory, writes_out_softplus=True)
        return _compressed(directory, quant)

    def lower(
        self, decoder: "Decoder", part: "PartName", directory: Path, quant: str
    ) -> dict[str, int]:
        import copy

        from archloop.runtimes.onnx import graph as onnx_graph

        onnx_graph.write(copy.deepcopy(decoder), directory, part, writes_out_softplus=True)
        weight_bytes = _compressed(directory, quant, part)
        if quant != "fp32":
            from archloop.runtimes import piece_products

            piece_products.keep(self.products(decoder, directory, quant), directory)
        return weight_bytes

    def join(self, pieces: Sequence["Lowered"], directory: Path, quant: str) -> dict[str, int]:
        from archloop.runtimes import openvino_linking, openvino_weights
        from archloop.runtimes.onnx import graph as onnx_graph
        from archloop.runtimes.onnx import linking as onnx_linking

        if quant == "fp32":
            return onnx_graph.weight_bytes(onnx_linking.link(pieces, directory))
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
        from archloop.runtimes.onnx import graph as onnx_graph

        held = onnx_graph.read_state(directory)
        shapes = "".join(f",{each.name}[{','.join(map(str, each.sized(1024)))}]" for each in held)
        return (
            f"benchmark_app -m {_model(directory)} -d CPU -hint latency "
            f"-shape ids[1,1],length[1]{shapes}"
        )

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        return _OpenVinoSession(directory, manifest.spec.vocab_size, threads, max_context)

    def start(self, threads: int) -> None:
        import openvino

        del threads  # A compiled model's own.
        openvino.Core().get_versions("CPU")


def _compressed(directory: Path, quant: str, part: "PartName | None" = None) -> dict[str, int]:
    """Compress a folder's ONNX model where that is asked for; returns weight bytes by precision."""
    from archloop.runtimes import openvino_weights
    from archloop.runtimes.onnx import graph as onnx_graph

    model = directory / onnx_graph.MODEL
    if quant == "fp32":
        return onnx_graph.weight_bytes(model)
    compressed = openvino_weights.write(model, quant, part)
    onnx_graph.remove(model)
    return openvino_weights.weight_bytes(compressed)


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
        if self._filled_with != seed:
            rng = np.random.default_rng(seed)
            for variable in self._request.query_state():
                shape = tuple(variable.state.shape)
                numbers = rng.standard_normal(shape, np.float32)
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
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation

    from archloop.runtimes import graphs
    from archloop.runtimes.onnx import graph as onnx_graph

    held = onnx_graph.read_state(directory)
    model = openvino.Core().read_model(str(_model(directory)))
    sizes = {each.name: list(each.sized(max_context)) for each in held}
    model.reshape({graphs.IDS: [1, -1], graphs.LENGTH: [1], **sizes})
    apply_make_stateful_transformation(model, {each.name: each.next_name for each in held})
    return model


def _model(directory: Path) -> Path:
    """The file that the engine opens."""
    from archloop.runtimes import openvino_weights
    from archloop.runtimes.onnx import graph as onnx_graph

    compressed = directory / openvino_weights.MODEL
    return compressed if compressed.exists() else directory / onnx_graph.MODEL
