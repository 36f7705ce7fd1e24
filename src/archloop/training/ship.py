"""A stack trained to be shipped: one run in a folder, which goes on where it was stopped.

1. What the run is (stack, settings, text) is fixed in ``run.json`` when it begins; the folder of
   another run is refused.
2. Asked for hours, a few steps on the device say how many steps they have room for.
3. While it trains, its whole state is kept every few minutes, and losses are logged for
   TensorBoard where that is installed.
4. At the end the weights become a checkpoint, with tokenizer and chat template, and what the run
   was is kept beside them; the state goes.

Several processes do all this together (`ranks`): the first alone decides, writes and tells.

Shape suffixes: T tokens.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.checkpoints.files import check_replaceable, has_checkpoint
from archloop.checkpoints.loading import load
from archloop.checkpoints.saving import save
from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from archloop.text.encoded import Encoded
from archloop.text.special_tokens import SpecialTokens
from archloop.text.tokenizers import END_OF_TEXT, from_json
from archloop.training import checkpoint as checkpoints
from archloop.training.batch import Batch, random_windows
from archloop.training.checkpoint import Checkpoint
from archloop.training.loop import TrainingConfig, TrainingResult, random_state_kept, train
from archloop.training.ranks import ALONE, Ranks, together

CHAT_MARKS = ("<|im_start|>", "<|im_end|>")
"""Special tokens around a turn of a conversation."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML. A model trained on plain text does not know it yet; what is tuned on chats later does."""
RUN = "run.json"
"""In the folder of a run under way: what it is."""
RECORD = "training.json"
"""Beside a finished checkpoint: what its run was."""
SAVE_EVERY_S = 300.0
PROBE_STEPS = 8
"""Steps that are timed to know how many a time has room for; the first half warms up."""

OnStep = Callable[[int, float, float], None]
"""Told of each step: its number, its loss and the tokens a second so far."""


