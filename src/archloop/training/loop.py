"""The training loop: deterministic from its seed, ended by a loss that is not finite.

Data are a pure function of the step, so a training continued from a checkpoint sees what an
uninterrupted one would have seen. A step may hold several batches of different lengths (text,
tasks); its loss is their weighted sum.

Shape suffixes: B batch, T time, D model width, X scored positions, V vocabulary.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.base import ChannelMixer
from archloop.blocks.ops.triton_kernels import compile_ahead
from archloop.errors import UserError
from archloop.stack.decoder import Decoder
from archloop.training import checkpoint as checkpoints
from archloop.training import optimiser, schedule
from archloop.training.checkpoint import Checkpoint
from archloop.training.optimiser import OptimiserName
from archloop.training.schedule import ScheduleName

MAX_STEP_TOKENS = 2**22
"""Tokens of a batch: their logits alone fill the memory of a large machine."""

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(BaseModel):
    """How a decoder is trained.

    Attributes:
        optimizer: of the hidden matrices; the rest is always trained by AdamW.
        schedule: cosine, or wsd, whose longer trainings continue shorter ones.
        learning_rate: peak, at `base_width`.
        base_width: width at which the learning rate was tuned; None: no width transfer.
        warmup_steps: of linear rise; in steps, so that a longer training starts the same.
        decay_share: share of the steps over which wsd decays.
        final_factor: learning rate at the end, as a factor of the peak.
        grad_clip: largest norm of the gradient; None: no clipping.
        batch_size: text sequences a step.
        seq_len: tokens of a text sequence.
        num_steps: optimiser steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: OptimiserName = "adamw"
    schedule: ScheduleName = "cosine"
    learning_rate: float = Field(default=3e-3, gt=0)
    base_width: int | None = Field(default=128, ge=1)
    warmup_steps: int = Field(default=20, ge=0)
    decay_share: float = Field(default=0.2, gt=0, le=1)
    final_factor: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    grad_clip: float | None = Field(default=1.0, gt=0)
    batch_size: int = Field(default=16, ge=1)
    seq_len: int = Field(default=128, ge=2)
    num_steps: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _check_tokens(self) -> "TrainingConfig":
        if self.batch_size * self.seq_len > MAX_STEP_TOKENS:
            raise ValueError(
                f"batch_size={self.batch_size} times seq_len={self.seq_len} is more than "
                f"{MAX_STEP_TOKENS} tokens a step; lower either"
            )
        return self

    def lr_factor(self, step: int) -> float:
        """Factor on the learning rate at a step counted from 0."""
        return schedule.factor(
            self.schedule,
            step,
            self.num_steps,
            self.warmup_steps,
            self.decay_share,
            self.final_factor,
        )

    @property
    def checkpoint_step(self) -> int | None:
        """Steps after which a longer training can continue; None: it starts afresh."""
        if self.schedule == "cosine":
            return None
        return schedule.decay_start(self.num_steps, self.decay_share)


def torch_device(name: str) -> torch.device:
    """A device that PyTorch can compute on here.

    Raises:
        UserError: it is not one, or this build or machine lacks it.
    """
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    here = [f"{kind}:{index}" for kind, count in counts.items() for index in range(count)]
    if name not in counts.keys() | set(here) or not counts[name.partition(":")[0]]:
        raise UserError(f"device {name!r} is not here; this machine has {', '.join(here)}")
    return torch.device(name)


class Batch(NamedTuple):
    """Token ids with the token to predict at each position, or -100.

    Attributes:
        weight: of the batch's mean loss in the step's loss.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    weight: float = 1.0


Batches = Callable[[int], Sequence[Batch]]
"""Batches of a step: a pure function of the step's number."""

Loss = Callable[[Any, Batch], Tensor]
"""Mean loss of a model on a batch."""


OnStep = Callable[[int, float], bool | None]
"""Called with the number and loss of each finished step; True ends the training there."""


class TrainingResult(NamedTuple):
    """What a training did.

    Attributes:
        losses: (step, loss) of every step.
        num_tokens: tokens seen, including those before a checkpoint it continued.
        seconds: wall time.
        diverged: a loss or gradient was not finite, which ended the training.
        checkpoint: where a longer training can continue; None under cosine.
    """

    losses: tuple[tuple[int, float], ...]
    num_tokens: int
    seconds: float
    diverged: bool
    checkpoint: Checkpoint | None


