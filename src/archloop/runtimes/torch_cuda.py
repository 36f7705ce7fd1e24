"""Fused kernels and CUDA graphs on an NVIDIA GPU, in bfloat16, for every stack.

The engine is `archloop.runtimes.cuda.fused`; a decode step, and a prompt of each length into an
empty state, are captured on first use and replayed after. A mixer without kernels runs its own code
between those of the others.
"""

from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Runtime, Session
from archloop.runtimes.torch_eager import TorchSession

if TYPE_CHECKING:
    from torch import Tensor

    from archloop.stack.decoder import Decoder

PREFILL_PASS = 32768
"""Tokens per pass in prefill: fills the GPU and bounds the memory of activations."""


class TorchCuda(Runtime):
    """PyTorch with fused Triton kernels; the artifact is spec and safetensors."""

    quants = ("bf16",)
    parity_tolerance: ClassVar[Mapping[str, float]] = {"bf16": 0.1}
    on_card: ClassVar[bool] = True
    imports = ("torch", "archloop.runtimes.cuda.model")
    # Triton with the kernels that most stacks call, the compiler of steps without kernels, and what
    # both would work out anew in each process.
    likely_imports = (
        (
            "archloop.runtimes.cuda.attention",
            "archloop.runtimes.cuda.conv",
            "archloop.runtimes.cuda.feed_forward",
            "archloop.runtimes.cuda.prompts",
            "archloop.runtimes._torch_weights",
        ),
        ("torch._inductor.compile_fx", "torch._inductor.async_compile"),
        ("archloop.runtimes.cuda.preload",),
    )

    def version(self) -> str:
        return metadata.version("torch")

    def missing_to_run(self) -> str | None:
        import torch

        if not torch.cuda.is_available():
            return "needs an NVIDIA GPU and a CUDA build of PyTorch"
        if find_spec("triton") is None:
            return "needs triton, which CUDA builds of PyTorch bring along; pip install triton"
        return None

    def start(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        x = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)
        torch.nn.functional.softmax(x @ x, -1)
        torch.cuda.synchronize()

    def device_peak_bytes(self) -> int:
        """What PyTorch reserved of the card: tensors, and the gaps that its allocator keeps."""
        import torch

        return torch.cuda.max_memory_reserved()

    def reset_device_peak(self) -> None:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def write(self, decoder: "Decoder", directory: Path, quant: str) -> dict[str, int]:
        from archloop.runtimes.torch_eager import TorchEager

        return TorchEager().write(decoder, directory, quant)

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        import torch

        from archloop.runtimes import _torch_weights

        torch.set_num_threads(threads)
        dtype = getattr(torch, manifest.precision)
        decoder = _torch_weights.load_onto(torch.device("cuda"), directory, dtype)
        return CudaSession(decoder, max_context)


class CudaSession(TorchSession):
    """A decoder on the GPU, its prompts and its decode step through captured kernels."""

    plans_by_shape = True

    def __init__(self, decoder: "Decoder", max_context: int) -> None:
        from archloop.runtimes.cuda.fused import FusedDecoder
        from archloop.runtimes.cuda.graph import StepGraph
        from archloop.runtimes.cuda.prompts import PromptGraphs

        super().__init__(decoder, max_context)
        self.pass_tokens = PREFILL_PASS
        self.fused = FusedDecoder(decoder)
        self._prompts = PromptGraphs(self.fused, self.state)
        self._graph: StepGraph | None = None

    def take_pass(self, ids_BT: "Tensor") -> "Tensor":
        return self._prompts.prefill(ids_BT.cuda())

    def decode_step(self, token: int) -> int:
        self.check_known(token)
        self.check_room(self.num_tokens, 1)
        with self.torch.inference_mode():
            if self._graph is None:
                self._graph = self.fused.capture(self.state)
            self._last_BV = self._graph.step(self._ids_B.fill_(token))
            # The step has chosen: this one number is all that leaves the card.
            return int(self._graph.ids_B)
