"""ExecuTorch on XNNPACK: a program of two methods, a pass of many tokens and a step of one.

The state is the session's own tensors, which both methods change in place. A prompt goes in passes
of a fixed size, the last one filled up with padding that leaves the state alone.
"""

import json
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
    from torch import Tensor

    from archloop.runtimes.pieces import Lowered, PartName
    from archloop.runtimes.pte.graph import Part
    from archloop.runtimes.pte.linking import Copy
    from archloop.runtimes.rounding import Products
    from archloop.stack.decoder import Decoder

MODEL, STATE = "model.pte", "state.json"
_ATTENTION = "libcustom_ops_aot_lib.so"


class ExecuTorch(Runtime):
    """ExecuTorch; the artifact is a program and a description of its state."""

    quants = ("fp32", "8da4w")
    lowers_pieces = True
    writers = ("torch", "torchao")
    rounds_by_artifact = False
    parity_tolerance: ClassVar[Mapping[str, float]] = {"fp32": 1e-4, "8da4w": 1e-4}

    def version(self) -> str:
        return metadata.version("executorch")

    def missing_to_export(self) -> str | None:
        return self.missing_to_run()

    def missing_to_run(self) -> str | None:
        if find_spec("executorch"):
            return None
        return "needs ExecuTorch; pip install 'archloop[executorch]'"

    def unsupported(self, spec: StackSpec) -> str | None:
        from archloop.runtimes.pte import graph as executorch_graph

        return executorch_graph.unsupported(spec)

    def write(self, decoder: "Decoder", directory: Path, quant: str) -> dict[str, int]:
        from archloop.runtimes.pte import graph as executorch_graph
        from archloop.runtimes.pte.linking import Copy

        weight_bytes = _write(executorch_graph.whole(decoder), directory, quant)
        # Linked as if it were pieces, so that the state is no output: the engine would set aside
        # memory for each, of as many tokens as a state may ever have.
        _link([Copy(_read(directory), "whole")], directory)
        return weight_bytes

    def products(self, decoder: "Decoder", directory: Path, quant: str) -> "Products":
        from archloop.runtimes.pte import quantizing as executorch_quantizing

        del directory
        return executorch_quantizing.products(decoder) if quant == "8da4w" else {}

    def lower(
        self, decoder: "Decoder", part: "PartName", directory: Path, quant: str
    ) -> dict[str, int]:
        from archloop.runtimes.pte import graph as executorch_graph

        return _write(executorch_graph.of_piece(decoder, part), directory, quant)

    def join(self, pieces: Sequence["Lowered"], directory: Path, quant: str) -> dict[str, int]:
        from archloop.runtimes.pieces import summed_bytes
        from archloop.runtimes.pte.linking import Copy

        del quant
        files: dict[Path, Any] = {}
        lowered, held = [], []
        for placed, home, _ in pieces:
            if home not in files:
                files[home] = _read(home)
            copy = f"{home.name} {placed.weights}"
            lowered.append(Copy(files[home], copy))
            for each in json.loads((home / STATE).read_bytes()):
                # A piece's only block is block 0 to it.
                slot = each["name"].split(".", 1)[1]
                held.append({**each, "name": f"{placed.block}.{slot}"})
        _link(lowered, directory)
        _write_state(directory, held)
        return summed_bytes(pieces)

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        self.start(threads)
        return _ExecuTorchSession(directory, manifest.spec.vocab_size, max_context)

    def start(self, threads: int) -> None:
        import torch
        from executorch.extension.pybindings import portable_lib

        _load_attention()
        torch.set_flush_denormal(True)
        # The engine has one pool of threads for the whole process.
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)


def _write(part: "Part", directory: Path, quant: str) -> dict[str, int]:
    """The files of a part; returns weight bytes by precision."""
    from archloop.runtimes.pte import lowering as executorch_lowering
    from archloop.runtimes.pte import quantizing as executorch_quantizing

    if quant == "fp32":
        weight_bytes = {"float32": sum(p.numel() * 4 for p in part.weights().values())}
    else:
        weight_bytes = executorch_quantizing.quantize(part)
    with (directory / MODEL).open("wb") as file:
        executorch_lowering.lowered(part).write_to_file(file)
    _write_state(directory, [each._asdict() for each in part.held])
    return {name: size for name, size in weight_bytes.items() if size}


