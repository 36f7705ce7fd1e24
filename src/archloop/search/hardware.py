"""The evaluator of real studies: devices are measured, proxies trained, each in its own process."""

import platform
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from archloop import registry
from archloop.devices.host import training_claims
from archloop.devices.lease import LeaseCancelledError, Wait, exclude, held
from archloop.errors import UserError
from archloop.files import usable_cache_dir
from archloop.profiling import extend, profile, profile_from_samples, read_samples
from archloop.profiling.config import ProfileConfig
from archloop.profiling.nursery import Nursery
from archloop.profiling.protocol import ChangedIdentityError, is_of_other_code
from archloop.profiling.record import Profile
from archloop.profiling.samples import Samples
from archloop.profiling.target import Target
from archloop.proxy import mixture
from archloop.proxy.record import Rung, TrainJob
from archloop.proxy.trainer import Trainer
from archloop.proxy.worker import Train
from archloop.runtimes.base import Runtime
from archloop.search import gate
from archloop.search.ahead import Ahead
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed, Unsupported
from archloop.search.executors.places import places, training_threads, wants_mps
from archloop.search.meter import waited_for
from archloop.search.recipe.recipe import Recipe
from archloop.search.revision import revision
from archloop.stack.spec import StackSpec
from archloop.store.stages import Profiled
from archloop.version import __version__
from archloop.workers.cancelling import is_cancelled
from archloop.workers.deaths import WorkerError
from archloop.workers.mps import Mps, MpsError

IN_LINE_S = 5.0
"""How long a training looks for a free device before it stands in line at one."""
_PACKAGES = ("torch", "numpy", "optuna", "moocore", "pydantic")


class _Place(NamedTuple):
    """Where one training runs at a time.

    Attributes:
        device: in PyTorch's words.
        trainer: the process that trains there.
        is_measured: whether a target is measured on the same card.
    """

    device: str
    trainer: Trainer
    is_measured: bool


class _Wanted(NamedTuple):
    """What is measured, beside what, on what and how."""

    spec: StackSpec
    reference: StackSpec | None
    target: Target
    config: ProfileConfig


