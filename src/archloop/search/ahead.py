"""Candidates' artifacts made ahead, on a card on which nobody measures.

An export compiles kernels and compares logits: of a short measurement on a card that is the larger
part, and none of it needs the target's card for itself. Where trainings have another card of the
same kind, exports share that one with them, and the target's is held for timing alone. What was
compiled there is found again in the compilers' caches on disk.
"""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from archloop import registry
from archloop.devices.base import Accelerator
from archloop.devices.choice import DeviceChoice
from archloop.devices.host import card_index, card_of, training_claims
from archloop.devices.lease import Wait, held, is_free
from archloop.errors import UserError
from archloop.profiling.config import ProfileConfig
from archloop.profiling.nursery import Nursery
from archloop.profiling.protocol import prepare
from archloop.profiling.target import Target
from archloop.scratch import Scratch
from archloop.search.meter import waited_for
from archloop.stack import cost
from archloop.stack.spec import StackSpec
from archloop.workers.cancelling import is_cancelled
from archloop.workers.deaths import WorkerError

AT_ONCE = 2
"""Exports: each compiles on several cores, beside which a card is being measured."""
_BYTES = 8
"""Of an export per parameter: float32 weights and two copies in bfloat16."""
_MOST_FAILURES = 2
"""In a row, after which exports are left to the measurements."""


class Ahead:
    """Makes artifacts ahead where that can be done.

    Args:
        targets: of the study.
        places: devices of trainings, in PyTorch's words.
        nursery: starts the exporting processes.
        threads: of each.
        folder: that artifacts are made in.
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        places: tuple[str, ...],
        nursery: Nursery,
        threads: int,
        folder: Path,
    ) -> None:
        self._targets, self._places = targets, dict.fromkeys(places)
        self._nursery, self._threads, self._folder = nursery, threads, folder
        self._few = threading.BoundedSemaphore(AT_ONCE)
        self._failures = 0

    @contextmanager
    def made(
        self, name: str, spec: StackSpec, config: ProfileConfig, logs: Path
    ) -> Iterator[Path | None]:
        """A folder with the candidate's artifact, for the time of its measurement.

        Args:
            name: of the target.
            spec: the candidate.
            config: how it will be measured.
            logs: folder of the exporting process's log.

        Returns:
            The folder; None where the measurement has to export for itself.

        Raises:
            WorkerError: the candidate cannot be exported, wherever that is tried.
        """
        place = self._place(self._targets[name], spec)
        if place is None:
            yield None
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with Scratch("ahead", self._folder) as folder:
            with waited_for(self._turn()):
                # Whoever measures there may do so for long, and this target's own card be idle.
                if is_free(training_claims(place)):
                    self._make(name, spec, config, place, Path(folder), logs)
            yield Path(folder)

    def _make(
        self,
        name: str,
        spec: StackSpec,
        config: ProfileConfig,
        place: str,
        folder: Path,
        logs: Path,
    ) -> None:
        device = DeviceChoice.model_validate({"name": "host", "gpu": card_index(place)})
        try:
            with waited_for(held(training_claims(place), cancelled=is_cancelled)):
                prepare(
                    spec,
                    self._targets[name],
                    config,
                    made=folder,
                    logs=logs,
                    device=device.open(),
                    threads=self._threads,
                    nursery=self._nursery,
                )
            self._failures = 0
        except WorkerError as error:
            if error.cause in ("unsupported", "disk"):
                raise
            # Beside trainings it may have lacked memory or time. The measurement exports once
            # more, with its card to itself, and what fails then has failed.
            self._failures += 1
            warnings.warn(f"an export beside trainings failed: {error}", stacklevel=2)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One of the exports at once, waited for."""
        wait = Wait("a turn to export", cancelled=is_cancelled)
        while not self._few.acquire(blocking=False):
            wait.once()
        wait.over()
        try:
            yield
        finally:
            self._few.release()

    def _place(self, target: Target, spec: StackSpec) -> str | None:
        """The training device that is a card like the target's, none of a target's, and has room.

        What an export takes of its memory leaves three quarters to trainings.
        """
        if not registry.get("runtimes", target.runtime).on_card:
            return None
        if self._failures >= _MOST_FAILURES:
            return None
        measured = {card_of(each.claims()) for each in self._targets.values()}
        own, needed = _card(card_of(target.claims())), AT_ONCE * _BYTES * cost.num_params(spec)
        for place in self._places:
            index = card_index(place)
            if index is None or index in measured:
                continue
            card = _card(index)
            if own is not None and card == own and needed <= (card.memory_bytes or 0) / 4:
                return place
        return None


def _card(index: int | None) -> Accelerator | None:
    """What this machine has at an index; None where there is no such card."""
    if index is None:
        return None
    device = DeviceChoice.model_validate({"name": "host", "gpu": index}).open()
    try:
        cards = device.describe().accelerators
    except UserError:
        return None
    return cards[0] if cards else None