def next_token_loss(decoder: Decoder, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats over the positions that have a target."""
    hidden_BTD = decoder.hidden(batch.ids_BT)
    scored_BT = batch.targets_BT != -100
    logits_XV = decoder.logits(hidden_BTD[scored_BT])
    return F.cross_entropy(logits_XV.float(), batch.targets_BT[scored_BT])


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    seed: int,
    on_step: OnStep | None = None,
    *,
    start: Checkpoint | None = None,
    loss: Loss = next_token_loss,
    d_model: int | None = None,
) -> TrainingResult:
    """Train a model in place; the same arguments on one machine give the same weights.

    Args:
        model: a decoder, or another module together with its `loss`.
        batches: the data.
        config: how.
        seed: for whatever the model draws at random while it trains.
        on_step: called after each step.
        start: continue from here.
        loss: of the model on a batch.
        d_model: the model's width; default: that of its spec.

    Raises:
        ValueError: the checkpoint is of another model, or beyond the schedule's stable part.
    """
    began = time.monotonic()
    width = model.spec.d_model if isinstance(model, Decoder) else d_model
    assert width is not None, "a model other than a decoder needs d_model"
    groups = optimiser.parameter_groups(model, config.optimizer, config.base_width, width)
    optimisers = optimiser.build(
        model, groups, config.learning_rate, config.weight_decay, config.betas
    )
    num_tokens, first = 0, 0
    if start is not None:
        _check_start(start, config)
        checkpoints.restore(start, model, optimisers)
        num_tokens, first = start.num_tokens, start.step
    losses: list[tuple[int, float]] = []
    kept, diverged = None, False
    model.train()
    if next(model.parameters()).is_cuda and first < config.num_steps:
        with torch.random.fork_rng():
            compile_ahead(lambda: _backward(copy.deepcopy(model), batches(first), loss))
    with deterministic(seed):
        for step in range(first, config.num_steps):
            if step == config.checkpoint_step:
                kept = checkpoints.capture(model, optimisers, step, num_tokens)
            optimiser.set_lr_factor(optimisers, config.lr_factor(step))
            value, seen = _step(model, batches(step), optimisers, config.grad_clip, loss)
            num_tokens += seen
            losses.append((step, value))
            if not torch.isfinite(torch.tensor(value)):
                diverged = True
                break
            if on_step is not None and on_step(step, value):
                break
    model.eval()
    seconds = time.monotonic() - began
    return TrainingResult(tuple(losses), num_tokens, seconds, diverged, kept)


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed PyTorch and ask for deterministic algorithms; afterwards all is as it was."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _step(
    model: nn.Module,
    batches: Sequence[Batch],
    optimisers: list[torch.optim.Optimizer],
    grad_clip: float | None,
    loss: Loss,
) -> tuple[float, int]:
    """One optimiser step; its loss (not finite: no update was made) and tokens."""
    total = _backward(model, batches, loss)
    num_tokens = sum(batch.ids_BT.numel() for batch in batches)
    norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))
    if not torch.isfinite(norm):
        return float("nan"), num_tokens
    for optimiser_ in optimisers:
        optimiser_.step()
        optimiser_.zero_grad()
    for module in model.modules():
        if isinstance(module, ChannelMixer):
            module.after_optimizer_step()
    return total, num_tokens


def _backward(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> float:
    """Gradients of a step's loss, added to those there; the loss."""
    device, total = next(model.parameters()).device, 0.0
    for batch in batches:
        on_device = Batch(batch.ids_BT.to(device), batch.targets_BT.to(device), batch.weight)
        value = loss(model, on_device) * batch.weight
        value.backward()
        total += float(value.detach())
    return total


def _check_start(start: Checkpoint, config: TrainingConfig) -> None:
    last = config.checkpoint_step
    if last is None:
        raise ValueError(
            "a cosine schedule cannot continue from a checkpoint; train from the start or set "
            "schedule: wsd"
        )
    if start.step > last:
        raise ValueError(
            f"the checkpoint has {start.step} steps, but with num_steps={config.num_steps} the "
            f"decay starts at {last}; train for more steps"
        )
