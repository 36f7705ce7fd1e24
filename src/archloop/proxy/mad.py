"""The MAD suite by its own protocol: one training per task, setting, learning rate and decay.

Mechanistic Architecture Design (arXiv 2403.17844): six synthetic tasks, 66 settings, a sweep of six
trainings each. A setting scores the best of its sweep, a task the mean of its settings. MAD's own
metric is the accuracy averaged over classes ("macro"); the share of all targets ("micro") is
reported beside it. Differences from MAD: float32 unless asked otherwise, cosine by step instead of
by epoch, and test examples that never occur in training.

Each training leaves one result file; those already there are not computed again.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from archloop import registry
from archloop.errors import UserError
from archloop.evals import accuracy
from archloop.evals.base import Examples, Task
from archloop.files import write_atomic
from archloop.proxy import autoencoder
from archloop.proxy.autoencoder import AutoEncoder
from archloop.proxy.config import Setting
from archloop.proxy.mixture import make_task
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.training.batch import Batch, next_token_loss
from archloop.training.loop import TrainingConfig, random_state_kept, train, use_device
from archloop.training.steps import PrecisionName

D_MODEL = 128
"""Width at which MAD compares architectures."""

_LENGTHS: tuple[Setting, ...] = (256, 512, 1024)
_NUM_TRAIN: tuple[Setting, ...] = (6400, 3200, 1600, 800)
_VOCAB_SIZES: tuple[Setting, ...] = (32, 64, 128)
_RECALL: dict[str, tuple[Setting, ...]] = {
    "vocab_size": _VOCAB_SIZES,
    "seq_len": _LENGTHS,
    "num_train": _NUM_TRAIN,
}

CHANGES: dict[str, dict[str, tuple[Setting, ...]]] = {
    "in_context_recall": _RECALL,
    "fuzzy_in_context_recall": _RECALL,
    "noisy_in_context_recall": {
        **_RECALL,
        "vocab_size": (48, 80, 144),
        "noise_share": (0.4, 0.6, 0.8),
    },
    "selective_copying": {
        "vocab_size": _VOCAB_SIZES,
        "seq_len": (512, 1024),
        "num_train": _NUM_TRAIN,
        "num_to_copy": (32, 64, 96),
    },
    "compression": {
        "vocab_size": _VOCAB_SIZES,
        "seq_len": (64, 128, 256),
        "num_train": _NUM_TRAIN,
    },
    "memorization": {"vocab_size": (512, 1024, 2048, 4096, 8192)},
}
"""By task: what is changed from the default setting, one factor at a time."""


class MadConfig(BaseModel):
    """The protocol's numbers.

    Attributes:
        tasks: of the six.
        defaults: settings by task that replace MAD's own default.
        defaults_only: leave out the changed settings.
        num_train: replaces every setting's number of training examples.
        stop_accuracy: macro test accuracy at the end of an epoch that ends a training.
        precision: of the training; MAD's own is bfloat16. Tests are in float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = tuple(CHANGES)
    defaults: dict[str, dict[str, Setting]] = {}
    defaults_only: bool = False
    learning_rates: tuple[float, ...] = (1e-4, 5e-4, 1e-3)
    weight_decays: tuple[float, ...] = (0.0, 0.1)
    num_epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=128, ge=1)
    num_train: int | None = Field(default=None, ge=1)
    num_test: int = Field(default=1280, ge=2)
    stop_accuracy: float = 0.999
    seed: int = 12345
    precision: PrecisionName = "float32"

    @classmethod
    def quick(cls, tasks: tuple[str, ...] = tuple(CHANGES)) -> "MadConfig":
        """Minutes on a CPU: shorter sequences than MAD's, one training a task."""
        recall: dict[str, Setting] = {"seq_len": 32, "train_on": "answers"}
        defaults: dict[str, dict[str, Setting]] = {
            "in_context_recall": recall,
            "fuzzy_in_context_recall": recall | {"key_motif_size": 2, "value_motif_size": 2},
            "noisy_in_context_recall": recall,
            "selective_copying": {"seq_len": 32, "num_to_copy": 4},
            "compression": {"seq_len": 16},
            "memorization": {"vocab_size": 128},
        }
        return cls(
            tasks=tasks,
            defaults=defaults,
            defaults_only=True,
            learning_rates=(3e-3,),
            weight_decays=(0.1,),
            num_epochs=4,
            batch_size=32,
            num_train=3200,
            num_test=512,
        )


