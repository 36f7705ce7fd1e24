"""The training loop: deterministic from its seed, ended by a loss that is not finite.

Data are a pure function of the step, so a training continued from a checkpoint sees what an
uninterrupted one would have seen. A step may hold several batches of different lengths (text,
tasks); its loss is their weighted sum. Who takes the steps depends on the device alone.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from archloop.blocks.ops.triton_kernels import compile_ahead
from archloop.errors import UserError
from archloop.stack.decoder import Decoder
from archloop.training import checkpoint as checkpoints
from archloop.training import optimiser, schedule
from archloop.training.batch import Batch, Batches, Loss, next_token_loss
from archloop.training.card import CardSteps
from archloop.training.checkpoint import Checkpoint
from archloop.training.optimiser import OptimiserName
from archloop.training.ranks import ALONE, Ranks
from archloop.training.schedule import ScheduleName
from archloop.training.steps import Done, HostSteps, PrecisionName, Steps, weighted_loss

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
        weight_decay: of AdamW, and of Muon where that trains the hidden matrices.
        betas: of AdamW.
        grad_clip: largest norm of the gradient; None: no clipping.
        batch_size: text sequences a step.
        seq_len: tokens of a text sequence.
        num_steps: optimiser steps.
        precision: of matrix products and of activations between them. Weights, optimiser, sums and
            what acts as a power are float32 either way.
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
    precision: PrecisionName = "float32"

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
    here = [
        f"{device_type}:{index}" for device_type, count in counts.items() for index in range(count)
    ]
    if name not in counts.keys() | set(here) or not counts[name.partition(":")[0]]:
        raise UserError(f"device {name!r} is not here; this machine has {', '.join(here)}")
    return torch.device(name)


def use_device(name: str) -> torch.device:
    """As `torch_device`, which this process works on from now on.

    Kernels that PyTorch does not launch itself go to the current card, wherever their tensors are.
    """
    device = torch_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def random_state_kept() -> AbstractContextManager[None]:
    """While inside, global generators may be drawn from: afterwards they stand as before.

    Those of the processor and of the current card. PyTorch's own form reaches for every card, which
    takes memory on each and disturbs who measures.
    """
    cards = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=cards)


OnStep = Callable[[int, float], bool | None]
"""Called with the number and loss of each finished step; True ends the training.

On a GPU it is called for several steps at once, and ends the training after the last of them.
"""

WAIT_EVERY = 32
"""Steps that a GPU takes between two looks at their losses."""


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


class Saving(Protocol):
    """Keeps a training's state on its way, so that the same training can go on from there."""

    def due(self, step: int) -> bool:
        """Whether to save before this step."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a state."""


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainingConfig,
    seed: int,
    on_step: OnStep | None = None,
    *,
    start: Checkpoint | None = None,
    saving: Saving | None = None,
    loss: Loss = next_token_loss,
    d_model: int | None = None,
    wait_every: int = WAIT_EVERY,
    ranks: Ranks = ALONE,
) -> TrainingResult:
    """Train a model in place; the same arguments on one machine give the same weights.

    Args:
        model: a decoder, or another module together with its `loss`.
        batches: the data.
        config: how.
        seed: for whatever the model draws at random while it trains.
        on_step: called after each step.
        start: continue from here: with `saving`, a state that it kept of this very training, at any
            step; else of a shorter training, from which a longer one goes on.
        saving: keeps the state on the way.
        loss: of the model on a batch.
        d_model: the model's width; default: that of its spec.
        wait_every: on a GPU, `on_step` is called after each step whose number this divides,
            counted from 1, for the steps since.
        ranks: this process among those that train the model together, each with all arguments
            alike; they share the rows of a batch, and what is told is of the whole of it.

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
        if saving is None:
            _check_start(start, config)
        checkpoints.restore(start, model, optimisers)
        num_tokens, first = start.num_tokens, start.step
    told = _Told(num_tokens, on_step)
    model.train()
    with (
        deterministic(seed),
        _steps(model, batches, optimisers, config, loss, first, wait_every, ranks) as steps,
    ):
        kept = _take_all(steps, model, optimisers, config, told, first, saving)
    model.eval()
    seconds = time.monotonic() - began
    return TrainingResult(tuple(told.losses), told.num_tokens, seconds, told.diverged, kept)


def _take_all(
    steps: Steps,
    model: nn.Module,
    optimisers: list[torch.optim.Optimizer],
    config: TrainingConfig,
    told: "_Told",
    first: int,
    saving: Saving | None,
) -> Checkpoint | None:
    """All steps from `first` on; the state from which a longer training can go on."""
    kept = None
    for step in range(first, config.num_steps):
        is_saved = saving is not None and step > first and saving.due(step)
        if is_saved or step == config.checkpoint_step:
            if told.ends(steps.wait()):
                return kept
            here = checkpoints.capture(model, optimisers, step, told.num_tokens)
            if step == config.checkpoint_step:
                kept = here
            if is_saved and saving is not None:
                saving.save(here)
        optimiser.set_lr_factor(optimisers, config.lr_factor(step))
        steps.take(step)
        if told.ends(steps.finished(step)):
            return kept
    told.ends(steps.wait())
    return kept


class _Told:
    """What is known of the steps taken so far."""

    def __init__(self, num_tokens: int, on_step: OnStep | None) -> None:
        self.num_tokens, self._on_step = num_tokens, on_step
        self.losses: list[tuple[int, float]] = []
        self.diverged = False

    def ends(self, finished: list[Done]) -> bool:
        """Take note of finished steps; whether the training ends."""
        ends = False
        for done in finished:
            self.num_tokens += done.num_tokens
            self.losses.append((done.step, done.loss))
            if not math.isfinite(done.loss):
                self.diverged = True
                return True
            if self._on_step is not None and self._on_step(done.step, done.loss):
                ends = True
        return ends


@contextmanager
def _steps(
    model: nn.Module,
    batches: Batches,
    optimisers: list[torch.optim.Optimizer],
    config: TrainingConfig,
    loss: Loss,
    first: int,
    wait_every: int,
    ranks: Ranks,
) -> Iterator[Steps]:
    """Who takes the steps on the model's device."""
    is_together = ranks.count > 1
    if is_together or not next(model.parameters()).is_cuda or first >= config.num_steps:
        # A card's captured steps know of no other process.
        steps: Steps = HostSteps(
            model, batches, optimisers, config.grad_clip, loss, config.precision, ranks
        )
    else:
        with random_state_kept():
            compile_ahead(
                lambda: _pass(copy.deepcopy(model), batches(first), loss, config.precision)
            )
        steps = CardSteps(
            model, batches, optimisers, config.grad_clip, loss, config.precision,
            first=first, end=config.num_steps, wait_every=wait_every,
        )  # fmt: skip
    try:
        yield steps
    finally:
        steps.close()


def _pass(model: nn.Module, batches: Sequence[Batch], loss: Loss, precision: PrecisionName) -> None:
    """A forward and a backward pass, for the kernels that they launch."""
    device = next(model.parameters()).device
    for batch in batches:
        on_device = Batch(batch.ids_BT.to(device), batch.targets_BT.to(device), batch.weight)
        weighted_loss(model, on_device, loss, precision).backward()


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed PyTorch and ask for deterministic algorithms; afterwards all is as it was."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # Deterministic mode also fills uninitialised memory with NaN, which costs time and only helps
    # to find bugs.
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    # cuBLAS repeats itself with this workspace, which is as large as the one it takes by itself.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with random_state_kept():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False
        try:
            yield
        finally:
            memory.fill_uninitialized_memory = fill
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


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
