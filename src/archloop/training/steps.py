"""Optimiser steps, one after the other: what the loop asks of the device that takes them.

`HostSteps` takes each to its end. `card.CardSteps` sends them to a GPU and hears of them later.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from archloop.blocks.base import ChannelMixer
from archloop.training.batch import Batch, Batches, Loss
from archloop.training.ranks import ALONE, Ranks

PrecisionName = Literal["float32", "bfloat16"]


class Done(NamedTuple):
    """A finished step.

    Attributes:
        step: its number.
        loss: not finite where the loss or a gradient was not: no update was made then.
        num_tokens: that it saw.
    """

    step: int
    loss: float
    num_tokens: int


class Steps(Protocol):
    """Takes steps in order."""

    def take(self, step: int) -> None:
        """Take a step, or send it off."""

    def finished(self, step: int) -> list[Done]:
        """Steps not yet told of, if it is time to ask after this one."""

    def wait(self) -> list[Done]:
        """All steps not yet told of, once they are finished."""

    def close(self) -> None:
        """End what runs beside."""


class HostSteps:
    """Steps on the device of whoever calls, each finished when `take` returns.

    Several processes can take them together: each then backpropagates its own rows.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        optimisers: list[torch.optim.Optimizer],
        grad_clip: float | None,
        loss: Loss,
        precision: PrecisionName,
        ranks: Ranks = ALONE,
    ) -> None:
        self._model, self._optimisers, self._ranks = model, optimisers, ranks
        self._batches, self._loss = ranks.own(batches), ranks.shared(model, loss)
        self._grad_clip, self._precision = grad_clip, precision
        self._done: list[Done] = []

    def take(self, step: int) -> None:
        """Take a step."""
        # What somebody left there before the training is no part of a step.
        self._model.zero_grad()
        batches = self._batches(step)
        total = self._backward(batches)
        num_tokens = count_tokens(batches) * self._ranks.count
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._grad_clip or float("inf"))
        if not (torch.isfinite(norm) and math.isfinite(total)):
            self._done.append(Done(step, float("nan"), num_tokens))
            return
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad()
        for mixer in channel_mixers(self._model):
            mixer.after_optimizer_step()
        self._done.append(Done(step, total, num_tokens))

    def finished(self, step: int) -> list[Done]:
        """The step just taken."""
        return self.wait()

    def wait(self) -> list[Done]:
        """As `finished`."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Keep no gradients."""
        self._model.zero_grad()

    def _backward(self, batches: Sequence[Batch]) -> float:
        """Gradients of a step's loss; the loss."""
        device, total = next(self._model.parameters()).device, 0.0
        for batch in batches:
            on_device = Batch(batch.ids_BT.to(device), batch.targets_BT.to(device), batch.weight)
            value = weighted_loss(self._model, on_device, self._loss, self._precision)
            value.backward()
            total += float(value.detach())
        return self._ranks.mean(total, device)


def weighted_loss(model: nn.Module, batch: Batch, loss: Loss, precision: PrecisionName) -> Tensor:
    """What a batch adds to the step's loss."""
    with autocast(batch.ids_BT.device.type, precision):
        return loss(model, batch) * batch.weight


def autocast(device_type: str, precision: PrecisionName) -> AbstractContextManager[object]:
    """Products and activations in `precision`; weights and what is sensitive stay float32."""
    if precision == "float32":
        return nullcontext()
    # Autocast can cache each weight's rounded copy for a second use; a training step uses each
    # weight once.
    return torch.autocast(device_type, torch.bfloat16, cache_enabled=False)


def count_tokens(batches: Sequence[Batch]) -> int:
    """Tokens that a step reads."""
    return sum(batch.ids_BT.numel() for batch in batches)


def channel_mixers(model: nn.Module) -> list[ChannelMixer]:
    """Those that want to know of each optimiser step."""
    return [module for module in model.modules() if isinstance(module, ChannelMixer)]
