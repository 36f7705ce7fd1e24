"""Proxy evaluation: one short training on text mixed with tasks, then a score for each.

`prepare` turns a corpus into tokens once, on disk; `train_and_score` is what one trial costs. Task
tokens have ids of their own after the text's, task by task, so that no task meets another's habits.

Shape suffixes: B batch, T time, N examples, V vocabulary.
"""

import hashlib
import io
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from archloop.errors import UserError
from archloop.evals import bits_per_byte, suites
from archloop.evals.base import IGNORE, Examples, Score, Split, Task
from archloop.evals.decoder_model import DecoderModel
from archloop.evals.verbs import Shifted
from archloop.files import default_cache_dir, read_checked, write_checked
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from archloop.text import corpora, tokenizers
from archloop.text.corpora import CorpusConfig
from archloop.training import checkpoint as checkpoints
from archloop.training.batch import Batch, random_windows
from archloop.training.loop import MAX_STEP_TOKENS, OnStep, TrainingConfig, train

TEXT = "bits_per_byte"
"""Name of the text's score among those of the tasks."""

KEPT_LOSSES = 200
"""Training losses that a result keeps, evenly spread."""

MAX_EVAL_TOKENS = 2**25
"""Tokens of a task's test examples, all drawn before the first is scored."""

Setting = bool | int | float | str


class TaskShare(BaseModel):
    """A task in the mixture.

    Attributes:
        settings: fields of the task's own config.
        batch_size: examples a step.
        weight: of the task's mean loss in the step's loss.
        num_eval: test examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Setting] = {}
    batch_size: int = Field(default=32, ge=1)
    weight: float = Field(default=1.0, gt=0)
    num_eval: int = Field(default=512, ge=2)


class ProxyConfig(BaseModel):
    """A recipe's training and evaluation of proxies.

    Attributes:
        vocab_size: of the text's tokenizer.
        text_weight: of the text's mean loss in the step's loss.
        num_text_windows: held-out windows of `training.seq_len` tokens.
        tasks: by plug-in name.
        rungs: optimiser steps of each rung, rising.
        device: where proxies are trained, in PyTorch's words.
        training: `num_steps` there is replaced by the rung's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: CorpusConfig = CorpusConfig()
    vocab_size: int = Field(default=1024, ge=tokenizers.MIN_VOCAB_SIZE, le=2**20)
    text_weight: float = Field(default=1.0, gt=0)
    num_text_windows: int = Field(default=256, ge=2)
    tasks: dict[str, TaskShare] = {}
    rungs: tuple[int, ...] = Field(default=(200,), min_length=1)
    training: TrainingConfig = TrainingConfig()
    device: str = "cpu"

    @model_validator(mode="after")
    def _check(self) -> "ProxyConfig":
        if any(steps < 1 for steps in self.rungs) or sorted(set(self.rungs)) != list(self.rungs):
            raise ValueError(f"rungs={self.rungs} must be rising numbers of steps, at least 1")
        return self

    def training_of(self, rung: int, learning_rate: float | None) -> TrainingConfig:
        """Training settings of a rung."""
        changes: dict[str, float] = {"num_steps": self.rungs[rung]}
        if learning_rate is not None:
            changes["learning_rate"] = learning_rate
        return TrainingConfig.model_validate({**self.training.model_dump(), **changes})


class ProxyData(NamedTuple):
    """What trainings share.

    Attributes:
        vocab_size: that a proxy's spec must have: text and task tokens.
        text_vocab_size: ids of text tokens run from 0 to this, exclusive.
        tasks: each task and its first token id.
        train_T: training text.
        heldout_T: held-out text.
        num_bytes_V: bytes of each text token.
        digest: of the corpus.
    """

    vocab_size: int
    text_vocab_size: int
    tasks: dict[str, tuple[Task, int]]
    train_T: NDArray[np.int32]
    heldout_T: NDArray[np.int32]
    num_bytes_V: NDArray[np.int64]
    digest: str