class HardwareEvaluator:
    """Measures and trains as a recipe says.

    Args:
        recipe: of the study.
        artifacts: folder for exports that are used again, such as the reference preset's, and
            for tokens where the user's cache cannot be written.
    """

    def __init__(self, recipe: Recipe, artifacts: Path) -> None:
        self._recipe = recipe
        self._artifacts = artifacts
        self._cache = usable_cache_dir(artifacts / "cache")
        self._threads = training_threads(recipe)
        self._nursery = Nursery()
        self._mps: Mps | None = None
        self._ahead = Ahead(
            recipe.targets, places(recipe), self._nursery, self._threads, artifacts / "ahead"
        )
        self._all_places: list[_Place] = []
        self._idle: list[_Place] = []
        self._choosing = threading.Lock()
        self._lay_out()

    def _lay_out(self) -> None:
        """A place for each training at once, its process not started yet."""
        limit_s = self._recipe.time_limits.train_s
        measured = [target.claims() for target in self._recipe.targets.values()]
        self._all_places = [
            _Place(
                name,
                Trainer(limit_s, mps=self._mps if name.startswith("cuda") else None),
                any(exclude(training_claims(name), claims) for claims in measured),
            )
            for name in places(self._recipe)
        ]
        self._idle = list(self._all_places)

    def _share_cards(self) -> str:
        """Have trainings share their cards through MPS, where they are to.

        Returns:
            Whether they do, in words.

        Raises:
            UserError: the recipe insists, and they cannot.
        """
        if self._mps is not None or not wants_mps(self._recipe):
            return "off" if self._mps is None else "on"
        try:
            self._mps = Mps()
        except MpsError as error:
            if self._recipe.executor.cuda_mps:
                raise UserError(
                    f"executor.cuda_mps: {error}; leave it out to go on without"
                ) from error
            warnings.warn(f"trainings take turns at a card, without MPS: {error}", stacklevel=2)
            return f"off: {error}"
        self._lay_out()
        return "on"

    def prepare(self) -> dict[str, Any]:
        """As `Evaluator.prepare`."""
        try:
            data = mixture.prepare(self._recipe.proxy, self._cache, self._recipe.root)
        except UserError as error:
            raise UserError(f"proxy.corpus: {error}") from error
        targets = {
            name: self._described(name, target) for name, target in self._recipe.targets.items()
        }
        return {
            "archloop": __version__,
            **({} if (commit := revision()) is None else {"commit": commit}),
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            "targets": targets,
            "corpus": data.digest,
            "vocab_size": data.vocab_size,
            "training_threads": self._threads,
            "cuda_mps": self._share_cards(),
            "seed": self._recipe.seed,
        }

    def _described(self, name: str, target: Target) -> dict[str, Any]:
        try:
            return target.device.open().describe().model_dump(mode="json")
        except UserError as error:
            raise UserError(f"targets.{name}: {error}") from error

    def profile(
        self,
        spec: StackSpec,
        reference: StackSpec,
        look: int,
        directory: Path,
        processes: int | None = None,
    ) -> Profiled:
        """As `Evaluator.profile`."""
        config = self._recipe.profile
        if processes is not None:
            config = config.model_copy(update={"processes": processes})
        self._refuse(spec)
        profiles, left_out = {}, {}
        for name, target in self._recipe.targets.items():
            wanted = _Wanted(spec, reference, target, config)
            try:
                profiles[name] = self._profile(name, wanted, look, directory / name)
            except Unsupported as reason:
                if not target.optional:
                    raise Unsupported(f"{name}: {reason}") from reason
                left_out[name] = str(reason)
            # What the targets after it say of a stack that breaks a budget would change nothing and
            # take most of the time. The reference preset is measured on all: others are compared to
            # it there.
            if spec != reference and gate.breaks(
                profiles, self._recipe.budgets, look, self._recipe.looks
            ):
                break
        return Profiled(profiles=profiles, left_out=left_out)

    def train(self, job: TrainJob, directory: Path) -> Rung:
        """As `Evaluator.train`."""
        with waited_for(self._place()) as place:
            return self._train(job, directory, place)

    @contextmanager
    def _place(self) -> Iterator["_Place"]:
        """An idle one, its device held to train on, waited for."""
        wait = Wait("a place to train", cancelled=is_cancelled)
        with ExitStack() as stack:
            while (chosen := self._chosen(wait.lasted > IN_LINE_S, stack)) is None:
                wait.once()
            wait.over()
            place, is_held = chosen
            try:
                if not is_held:
                    claims = training_claims(place.device)
                    stack.enter_context(held(claims, cancelled=is_cancelled))
                yield place
            finally:
                self._idle.append(place)

    def _chosen(self, in_line: bool, stack: ExitStack) -> "tuple[_Place, bool] | None":
        """A place, idle no more, and whether the stack holds its device; None if there is none now.

        Of several devices one that is free, best one on which nothing is measured: a device on
        which many are measured in turn would be waited for while places on another fall idle. The
        only device has to be waited for in line, and so has any `in_line`, lest others that do so
        always come before.
        """
        one = len({place.device for place in self._all_places}) == 1
        with self._choosing:
            idle = sorted(self._idle, key=lambda place: place.is_measured)
            for place in () if one else idle:
                with suppress(LeaseCancelledError):
                    claims = training_claims(place.device)
                    stack.enter_context(held(claims, cancelled=lambda: True))
                    self._idle.remove(place)
                    return place, True
            if not idle or not (one or in_line):
                return None
            self._idle.remove(idle[0])
            return idle[0], False

    def _train(self, job: TrainJob, directory: Path, place: "_Place") -> Rung:
        asked = Train(
            job=job,
            config=self._recipe.proxy.model_copy(update={"device": place.device}),
            root=self._recipe.root,
            cache_dir=self._cache,
            threads=self._threads,
        )
        try:
            return place.trainer.train(asked, directory)
        except WorkerError as error:
            raise CandidateFailed(f"training: {error}", error.cause) from error

    def close(self) -> None:
        """As `Evaluator.close`: trainers live on between jobs, the rest ended with its call."""
        for place in self._all_places:
            place.trainer.close()
        if self._mps is not None:
            self._mps.close()
        self._nursery.close()

    def _refuse(self, spec: StackSpec) -> None:
        """Raise Unsupported for what a required target cannot run, before any is measured on."""
        for name, target in self._recipe.targets.items():
            runtime: Runtime = registry.get("runtimes", target.runtime)()
            reason = None if target.optional else runtime.unsupported(spec)
            if reason is not None:
                raise Unsupported(f"{name}: {target.runtime}: {reason}")

    def _profile(self, name: str, wanted: _Wanted, look: int, directory: Path) -> Profile:
        """Figures of as many looks as asked for; those that there are are not taken again."""
        samples = _samples(wanted, directory)
        if samples is not None and samples.looks >= look:
            return profile_from_samples(samples)
        if samples is None or is_of_other_code(samples):
            # Of other graphs than a further look would be: all looks are taken anew.
            samples = None
            shutil.rmtree(directory, ignore_errors=True)
        # The reference's own artifact is kept, and made where it is kept.
        ahead = (
            nullcontext()
            if wanted.spec == wanted.reference
            else self._ahead.made(name, wanted.spec, wanted.config, directory / "logs")
        )
        try:
            with (
                ahead as made,
                waited_for(held(wanted.target.claims(), cancelled=is_cancelled)),
            ):
                return self._measured(wanted, samples, look, directory, made)
        except ChangedIdentityError as error:
            raise StudyError(
                f"another look would not compare with those before: {error}; go back to what "
                "it was, or start a study of another name"
            ) from error
        except WorkerError as error:
            if error.cause == "unsupported" and error.role == "candidate":
                raise Unsupported(f"{wanted.target.runtime}: {error.detail}") from error
            if error.cause == "unsupported" and error.role == "reference":
                # It was measured before, so what it lacks now every candidate would be blamed for.
                raise StudyError(
                    f"{name}: the reference cannot be measured any more: {error.detail}; once "
                    "that is mended, the same command goes on"
                ) from error
            raise CandidateFailed(f"profiling: {error}", error.cause) from error

    def _measured(
        self,
        wanted: _Wanted,
        samples: Samples | None,
        look: int,
        directory: Path,
        made: Path | None,
    ) -> Profile:
        found, looks = None, 0 if samples is None else samples.looks
        # Samples of an earlier look may be lost: then this one takes as many as both had.
        for index in range(looks, look):
            if index:
                found = extend(
                    directory, artifacts=self._artifacts, made=made, nursery=self._nursery
                )
                continue
            found = profile(
                wanted.spec,
                wanted.target,
                wanted.config,
                reference=wanted.reference,
                directory=directory,
                artifacts=self._artifacts,
                made=made,
                nursery=self._nursery,
            )
        assert found is not None
        return found


def _samples(wanted: _Wanted, directory: Path) -> Samples | None:
    """What was measured of this very thing."""
    try:
        found = read_samples(directory)
    except ValueError:
        return None
    own = _Wanted(found.spec, found.reference, found.target, found.config)
    return found if own == wanted else None
