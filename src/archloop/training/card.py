"""Training steps on a GPU, which is never waited for and never waits.

1. Another thread draws the batches of the steps to come; they are copied in order of the stream.
2. The first step of a shape runs as it is written. From the second on, its forward and backward
   pass, the norm of the gradients and the check that all is finite are one CUDA graph: launching
   them costs nothing, however small the model.
3. Operations run in their deterministic form, which gives the same bits each time. One that has no
   such form runs as it is, and only its results may differ from run to run.
4. Clipping, and making no update once something was not finite, are done by the optimiser's own
   kernel, from numbers that stay on the card.
5. Losses are read every so many steps.

A pass that has to wait for the card (a mixture of experts counts tokens on the host) cannot be
captured; it runs as it is written each time.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from archloop.training.batch import Ahead, Batch, Batches, Loss
from archloop.training.steps import (
    Done,
    PrecisionName,
    channel_mixers,
    count_tokens,
    weighted_loss,
)

MOST_GRAPHS = 8
"""Shapes of a step that are captured; those of more run as they are written."""
_SYNCHRONISES = "called a synchronizing CUDA operation"
_ASKED = "Synchronization debug mode"
_NOT_REPEATABLE = "determinis"


class CardSteps:
    """Steps on a GPU; see above.

    Args:
        model: on the GPU.
        batches: the data.
        optimisers: AdamW fused.
        grad_clip: largest norm of the gradient; None: no clipping.
        loss: of the model on a batch.
        precision: of products and activations.
        first: number of the first step.
        end: number behind the last.
        wait_every: steps between two looks at the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        optimisers: list[torch.optim.Optimizer],
        grad_clip: float | None,
        loss: Loss,
        precision: PrecisionName,
        *,
        first: int,
        end: int,
        wait_every: int,
    ) -> None:
        self._optimisers, self._wait_every = optimisers, wait_every
        self._mixers = channel_mixers(model)
        self._ahead = Ahead(batches, first, end)
        self._stream = torch.cuda.Stream(next(model.parameters()).device)
        self._passes = Passes(model, loss, precision, grad_clip, self._stream)
        self._sent: list[tuple[int, int]] = []
        self._losses: list[Tensor] = []

    def take(self, step: int) -> None:
        """Send a step off."""
        batches = self._ahead.take()
        # What the caller did to the model or read of it, such as a copy for a checkpoint, comes
        # before this step.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            found = self._passes.run(batches)
            for optimiser in self._optimisers:
                _update(optimiser, found.shrink, self._passes.bad)
            for mixer in self._mixers:
                mixer.after_optimizer_step()
            self._losses.append(found.loss.clone())
        self._sent.append((step, count_tokens(batches)))

    def finished(self, step: int) -> list[Done]:
        """As `Steps.finished`."""
        return self.wait() if (step + 1) % self._wait_every == 0 else []

    def wait(self) -> list[Done]:
        """As `Steps.wait`."""
        torch.cuda.current_stream().wait_stream(self._stream)
        losses = torch.stack(self._losses).tolist() if self._losses else []
        done = [Done(s, loss, n) for (s, n), loss in zip(self._sent, losses, strict=True)]
        self._sent, self._losses = [], []
        return done

    def close(self) -> None:
        """Draw no more batches, and keep no gradients."""
        self._ahead.close()
        self._passes.model.zero_grad(set_to_none=True)


class Found:
    """What a pass leaves on the card.

    Attributes:
        loss: of the step; not a number where a gradient is not finite.
        shrink: what clipping divides the gradients by, at least 1.
        grads: of each parameter.
    """

    def __init__(self, loss: Tensor, shrink: Tensor, grads: list[Tensor | None]) -> None:
        self.loss, self.shrink, self.grads = loss, shrink, grads


