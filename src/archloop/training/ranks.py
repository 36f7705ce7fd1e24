"""Processes that train one model together, by PyTorch's own distributed training.

Each computes the gradients of its rows of a step; they are averaged while they come about
(`DistributedDataParallel`), so that each process takes the step that one process would have taken
with the whole batch. What only one may decide or write, such as when to keep a state, is up to the
first. The processes are torchrun's, or started by `together`.
"""

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from archloop.errors import UserError
from archloop.scratch import Scratch
from archloop.training.batch import Batch, Batches, Loss

Value = TypeVar("Value")


class Ranks:
    """This process among those that train together.

    Attributes:
        index: from 0; the first one writes.
        count: of all of them.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.index == 0

    def own(self, batches: Batches) -> Batches:
        """This process's rows of each batch, whose number all processes divide."""
        if self.count == 1:
            return batches

        return lambda step: [self._rows(batch) for batch in batches(step)]

    def _rows(self, batch: Batch) -> Batch:
        each, rest = divmod(len(batch.ids_BT), self.count)
        assert not rest, "the rows of a batch are shared evenly"
        own = slice(self.index * each, (self.index + 1) * each)
        return Batch(batch.ids_BT[own], batch.targets_BT[own], batch.weight)

    def shared(self, model: nn.Module, loss: Loss) -> Loss:
        """The loss of this process's rows, whose gradients become the mean over all processes.

        It is the loss of the whole batch where each row has as many scored positions.
        """
        if self.count == 1:
            return loss
        # Buffers follow from steps that are the same everywhere, but loads of experts, which each
        # process counts by itself. What keeps them apart has another name in newer PyTorch.
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False}
        module = DistributedDataParallel(_LossOf(model, loss), **options)
        return lambda _, batch: module(batch.ids_BT, batch.targets_BT)

    def mean(self, value: float, device: torch.device) -> float:
        """The mean of every process's value; not finite if one of them is not."""
        if self.count == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(held)
        return float(held) / self.count

    def agreed(self, decide: Callable[[], Value]) -> Value:
        """What the first process decides or raises, in all of them."""
        if self.count == 1:
            return decide()
        held: list[Any] = [None, None]
        if self.is_first:
            try:
                held[0] = decide()
            except UserError as error:
                held[1] = str(error)
        distributed.broadcast_object_list(held)
        if held[1] is not None:
            raise UserError(held[1])
        decided: Value = held[0]
        return decided


ALONE = Ranks()
"""A training by one process."""


class _LossOf(nn.Module):
    """A model together with its loss, which is what a step differentiates."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean loss of the rows."""
        return self.loss(self.model, Batch(ids_BT, targets_BT))


def of_torchrun() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_index() -> int:
    """Which of torchrun's processes on this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(
    device: torch.device, rank: int = -1, count: int = -1, meet: str = ""
) -> Iterator[Ranks]:
    """A member of the group of processes, until the block ends.

    Args:
        device: that this process computes on.
        rank: of this process; by default torchrun says it, and the next two.
        count: of processes.
        meet: where they find each other, as PyTorch's `init_method`.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=meet or None, rank=rank, world_size=count)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def together(work: Callable[[Ranks, torch.device], None], devices: Sequence[torch.device]) -> None:
    """Start a process for each device, have all of them do a piece of work, and wait.

    Args:
        work: can be pickled, as can all that it holds.
        devices: one process each.

    Raises:
        UserError: a process raised it, or died.
    """
    from torch import multiprocessing
    from torch.multiprocessing.spawn import ProcessException, spawn

    start: Any = spawn

    # Who reads the error that ended one process need not hear that the others were ended for it.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    failures = multiprocessing.get_context("spawn").SimpleQueue()
    with Scratch("ranks") as folder:
        meet = (Path(folder) / "meeting").as_uri()
        try:
            start(_member, (work, list(devices), meet, failures), len(devices), daemon=True)
        except ProcessException as error:
            if not failures.empty():
                raise UserError(failures.get()) from error
            line = str(error).strip().splitlines()[-1]
            where = devices[error.error_index]
            raise UserError(f"training on {where} ended: {line}; run the command again") from error


def _member(
    index: int,
    work: Callable[[Ranks, torch.device], None],
    devices: Sequence[torch.device],
    meet: str,
    failures: Any,
) -> None:
    """One process of `together`."""
    device = devices[index]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Processes of one machine meet there, whatever its name is or is not known as.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        with joined(device, index, len(devices), meet) as ranks:
            work(ranks, device)
    except UserError as error:
        failures.put(str(error))
        raise SystemExit(1) from error
