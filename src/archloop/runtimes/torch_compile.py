"""PyTorch compiled by Inductor to C++: one graph for a decode step, one for a prefill pass.

Graphs need fixed shapes: a cache is always read up to `max_context`, and a prompt is taken in
passes of a power of two, what is left over without compiling. Opening a session compiles (tens of
seconds, less when Inductor's cache on disk knows the graph), and the compiler's memory counts,
since it is part of this engine.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Session
from archloop.runtimes.torch_eager import PREFILL_PASS, TorchEager, TorchSession

if TYPE_CHECKING:
    from torch import Tensor

    from archloop.stack.decoder import Decoder

_Graph = Callable[["Tensor"], "Tensor"]
_COMPILERS = ("g++", "clang++")


class TorchCompile(TorchEager):
    """Compiled PyTorch; needs a C++ compiler on the device."""

    def missing_to_run(self) -> str | None:
        named = os.environ.get("CXX")
        if any(shutil.which(name) for name in ((named,) if named else _COMPILERS)):
            return None
        return "needs a C++ compiler: install g++, or set CXX to one"

    def start(self, threads: int) -> None:
        """As eager; the compiler comes into memory by compiling next to nothing."""
        import torch

        super().start(threads)
        torch.compile(_doubled)(torch.ones(8))

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        import torch

        from archloop.runtimes import _torch_weights

        torch.set_num_threads(threads)
        decoder = _torch_weights.load(directory, getattr(torch, manifest.precision))
        return _CompiledSession(decoder, max_context)


class _CompiledSession(TorchSession):
    """As `TorchSession`, with both graphs compiled when it is made."""

    def __init__(self, decoder: "Decoder", max_context: int) -> None:
        from archloop.stack.cost import num_active_params, num_params

        super().__init__(decoder, max_context)
        torch = self.torch
        self.state.freeze()
        # Each session has shapes of its own; graphs of an earlier one would only slow the lookup.
        torch.compiler.reset()
        self._step: _Graph = torch.compile(self._step_once, dynamic=False)
        self._pass: _Graph = torch.compile(self._pass_once, dynamic=False)
        self.pass_tokens = _power_of_two_below(min(PREFILL_PASS, max_context))
        # Compiled, a mixture of experts gathers one token's experts, but runs every expert on a
        # pass; not compiled, only those that act.
        spec = decoder.spec
        self.compiles_pass = num_active_params(spec) == num_params(spec)
        self.prefill(self.prepare([0] * self.pass_tokens))
        # The pass may have filled the session; there must be room for the step.
        self.reset()
        self.decode_step(0)
        self.reset()

    def take_pass(self, ids_BT: "Tensor") -> "Tensor":
        """Compiled for a whole pass, eager for a shorter one."""
        if self.compiles_pass and ids_BT.shape[1] == self.pass_tokens:
            return self._pass(ids_BT)
        return self._pass_once(ids_BT)

    def take_one(self, ids_B: "Tensor") -> "Tensor":
        """One compiled step."""
        return self._step(ids_B)

    def _pass_once(self, ids_BT: "Tensor") -> "Tensor":
        return self.decoder.prefill_unchecked(ids_BT, self.state)

    def _step_once(self, ids_B: "Tensor") -> "Tensor":
        return self.decoder.step_unchecked(ids_B, self.state)


def _power_of_two_below(limit: int) -> int:
    """The largest power of two that is at most `limit`."""
    return 1 << (limit.bit_length() - 1)


def _doubled(x: "Tensor") -> "Tensor":
    return x + x