class ProxyResult(BaseModel):
    """What a proxy training and its evaluation gave.

    Attributes:
        scores: by task, with the text's under `TEXT`; empty when the training diverged.
        losses: (step, loss), thinned.
        num_tokens: trained on, text and tasks, from the first step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: dict[str, Score]
    losses: tuple[tuple[int, float], ...]
    num_tokens: int
    diverged: bool
    learning_rate: float
    seconds_train: float
    seconds_eval: float


def make_task(name: str, settings: dict[str, Setting]) -> Task:
    """A task from its plug-in's name and settings.

    Raises:
        UserError: unknown name or setting, a value that is not allowed, or an evaluation in text.
    """
    task = suites.make(name, settings)
    if not isinstance(task, Task):
        raise UserError(
            f"tasks.{name} asks in text and draws no rows to train on; remove it, or run it by "
            f"archloop eval --tasks {name}"
        )
    return task


def vocab_size(config: ProxyConfig) -> int:
    """Token ids that a proxy needs, without reading the corpus.

    Raises:
        UserError: as `make_task`, or a task cannot be mixed with text, fills the memory or has too
            few examples. `ProxyConfig` cannot tell: a recipe is read before its plug-ins are known.
    """
    return config.vocab_size + sum(
        _mixable(name, share).vocab_size for name, share in config.tasks.items()
    )


def _mixable(name: str, share: TaskShare) -> Task:
    task = make_task(name, share.settings)
    if not task.in_mixture:
        why = "" if task.head == "next_token" else "needs a head of its own and "
        raise UserError(
            f"tasks.{name} {why}cannot be trained in a mixture with text; "
            "remove it, or run it by archloop eval --suite mad"
        )
    length = task.config.seq_len
    for key, most in (("batch_size", MAX_STEP_TOKENS), ("num_eval", MAX_EVAL_TOKENS)):
        if getattr(share, key) * length > most:
            raise UserError(
                f"tasks.{name}.{key}={getattr(share, key)}: its examples of {length} "
                f"tokens fill the memory; allowed: 1 to {most // length}"
            )
    splits: tuple[Split, ...] = ("train", "test")
    try:
        for split in splits:
            task.examples(split, 0, 1)
    except UserError as error:
        raise UserError(f"tasks.{name}: {error}") from error
    return task


def prepare(config: ProxyConfig, cache_dir: Path | None, root: Path) -> ProxyData:
    """Read and tokenise the corpus, or take its tokens from the cache.

    Args:
        config: the recipe's.
        cache_dir: default: the user's cache folder.
        root: folder of the recipe.

    Raises:
        UserError: the corpus cannot be read or is too small; names file and remedy.
        OSError: the cache cannot be written.
    """
    corpus = corpora.load(config.corpus, root)
    tokenizer = tokenizers.cached(corpus, config.vocab_size, cache_dir)
    folder = (cache_dir or default_cache_dir()) / "tokens"
    # Named by the tokenizer too: another version of its library may merge otherwise.
    merges = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
    name = f"{corpus.digest[:16]}-{merges[:16]}"
    train_T = _tokens(folder / f"{name}-train", tokenizer, corpus.train)
    heldout_T = _tokens(folder / f"{name}-heldout", tokenizer, corpus.heldout)
    seq_len = config.training.seq_len
    bits_per_byte.windows(heldout_T, config.num_text_windows, seq_len)
    if len(train_T) <= seq_len:
        raise UserError(
            f"the training text has {len(train_T)} tokens, too few for seq_len={seq_len}; "
            "give more text"
        )
    tasks: dict[str, tuple[Task, int]] = {}
    first_id = config.vocab_size
    for task_name, share in config.tasks.items():
        task = make_task(task_name, share.settings)
        tasks[task_name] = (task, first_id)
        first_id += task.vocab_size
    return ProxyData(
        first_id,
        config.vocab_size,
        tasks,
        train_T,
        heldout_T,
        tokenizer.num_bytes_V,
        corpus.digest,
    )


def batches_of_step(config: ProxyConfig, data: ProxyData, seed: int, step: int) -> list[Batch]:
    """The text batch and one batch of each task: a pure function of the arguments."""
    rng = np.random.default_rng([seed, step])
    training = config.training
    rows = random_windows(data.train_T, rng, training.batch_size, training.seq_len)
    batches = [_batch(Examples(*rows), 0, config.text_weight)]
    for name, (task, first_id) in data.tasks.items():
        share = config.tasks[name]
        drawn = task.examples("train", int(rng.integers(2**62)), share.batch_size)
        batches.append(_batch(drawn, first_id, share.weight))
    return batches


def train_and_score(
    spec: StackSpec,
    data: ProxyData,
    config: ProxyConfig,
    rung: int,
    seed: int,
    learning_rate: float | None = None,
    *,
    resume_from: Path | None = None,
    checkpoint_to: Path | None = None,
    on_step: OnStep | None = None,
) -> ProxyResult:
    """Train a proxy and score it: what a trial costs at a rung.

    Args:
        spec: at proxy width, with `data.vocab_size` tokens.
        data: from `prepare`.
        config: the recipe's.
        rung: index into `config.rungs`.
        seed: of initial weights and of the order of the data.
        learning_rate: replaces that of `config.training`.
        resume_from: checkpoint of the rung before (wsd); cosine trains from the start and
            ignores it.
        checkpoint_to: where to leave a checkpoint for the next rung (wsd).
        on_step: called after each step.

    Raises:
        ValueError: the spec cannot be built, or the checkpoint is of another one.
    """
    if spec.vocab_size != data.vocab_size:
        raise ValueError(
            f"the proxy has vocab_size={spec.vocab_size}, but text and tasks need "
            f"{data.vocab_size}; set it to that"
        )
    training = config.training_of(rung, learning_rate)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = Decoder(spec).to(config.device)
    start = None
    if resume_from is not None and training.checkpoint_step is not None:
        start = checkpoints.read(resume_from)
    result = train(
        decoder,
        lambda step: batches_of_step(config, data, seed, step),
        training,
        seed,
        on_step,
        start=start,
    )
    if checkpoint_to is not None and result.checkpoint is not None:
        checkpoints.write(result.checkpoint, checkpoint_to)
    began = time.monotonic()
    scores = {} if result.diverged else evaluate(decoder, data, config)
    # Finite weights may still overflow on text that training did not see.
    diverged = result.diverged or not all(math.isfinite(s.value) for s in scores.values())
    return ProxyResult(
        scores={} if diverged else scores,
        losses=thinned(result.losses),
        num_tokens=result.num_tokens,
        diverged=diverged,
        learning_rate=training.learning_rate,
        seconds_train=result.seconds,
        seconds_eval=time.monotonic() - began,
    )


def evaluate(decoder: Decoder, data: ProxyData, config: ProxyConfig) -> dict[str, Score]:
    """Scores on held-out text and on each task's test examples, the same for every trial."""
    training = config.training
    windows_NT = bits_per_byte.windows(data.heldout_T, config.num_text_windows, training.seq_len)
    scores = {TEXT: bits_per_byte.measure(decoder, windows_NT, data.num_bytes_V, 32)}
    model = DecoderModel(decoder, batch_size=128)
    for name, (task, first_id) in data.tasks.items():
        scores[name] = task.run(
            Shifted(model, first_id, task.vocab_size), limit=config.tasks[name].num_eval
        )
    return scores


def thinned(losses: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """At most `KEPT_LOSSES` of the finite losses, evenly spread, with the first and the last."""
    losses = tuple(entry for entry in losses if math.isfinite(entry[1]))
    if len(losses) <= KEPT_LOSSES:
        return losses
    kept = np.linspace(0, len(losses) - 1, KEPT_LOSSES).round().astype(int)
    return tuple(losses[i] for i in kept)


def _batch(examples: Examples, first_id: int, weight: float) -> Batch:
    targets_NT = np.where(examples.targets_NT == IGNORE, IGNORE, examples.targets_NT + first_id)
    return Batch(torch.from_numpy(examples.ids_NT + first_id), torch.from_numpy(targets_NT), weight)


def _tokens(file: Path, tokenizer: tokenizers.Tokenizer, documents: list[str]) -> NDArray[np.int32]:
    """Tokens of documents, from the cache or encoded."""
    content = read_checked(file)
    if content is not None:
        cached: NDArray[np.int32] = np.load(io.BytesIO(content), allow_pickle=False)
        return cached
    tokens_T = tokenizer.encode_documents(documents)
    buffer = io.BytesIO()
    np.save(buffer, tokens_T, allow_pickle=False)
    write_checked(file, buffer.getvalue())
    return tokens_T
