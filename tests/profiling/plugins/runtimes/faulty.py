"""Eager PyTorch that misbehaves in decode steps, in the way that its quantisation names."""

import ctypes
import os
import sys
import time
from pathlib import Path

import torch

from archloop.errors import UserError
from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Ids, Logits, Session
from archloop.runtimes.torch_eager import TorchEager, TorchSession
from archloop.stack.spec import StackSpec


class Faulty(TorchEager):
    quants = ("fine", "crash", "hang", "deaf", "eat", "raise", "bug", "loud")
    parity_tolerance = dict.fromkeys(quants, 1e-4)

    def unsupported(self, spec: StackSpec) -> str | None:
        return "an odd vocabulary" if spec.vocab_size % 2 else None

    def load(self, directory: Path, manifest: Manifest, threads: int, max_context: int) -> Session:
        session = super().load(directory, manifest, threads, max_context)
        assert isinstance(session, TorchSession)
        # Export compares logits with this room; the faults are for measuring.
        return session if max_context == 46 else _FaultySession(session, manifest.quant)


class _FaultySession(Session):
    def __init__(self, inner: TorchSession, fault: str) -> None:
        self.inner, self.fault = inner, fault
        self.max_context, self.vocab_size = inner.max_context, inner.vocab_size

    def prefill(self, ids: Ids) -> int:
        return self.inner.prefill(ids)

    def logits(self) -> Logits:
        return self.inner.logits()

    def decode_step(self, token: int) -> int:
        if self.fault == "crash":
            ctypes.string_at(0)
        if self.fault == "hang":
            time.sleep(1000)
        if self.fault == "deaf":
            # Holds the interpreter's lock: no other thread of this process runs.
            ctypes.PyDLL(None).sleep(1000)
        if self.fault == "eat":
            self.eaten = [torch.ones(1 << 26) for _ in range(64)]
        if self.fault == "raise":
            raise UserError("this engine has no second token\nand more lines")
        if self.fault == "bug":
            raise ValueError("shapes do not match")
        if self.fault == "loud":
            sys.stdout.write("{not an answer\n")
            os.write(1, b'{"ok": {"ms": []}}\n')
        return self.inner.decode_step(token)

    def reset(self) -> None:
        self.inner.reset()

    def fill(self, num_tokens: int, seed: int) -> None:
        self.inner.fill(num_tokens, seed)

    @property
    def state_bytes(self) -> int | None:
        return self.inner.state_bytes
