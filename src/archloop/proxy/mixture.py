"""What proxies are trained on: text and tasks, whose tokens have ids of their own after the text's.

`prepare` turns a corpus into tokens once, on disk; `batches_of_step` draws what a step trains on.
Each task has a range of ids of its own, so that a token never means one thing in one task and
another in the next.

Shape suffixes: B batch, T time, N examples, V vocabulary.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from archloop.errors import UserError
from archloop.evals import bits_per_byte, suites
from archloop.evals.base import IGNORE, Examples, Split, Task
from archloop.proxy.config import ProxyConfig, Setting, TaskShare
from archloop.text import corpora, encoded, tokenizers
from archloop.training.batch import Batch, random_windows
from archloop.training.loop import MAX_STEP_TOKENS

MAX_EVAL_TOKENS = 2**25
"""Tokens of a task's test examples of one length, all drawn before the first is scored."""


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
        tokenizer: of the text; None where token ids are all there is.
    """

    vocab_size: int
    text_vocab_size: int
    tasks: dict[str, tuple[Task, int]]
    train_T: NDArray[np.int32]
    heldout_T: NDArray[np.int32]
    num_bytes_V: NDArray[np.int64]
    digest: str
    tokenizer: tokenizers.Tokenizer | None = None


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
        _mixable(name, share, config.lengths).vocab_size for name, share in config.tasks.items()
    )


def _mixable(name: str, share: TaskShare, lengths: tuple[int, ...]) -> Task:
    task = make_task(name, share.settings)
    if not task.in_mixture:
        why = "" if task.head == "next_token" else "needs a head of its own and "
        raise UserError(
            f"tasks.{name} {why}cannot be trained in a mixture with text; "
            "remove it, or run it by archloop eval --suite mad"
        )
    length = task.config.seq_len
    # As many examples are drawn at each of the lengths, so the longest decide.
    limits = {
        "batch_size": (length, MAX_STEP_TOKENS),
        "num_eval": (length * max(lengths), MAX_EVAL_TOKENS),
    }
    for key, (row, most) in limits.items():
        if getattr(share, key) * row > most:
            raise UserError(
                f"tasks.{name}.{key}={getattr(share, key)}: its examples of {row} "
                f"tokens fill the memory; allowed: 1 to {most // row}"
            )
    splits: tuple[Split, ...] = ("train", "test")
    try:
        for split in splits:
            task.examples(split, 0, 1)
        for factor in lengths:
            task.at_length(factor).examples("test", 0, 1)
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
    train_T, heldout_T = encoded.encode(corpus, tokenizer, cache_dir)
    seq_len = config.training.seq_len
    for factor in config.lengths:
        bits_per_byte.windows(heldout_T, config.num_text_windows, seq_len * factor)
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
        tokenizer,
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


def _batch(examples: Examples, first_id: int, weight: float) -> Batch:
    targets_NT = np.where(examples.targets_NT == IGNORE, IGNORE, examples.targets_NT + first_id)
    return Batch(torch.from_numpy(examples.ids_NT + first_id), torch.from_numpy(targets_NT), weight)