def _read(home: Path) -> Any:
    """A program as it can be linked."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    return deserialize_pte_binary((home / MODEL).read_bytes())


def _link(copies: "Sequence[Copy]", directory: Path) -> None:
    """One program of several, written."""
    from executorch.exir._serialize._program import serialize_pte_binary

    from archloop.runtimes.pte.linking import linked

    with (directory / MODEL).open("wb") as file:
        serialize_pte_binary(linked(copies), extract_delegate_segments=True).write_to_file(file)


def _write_state(directory: Path, held: list[dict[str, Any]]) -> None:
    (directory / STATE).write_text(json.dumps(held, indent=1))


def _load_attention() -> None:
    """Give the engine its attention operators, which lie in a library of their own.

    The package's own module for it would load PyTorch's compiler too.
    """
    import torch

    package = find_spec("executorch")
    homes = (package and package.submodule_search_locations) or []
    assert homes, "who asks has imported the package"
    torch.ops.load_library(Path(homes[0], "extension/llm/custom_ops", _ATTENTION))


class _ExecuTorchSession(Session):
    """A loaded program and the tensors of its state."""

    def __init__(self, directory: Path, vocab_size: int, max_context: int) -> None:
        import torch
        from executorch.extension.pybindings import portable_lib

        from archloop.runtimes.pte import graph as executorch_graph

        self._torch, self._graph = torch, executorch_graph
        self.max_context, self.vocab_size, self.num_tokens = max_context, vocab_size, 0
        held = json.loads((directory / STATE).read_bytes())
        self._held = [executorch_graph.Tensors(**each) for each in held]
        # The padding of the last pass is written behind the last token.
        slots = max_context + executorch_graph.PASS
        self._state: list[Tensor] = [
            torch.zeros(each.sized(slots), dtype=getattr(torch, each.dtype)) for each in self._held
        ]
        self._program: Any = portable_lib._load_for_executorch(str(directory / MODEL))
        self._ids = torch.zeros(1, executorch_graph.PASS, dtype=torch.int64)
        self._one, self._length, self._real = (torch.zeros(1, dtype=torch.int64) for _ in range(3))
        self._last = np.full(vocab_size, np.nan, np.float32)
        self._filled_with: int | None = None

    def prefill(self, ids: Ids) -> int:
        self.check_room(self.num_tokens, len(ids))
        token = -1
        for start in range(0, len(ids), self._graph.PASS):
            part = ids[start : start + self._graph.PASS]
            if len(part) == 1:
                token = self._step(int(part[0]))
                continue
            self._ids[0, : len(part)] = self._torch.from_numpy(part)
            self._real.fill_(len(part))
            token = self._run(self._graph.PREFILL, [self._ids, self._length, self._real])
            self._set_length(self.num_tokens + len(part))
        return token

    def decode_step(self, token: int) -> int:
        self.check_known(token)
        self.check_room(self.num_tokens, 1)
        return self._step(token)

    def logits(self) -> Logits:
        return self._last

    def reset(self) -> None:
        self._filled_with = None
        self._set_length(0)
        for tensor in self._state:
            tensor.zero_()

    def fill(self, num_tokens: int, seed: int) -> None:
        self._set_length(0)
        self.check_room(self.num_tokens, num_tokens)
        if self._filled_with != seed:
            generator = self._torch.Generator().manual_seed(seed)
            for tensor in self._state:
                if tensor.is_floating_point():
                    tensor.normal_(generator=generator)
        self._filled_with = seed
        self._set_length(num_tokens)

    @property
    def state_bytes(self) -> int:
        sizes = (each.sized(self.max_context) for each in self._held)
        return sum(
            int(np.prod(size)) * tensor.itemsize
            for size, tensor in zip(sizes, self._state, strict=True)
        )

    @property
    def prefill_pass(self) -> int:
        return min(self._graph.PASS, self.max_context)

    def close(self) -> None:
        self._program, self._state = None, []

    def _step(self, token: int) -> int:
        self._one.fill_(token)
        token = self._run(self._graph.DECODE, [self._one, self._length])
        self._set_length(self.num_tokens + 1)
        return token

    def _run(self, method: str, given: list["Tensor"]) -> int:
        # The logits stand in the engine's memory until the next call.
        token, logits = self._program.run_method(
            method, [*given, *self._state], clone_outputs=False
        )
        self._last = logits.numpy()[0]
        return int(token)

    def _set_length(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._length.fill_(num_tokens)
