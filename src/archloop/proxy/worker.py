"""Proxy trainings in a process of their own: ``python -m archloop.proxy.worker`` is that process.

Loading PyTorch, meeting a graphics card and reading the corpus take longer than a short training,
so the process lives on and trains what it is asked next. Each training must find what a new process
would find: random generators are set, memory is given back, and the answer names every setting of
the process that the training left changed. `proxy.trainer` is the other side.
"""

import random
from pathlib import Path
from typing import Literal

from archloop.proxy.config import ProxyConfig
from archloop.proxy.mixture import ProxyData, prepare
from archloop.proxy.proxy import train_and_score
from archloop.proxy.record import Rung, TrainJob
from archloop.proxy.settings import changed, settings
from archloop.workers import heap
from archloop.workers.messages import Message, Request
from archloop.workers.serve import serve


class Trained(Message):
    """What came of a job.

    Attributes:
        left: settings of the process that differ from what they were before the job; a process
            with any is of no use to another job.
    """

    rung: Rung
    left: tuple[str, ...] = ()


class Train(Request[Trained]):
    """Train and score a proxy.

    Attributes:
        config: the recipe's.
        root: folder that the corpus's relative paths start from.
        cache_dir: of tokenizers and tokens; None: the user's.
        threads: for PyTorch.
    """

    command: Literal["train"] = "train"
    job: TrainJob
    config: ProxyConfig
    root: Path
    cache_dir: Path | None = None
    threads: int


class _Worker:
    """Trains one job after another; what jobs share is prepared once."""

    def __init__(self) -> None:
        self._prepared: tuple[object, ProxyData] | None = None

    def train(self, asked: Train) -> Trained:
        """Train and score a proxy as a new process would, and clear up behind it."""
        import torch

        torch.set_num_threads(asked.threads)
        _seed()
        before = settings()
        rung = train_and_score(asked.job, self._data(asked), asked.config)
        # Objects that refer to each other in a circle are freed by Python's collector only; until
        # then a training's tensors would add to the next one's peak memory.
        heap.free()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return Trained(rung=rung, left=changed(before, settings()))

    def _data(self, asked: Train) -> ProxyData:
        """Of this job, or of the one before if they read the same."""
        shared = asked.config.model_copy(update={"rungs": (1,), "device": "cpu"})
        key = (shared, asked.root, asked.cache_dir)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None
            self._prepared = key, prepare(asked.config, asked.cache_dir, asked.root)
        return self._prepared[1]


def _seed() -> None:
    """The same random numbers for whoever draws without a generator of its own."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


if __name__ == "__main__":
    serve({Train: _Worker().train})