class ShipRun(BaseModel):
    """What a run is; equal runs go on with each other.

    Attributes:
        hours: asked for instead of a number of steps, which then is what they have room for.
        corpus: digest of the text.
        tokenizer: of the text, as its file has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: StackSpec
    training: TrainingConfig
    hours: float | None = None
    seed: int
    corpus: str
    tokenizer: str


class Shipped(NamedTuple):
    """A finished run.

    Attributes:
        decoder: trained, in evaluation mode.
        run: with its number of steps.
        losses: (step, loss) of the steps of this process.
    """

    decoder: Decoder
    run: ShipRun
    losses: tuple[tuple[int, float], ...]


def train_to_ship(
    run: ShipRun,
    text: Encoded,
    work: Path,
    output: Path,
    *,
    device: torch.device,
    on_step: OnStep = lambda step, loss, speed: None,
    save_every_s: float = SAVE_EVERY_S,
    ranks: Ranks = ALONE,
) -> Shipped:
    """Train a stack, or go on, and leave a checkpoint.

    Args:
        run: what to do.
        text: the corpus as the run's tokenizer has it.
        work: folder of the state while it is under way; goes at the end, but for the logs.
        output: folder of the checkpoint.
        device: to train on.
        on_step: told of each step, in the first process.
        save_every_s: between two states kept.
        ranks: this process among those that train together.

    Raises:
        UserError: a folder has another run or something else, the state that was kept is damaged,
            the text is shorter than a sequence, or the training diverged.
        OSError: the disk is full, or a folder cannot be written.
    """
    if len(text.train_T) <= run.training.seq_len:
        raise UserError(
            f"the training text has {len(text.train_T)} tokens, too few for "
            f"seq_len={run.training.seq_len}; give more text"
        )
    _check_shares(run, ranks.count)
    if ranks.agreed(lambda: _is_finished(run, work, output)):
        ranks.agreed(lambda: _clear(work))
        return _finished(run, output, device)
    run = _begun(run, text, work, device, ranks)
    state = work / "state.safetensors"
    start = _kept(state) if ranks.agreed(state.exists) else None
    decoder = _initial(run, device)
    result = _train(decoder, run, text, work, start, on_step, save_every_s, ranks)
    # The folder holds this run to its settings, so others need another folder.
    _check_finite(result, f" and another folder, or remove {work}")
    ranks.agreed(lambda: _leave(decoder, run, work, output))
    return Shipped(decoder, run, result.losses)


def train_on_several(
    run: ShipRun,
    text: Encoded,
    work: Path,
    output: Path,
    devices: Sequence[torch.device],
    on_step: OnStep,
) -> Shipped:
    """As `train_to_ship`, by a process for each device; `on_step` can be pickled.

    Raises:
        UserError: as there, or a process died.
    """
    _check_shares(run, len(devices))
    if _is_finished(run, work, output):
        _clear(work)
    else:
        # The processes read one copy of the text.
        shared_T = torch.from_numpy(text.train_T).share_memory_()
        together(_Part(run, shared_T, work, output, on_step), devices)
    return _finished(run, output, torch.device("cpu"))


def _check_shares(run: ShipRun, count: int) -> None:
    if run.training.batch_size % count:
        raise UserError(
            f"a step of {run.training.batch_size} sequences does not divide among {count} "
            "processes; give another --batch-size"
        )


def _check_finite(result: TrainingResult, besides: str = "") -> None:
    """Refuse a training that diverged; `besides` is what it takes more than a lower rate."""
    if result.diverged:
        raise UserError(
            f"the training diverged at step {result.losses[-1][0]}; give a lower "
            f"--learning-rate{besides}"
        )


def _kept(file: Path) -> Checkpoint:
    """The state of a run that was stopped."""
    try:
        return checkpoints.read(file)
    except ValueError as error:
        raise UserError(f"{error}: remove {file.parent} to begin anew") from error


@dataclass(frozen=True)
class _Part:
    """What each of several processes does."""

    run: ShipRun
    text_T: torch.Tensor
    work: Path
    output: Path
    on_step: OnStep

    def __call__(self, ranks: Ranks, device: torch.device) -> None:
        text = Encoded(self.text_T.numpy(), np.empty(0, np.int32))
        train_to_ship(
            self.run,
            text,
            self.work,
            self.output,
            device=device,
            on_step=self.on_step,
            ranks=ranks,
        )


def _leave(decoder: Decoder, run: ShipRun, work: Path, output: Path) -> None:
    """The checkpoint of a finished run, whose state goes."""
    ends = SpecialTokens(eos=(from_json(run.tokenizer).end_of_text,))
    save(decoder, output, "archloop", tokens=ends)
    _write_text_files(run, output)
    write_atomic(output / RECORD, run.model_dump_json(indent=1).encode())
    _clear(work)


def _clear(work: Path) -> None:
    """Let go of the state of a finished run; one that was killed right before this has it yet."""
    for name in ("state.safetensors", RUN):
        (work / name).unlink(missing_ok=True)


def _is_finished(run: ShipRun, work: Path, output: Path) -> bool:
    """Whether the same run left its checkpoint; where none did, one can be left at the end.

    Raises:
        UserError: the folder has something else.
    """
    file = output / RECORD
    if file.exists():
        _check_same(_read(file), run, output)
        return True
    check_replaceable(output)
    # A run that was killed after it saved its weights, and before it recorded what they are, finds
    # them here. Its own folder still says that it was begun.
    if has_checkpoint(output) and not (work / RUN).exists():
        raise UserError(
            f"{output} has a checkpoint that archloop train did not leave; name another --output, "
            "or remove it"
        )
    return False


def _finished(run: ShipRun, output: Path, device: torch.device) -> Shipped:
    """What the same run left."""
    return Shipped(load(output, None, device), _read(output / RECORD), ())


def _begun(run: ShipRun, text: Encoded, work: Path, device: torch.device, ranks: Ranks) -> ShipRun:
    """The run as it was begun, with its number of steps; begun now if it was not."""
    file = work / RUN

    def kept() -> ShipRun | None:
        if not file.exists():
            return None
        found = _read(file)
        _check_same(found, run, work)
        return found

    if (known := ranks.agreed(kept)) is not None:
        return known
    if run.hours is not None:
        # All take the steps that are timed; the first one's count holds.
        num_steps = _steps_within(run, text, device, ranks)
        run = _with_steps(run, ranks.agreed(lambda: num_steps))
    ranks.agreed(lambda: write_atomic(file, run.model_dump_json(indent=1).encode()))
    return run


def _read(file: Path) -> ShipRun:
    try:
        return ShipRun.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file} is damaged; remove {file.parent} and train anew") from error


def _check_same(kept: ShipRun, asked: ShipRun, folder: Path) -> None:
    if asked.hours is not None:
        asked = _with_steps(asked, kept.training.num_steps)
    if differing := [n for n in ShipRun.model_fields if getattr(kept, n) != getattr(asked, n)]:
        raise UserError(
            f"{folder} has a run with another {', '.join(differing)}; ask for what it began with, "
            "name another --output, or remove it"
        )


def _with_steps(run: ShipRun, num_steps: int) -> ShipRun:
    return run.model_copy(
        update={"training": run.training.model_copy(update={"num_steps": num_steps})}
    )


def _steps_within(run: ShipRun, text: Encoded, device: torch.device, ranks: Ranks = ALONE) -> int:
    """Steps that the run's hours have room for, by a few on a copy of it.

    Raises:
        UserError: the few diverge.
    """
    assert run.hours is not None
    short = _with_steps(run, PROBE_STEPS)
    times: list[float] = []
    decoder = _initial(short, device)
    result = train(
        decoder,
        lambda step: _batches(short, text, step),
        short.training,
        run.seed,
        lambda step, loss: times.append(time.monotonic()),
        wait_every=1,
        ranks=ranks,
    )
    _check_finite(result)
    half = len(times) // 2
    step_s = (times[-1] - times[half - 1]) / (len(times) - half)
    return max(1, int(3600 * run.hours / step_s))


def _initial(run: ShipRun, device: torch.device) -> Decoder:
    with random_state_kept():
        torch.manual_seed(run.seed)
        return Decoder(run.spec).to(device)


def _batches(run: ShipRun, text: Encoded, step: int) -> list[Batch]:
    """A pure function of the run and the step, so that a run that goes on sees what it would."""
    rng = np.random.default_rng([run.seed, step])
    training = run.training
    ids, targets = random_windows(text.train_T, rng, training.batch_size, training.seq_len)
    return [Batch(torch.from_numpy(ids), torch.from_numpy(targets))]


def _train(
    decoder: Decoder,
    run: ShipRun,
    text: Encoded,
    work: Path,
    start: Checkpoint | None,
    on_step: OnStep,
    save_every_s: float,
    ranks: Ranks,
) -> TrainingResult:
    first = 0 if start is None else start.step
    tokens_a_step = run.training.batch_size * run.training.seq_len
    began = time.monotonic()
    # Every process has the same state; the first one keeps it and tells.
    with _Log(work / "logs" if ranks.is_first else None, first) as log:

        def told(step: int, loss: float) -> None:
            if not ranks.is_first:
                return
            speed = (step + 1 - first) * tokens_a_step / max(time.monotonic() - began, 1e-9)
            log.write(step, loss, run.training.learning_rate * run.training.lr_factor(step), speed)
            on_step(step, loss, speed)

        return train(
            decoder,
            lambda step: _batches(run, text, step),
            run.training,
            run.seed,
            told,
            start=start,
            saving=_Keeper(
                work / "state.safetensors", save_every_s if ranks.is_first else math.inf
            ),
            ranks=ranks,
        )


class _Keeper:
    """Keeps a training's state in one file, every so many seconds."""

    def __init__(self, file: Path, every_s: float) -> None:
        self._file, self._every_s, self._last = file, every_s, time.monotonic()

    def due(self, step: int) -> bool:
        return time.monotonic() - self._last >= self._every_s

    def save(self, checkpoint: Checkpoint) -> None:
        checkpoints.write(checkpoint, self._file)
        self._last = time.monotonic()


class _Log:
    """Losses in TensorBoard's format, where it is installed and a folder is given."""

    def __init__(self, folder: Path | None, first: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            return
        # What a run that was killed logged beyond its last state is taken back.
        self._writer = SummaryWriter(str(folder), purge_step=first)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, loss: float, learning_rate: float, speed: float) -> None:
        """Scalars of a step."""
        if self._writer is not None:
            self._writer.add_scalar("loss", loss, step)
            self._writer.add_scalar("learning_rate", learning_rate, step)
            self._writer.add_scalar("tokens_per_s", speed, step)


def _write_text_files(run: ShipRun, output: Path) -> None:
    """Tokenizer and chat template, in the files that transformers reads."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    write_atomic(output / "tokenizer.json", run.tokenizer.encode())
    write_atomic(output / "tokenizer_config.json", json.dumps(settings, indent=1).encode())
