"""PyTorch on the CPU without compiling: runs every stack; other engines must agree with it.

Weights and state are in one dtype, float32 or bfloat16 (recurrent state stays in float32).
"""

from collections.abc import Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Ids, Logits, Runtime, Session

if TYPE_CHECKING:
    from torch import Tensor

    from archloop.stack.decoder import Decoder

PREFILL_PASS = 512
"""Tokens per pass in prefill: bounds the memory of activations."""


class TorchEager(Runtime):
    """Eager PyTorch; the artifact is spec and safetensors."""

    quants = ("fp32", "bf16")
    rounds_by_artifact = False
    parity_tolerance: ClassVar[Mapping[str, float]] = {"fp32": 1e-4, "bf16": 0.1}
    imports = ("torch", "archloop.runtimes._torch_weights")

    def version(self) -> str:
        return metadata.version("torch")

    def start(self, threads: int) -> None:
        """Set up threads; denormals are flushed before any worker thread inherits the setting."""
        import torch

        # What opening a model needs is counted to the empty engine, not to the model.
        import_module("archloop.runtimes._torch_weights")
        torch.set_flush_denormal(True)
        torch.set_num_threads(threads)
        x = torch.ones(256, 256)
        torch.nn.functional.softmax(x @ x, -1)

    def write(self, decoder: "Decoder", directory: Path, quant: str) -> dict[str, int]:
        import copy

        import torch

        from archloop.runtimes import _torch_weights

        wanted = getattr(torch, self.precision(quant))
        if decoder.embedding.weight.dtype != wanted:
            decoder = copy.deepcopy(decoder).to(wanted)
        return _torch_weights.save(decoder, directory)

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        import torch

        from archloop.runtimes import _torch_weights

        torch.set_num_threads(threads)
        decoder = _torch_weights.load(directory, getattr(torch, manifest.precision))
        return TorchSession(decoder, max_context)


class TorchSession(Session):
    """A decoder and its state; compiled runtimes replace `take_pass` and `take_one`.

    Shape suffixes: B batch (1), T time, V vocabulary.
    """

    def __init__(self, decoder: "Decoder", max_context: int) -> None:
        import torch

        self.torch = torch
        self.decoder = decoder
        self.max_context = max_context
        self.vocab_size = decoder.spec.vocab_size
        self.pass_tokens = PREFILL_PASS
        self._filled_with: int | None = None
        with torch.inference_mode():
            self.state = decoder.init_state(1, max_context)
            self._ids_B = torch.zeros(1, dtype=torch.int64)
        self._last_BV: Tensor = torch.full((1, self.vocab_size), torch.nan)

    @property
    def num_tokens(self) -> int:
        """Tokens in the state."""
        return self.state.num_tokens

    def prefill(self, ids: Ids) -> int:
        self.check_room(self.num_tokens, len(ids))
        held = self.num_tokens + len(ids)
        ids_T = self.torch.from_numpy(ids)
        with self.torch.inference_mode():
            for start in range(0, len(ids), self.pass_tokens):
                # Unsqueezed, not sliced from a (1, T) tensor, whose strides would differ between
                # prompts: compiled graphs ask for equal strides.
                self._last_BV = self.take_pass(ids_T[start : start + self.pass_tokens].unsqueeze(0))
            # A compiled pass leaves the count to its caller.
            self.state.recount(held)
            return int(self._last_BV.argmax(-1))

    def decode_step(self, token: int) -> int:
        self.check_known(token)
        self.check_room(self.num_tokens, 1)
        held = self.num_tokens + 1
        with self.torch.inference_mode():
            self._last_BV = self.take_one(self._ids_B.fill_(token))
            self.state.recount(held)
            return int(self._last_BV.argmax(-1))

    def logits(self) -> Logits:
        logits_V: Logits = self._last_BV[0].float().cpu().numpy()
        return logits_V

    def take_pass(self, ids_BT: "Tensor") -> "Tensor":
        """Logits (B, V) after at most `pass_tokens` tokens."""
        return self.decoder.prefill(ids_BT, self.state)

    def take_one(self, ids_B: "Tensor") -> "Tensor":
        """Logits (B, V) after one token."""
        return self.decoder.step(ids_B, self.state)

    def reset(self) -> None:
        self._filled_with = None
        with self.torch.inference_mode():
            self.state.reset()

    def fill(self, num_tokens: int, seed: int) -> None:
        self.state.recount(0)
        self.check_room(self.num_tokens, num_tokens)
        if self._filled_with != seed:
            self._write_random(seed)
        with self.torch.inference_mode():
            self.state.lengths_B.fill_(num_tokens)
        self.state.recount(num_tokens)

    def _write_random(self, seed: int) -> None:
        generator = self.torch.Generator(self.state.lengths_B.device).manual_seed(seed)
        with self.torch.inference_mode():
            for state in self.state.mixers.values():
                for tensor in state.tensors.values():
                    if tensor.is_floating_point():
                        tensor.normal_(generator=generator)
        self._filled_with = seed

    @property
    def state_bytes(self) -> int:
        return self.state.nbytes

    @property
    def prefill_pass(self) -> int:
        return self.pass_tokens