class Training(NamedTuple):
    """One training of the suite."""

    task: str
    settings: dict[str, Setting]
    learning_rate: float
    weight_decay: float

    @property
    def setting(self) -> str:
        """What is changed from the default setting, in words."""
        return ", ".join(f"{k}={v}" for k, v in self.settings.items()) or "default"


class TrainingResult(BaseModel):
    """What one training of the suite gave; accuracies on its test examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    settings: dict[str, Setting]
    learning_rate: float
    weight_decay: float
    macro: float
    micro: float
    chance: float
    num_epochs: int
    num_tokens: int
    diverged: bool
    seconds: float


class TaskScore(BaseModel):
    """A task's mean over settings of the best of each sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    macro: float
    micro: float
    num_settings: int


class MadReport(BaseModel):
    """The suite's outcome: by task, and the mean over tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: dict[str, TaskScore]
    macro: float
    micro: float
    runs: tuple[TrainingResult, ...]


def mad_spec(mixers: Sequence[str]) -> StackSpec:
    """MAD's backbone: each mixer followed by a SwiGLU, at width 128, untied.

    Mixers are named as in `StackSpec.layout`: parallel ones stay so, and blocks without any are
    left out, since a SwiGLU follows each mixer as it is.

    >>> mad_spec(["gqa", "gqa"]).layout
    ['gqa', 'gqa']
    """
    channel = ChannelMixerSpec(name="swiglu")
    blocks = tuple(
        BlockSpec(
            mixers=tuple(MixerSpec(name=name) for name in parallel.split("+")),
            channel_mixer=channel,
        )
        for parallel in mixers
        if parallel != "-"
    )
    return StackSpec(d_model=D_MODEL, vocab_size=1, blocks=blocks, tie_embeddings=False)


def plan(config: MadConfig) -> list[Training]:
    """All trainings, setting by setting.

    Raises:
        UserError: a task is not of the suite.
    """
    runs = []
    for task in config.tasks:
        if task not in CHANGES:
            raise UserError(
                f"{task!r} is not a task of MAD; {registry.suggest(task, list(CHANGES))}"
            )
        default = config.defaults.get(task, {})
        settings = [default]
        if not config.defaults_only:
            settings += [
                {**default, name: value}
                for name, values in CHANGES[task].items()
                for value in values
            ]
        runs += [
            Training(task, changed, rate, decay)
            for changed in settings
            for rate in config.learning_rates
            for decay in config.weight_decays
        ]
    return runs


def run_mad(
    spec: StackSpec,
    config: MadConfig,
    directory: Path,
    *,
    device: str = "cpu",
    on_run: Callable[[int, int, TrainingResult], None] | None = None,
) -> MadReport:
    """Train and test a stack on the suite, or finish what an earlier call began.

    Args:
        spec: the stack at the width to compare (MAD: 128); its vocabulary is replaced by each
            task's and its embeddings are untied, as in MAD.
        config: the protocol, or `MadConfig.quick()`.
        directory: of the result files.
        device: PyTorch's name; this process works on it from then on.
        on_run: called with the number done, the number in all and the result of each training.

    Raises:
        UserError: a task is not of the suite, the spec cannot be built, or the device is not here.
    """
    runs = plan(config)
    # Where nothing can be kept, no training is begun.
    directory.mkdir(parents=True, exist_ok=True)
    results = []
    for number, run in enumerate(runs, 1):
        file = directory / run.task / f"{_identity(spec, config, run)}.json"
        result = _finished(file)
        if result is None:
            result = run_one(spec, config, run, device)
            write_atomic(file, result.model_dump_json(indent=1).encode())
        results.append(result)
        if on_run is not None:
            on_run(number, len(runs), result)
    return summarise(results)


def summarise(results: Sequence[TrainingResult]) -> MadReport:
    """Best of each sweep by macro accuracy, mean over settings, mean over tasks."""
    best: dict[str, dict[str, TrainingResult]] = {}
    for result in results:
        settings = best.setdefault(result.task, {})
        key = str(sorted(result.settings.items()))
        if key not in settings or result.macro > settings[key].macro:
            settings[key] = result
    tasks = {
        task: TaskScore(
            macro=float(np.mean([r.macro for r in settings.values()])),
            micro=float(np.mean([r.micro for r in settings.values()])),
            num_settings=len(settings),
        )
        for task, settings in best.items()
    }
    return MadReport(
        tasks=tasks,
        macro=float(np.mean([t.macro for t in tasks.values()])),
        micro=float(np.mean([t.micro for t in tasks.values()])),
        runs=tuple(results),
    )


def run_one(spec: StackSpec, config: MadConfig, run: Training, device: str) -> TrainingResult:
    """One training and its test."""
    began = time.monotonic()
    task = make_task(run.task, run.settings)
    num_train = config.num_train or int(task.config.num_train)
    train_set = task.examples("train", config.seed, num_train)
    test_set = task.examples("test", config.seed, config.num_test)
    model = _model(spec, task, config.seed).to(use_device(device))
    steps = math.ceil(num_train / config.batch_size)
    training = TrainingConfig(
        learning_rate=run.learning_rate,
        base_width=None,
        warmup_steps=0,
        final_factor=min(0.5, 1e-6 / run.learning_rate),
        weight_decay=run.weight_decay,
        betas=(0.9, 0.999),
        grad_clip=None,
        batch_size=config.batch_size,
        num_steps=config.num_epochs * steps,
        precision=config.precision,
    )

    def end_of_epoch(step: int, loss: float) -> bool:
        del loss
        return (step + 1) % steps == 0 and _test(model, test_set)[0] >= config.stop_accuracy

    result = train(
        model,
        lambda step: [_batch(train_set, config, step, steps)],
        training,
        config.seed,
        end_of_epoch,
        loss=next_token_loss if task.loss == "next_token" else autoencoder.reconstruction_loss,
        d_model=spec.d_model,
        wait_every=steps,
    )
    macro, micro = (0.0, 0.0) if result.diverged else _test(model, test_set)
    return TrainingResult(
        task=run.task,
        settings=run.settings,
        learning_rate=run.learning_rate,
        weight_decay=run.weight_decay,
        macro=macro,
        micro=micro,
        chance=task.chance,
        num_epochs=len(result.losses) // steps,
        num_tokens=result.num_tokens,
        diverged=result.diverged,
        seconds=time.monotonic() - began,
    )


def _model(spec: StackSpec, task: Task, seed: int) -> nn.Module:
    spec = spec.replace(vocab_size=task.vocab_size, tie_embeddings=False)
    with random_state_kept():
        torch.manual_seed(seed)
        decoder = Decoder(spec)
        return decoder if task.head == "next_token" else AutoEncoder(decoder)


def _batch(train_set: Examples, config: MadConfig, step: int, steps: int) -> Batch:
    """A batch of the step's epoch, whose order depends on seed and epoch alone."""
    epoch, place = divmod(step, steps)
    order = np.random.default_rng([config.seed, epoch]).permutation(len(train_set.ids_NT))
    rows = order[place * config.batch_size : (place + 1) * config.batch_size]
    return Batch(
        torch.from_numpy(train_set.ids_NT[rows]), torch.from_numpy(train_set.targets_NT[rows])
    )


def _test(model: nn.Module, test_set: Examples) -> tuple[float, float]:
    """Macro and micro accuracy; the model goes on training afterwards as before."""
    was_training = model.training
    model.eval()
    predictions_NT = accuracy.predict(model, test_set.ids_NT, 128)
    model.train(was_training)
    return (
        accuracy.macro_accuracy(predictions_NT, test_set.targets_NT),
        accuracy.micro_accuracy(predictions_NT, test_set.targets_NT),
    )


def _identity(spec: StackSpec, config: MadConfig, run: Training) -> str:
    """A name for a training: equal for equal trainings, whatever else the suite runs."""
    fields = {"tasks", "defaults", "defaults_only", "learning_rates", "weight_decays"}
    parts = (spec.to_json(), config.model_dump_json(exclude=fields), repr(run))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _finished(file: Path) -> TrainingResult | None:
    """The result in a file, if it is there and whole."""
    if not file.exists():
        return None
    try:
        return TrainingResult.model_validate_json(file.read_bytes())
    except ValidationError:
        return None