class Passes:
    """Forward and backward passes, captured by the shapes of their batches.

    Attributes:
        bad: 1 once a loss or gradient was not finite, else 0; on the card.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        precision: PrecisionName,
        grad_clip: float | None,
        stream: torch.cuda.Stream,
    ) -> None:
        self.model, self._loss, self._precision = model, loss, precision
        self._grad_clip, self._stream = grad_clip, stream
        self._parameters = list(model.parameters())
        self.bad = torch.zeros((), device=self._parameters[0].device)
        self._inputs: dict[object, list[Batch]] = {}
        self._captured: dict[object, tuple[torch.cuda.CUDAGraph, Found]] = {}
        self._pool: Any = None
        self._capturable = self._repeatable = True

    def run(self, batches: Sequence[Batch]) -> Found:
        """The gradients of a step's loss, each in its parameter's `grad`."""
        key = tuple((batch.ids_BT.shape, batch.targets_BT.shape, batch.weight) for batch in batches)
        device = self.bad.device
        inputs = self._inputs.get(key)
        if inputs is None:
            inputs = [_moved(batch, device) for batch in batches]
            if not self._capturable or len(self._inputs) == MOST_GRAPHS:
                return self._first_pass(inputs)
            with _noticing_waits() as waits:
                found = self._first_pass(inputs)
            self._capturable = not waits
            self._inputs[key] = inputs
            return found
        for kept, batch in zip(inputs, batches, strict=True):
            for target, source in zip(kept[:2], batch[:2], strict=True):
                target.copy_(source.pin_memory(), non_blocking=True)
        if not self._capturable:
            return self._pass(inputs)
        if key not in self._captured:
            self._captured[key] = self._capture(inputs)
        graph, found = self._captured[key]
        graph.replay()
        for parameter, grad in zip(self._parameters, found.grads, strict=True):
            parameter.grad = grad
        return found

    def _first_pass(self, inputs: list[Batch]) -> Found:
        """A pass that finds out whether every operation in it has a deterministic form."""
        try:
            return self._pass(inputs)
        except RuntimeError as error:
            if not self._repeatable or _NOT_REPEATABLE not in str(error):
                raise
            self._repeatable = False
            return self._pass(inputs)

    def _capture(self, inputs: list[Batch]) -> tuple[torch.cuda.CUDAGraph, Found]:
        graph = torch.cuda.CUDAGraph()
        # The thread that draws batches may use CUDA's host memory meanwhile.
        with torch.cuda.graph(
            graph, self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            found = self._pass(inputs)
        self._pool = graph.pool()
        return graph, found

    def _pass(self, batches: Sequence[Batch]) -> Found:
        self.model.zero_grad(set_to_none=True)
        # PyTorch chooses the deterministic form of attention only in this mode. Where a repeatable
        # result was not asked for, other operations may still vary (warn_only).
        torch.use_deterministic_algorithms(True, warn_only=not self._repeatable)
        total = self.bad.new_zeros(())
        for batch in batches:
            value = weighted_loss(self.model, batch, self._loss, self._precision)
            value.backward()
            total = total + value.detach()
        grads = [parameter.grad for parameter in self._parameters]
        norm = nn.utils.get_total_norm([grad for grad in grads if grad is not None])
        finite = torch.isfinite(norm) & torch.isfinite(total)
        self.bad.copy_(torch.where(finite, self.bad, 1.0))
        shrink = torch.ones_like(norm)
        if self._grad_clip is not None:
            # As clip_grad_norm_: the small number keeps a gradient of 0 what it is.
            shrink = ((norm + 1e-6) / self._grad_clip).clamp(min=1)
        return Found(torch.where(finite, total, torch.nan), shrink, grads)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return batch._replace(ids_BT=batch.ids_BT.to(device), targets_BT=batch.targets_BT.to(device))


@contextmanager
def _noticing_waits() -> Iterator[list[str]]:
    """Inside, waits of the host for the card are noted in the list."""
    waits: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in seen:
        if _SYNCHRONISES in str(warning.message):
            waits.append(f"{warning.filename}:{warning.lineno}")
        elif _ASKED not in str(warning.message):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def _update(optimiser: torch.optim.Optimizer, shrink: Tensor, bad: Tensor) -> None:
    """A step on the gradients divided by `shrink`; none where `bad` is 1."""
    if isinstance(optimiser, torch.optim.AdamW):
        # Its kernel takes both, under the names that loss scaling gave them.
        optimiser.grad_scale, optimiser.found_inf = shrink, bad  # type: ignore[attr-defined]
        optimiser.step()
        return
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad / shrink
    optimiser.step()
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(torch.where(bad > 0, old, parameter))
