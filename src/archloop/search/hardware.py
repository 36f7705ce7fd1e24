"""The evaluator of real studies: devices are measured, proxies trained, each in its own process."""

import platform
import queue
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from archloop.devices.host import training_claims
from archloop.devices.lease import held
from archloop.errors import UserError
from archloop.files import usable_cache_dir
from archloop.profiling import extend, profile, profile_from_samples, read_samples
from archloop.profiling.config import ProfileConfig
from archloop.profiling.nursery import Nursery
from archloop.profiling.protocol import ChangedIdentityError
from archloop.profiling.record import Profile
from archloop.profiling.target import Target
from archloop.proxy import mixture
from archloop.proxy.record import Rung, TrainJob
from archloop.proxy.trainer import Trainer
from archloop.proxy.worker import Train
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed, Unsupported
from archloop.search.executors.places import places, training_threads, wants_mps
from archloop.search.meter import waited_for
from archloop.search.recipe.recipe import Recipe
from archloop.search.revision import revision
from archloop.stack.spec import StackSpec
from archloop.store.stages import Profiled
from archloop.version import __version__
from archloop.workers.cancelling import POLL_S, check, is_cancelled
from archloop.workers.deaths import WorkerError
from archloop.workers.mps import Mps, MpsError

_PACKAGES = ("torch", "numpy", "optuna", "moocore", "pydantic")


class _Place(NamedTuple):
    """Where one training runs at a time.

    Attributes:
        device: in PyTorch's words.
        trainer: the process that trains there.
    """

    device: str
    trainer: Trainer


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
        self._all_places: list[_Place] = []
        self._places: queue.Queue[_Place] = queue.Queue()
        self._lay_out()

    def _lay_out(self) -> None:
        """A place for each training at once, its process not started yet."""
        limit_s = self._recipe.time_limits.train_s
        self._all_places = [
            _Place(name, Trainer(limit_s, mps=self._mps if name.startswith("cuda") else None))
            for name in places(self._recipe)
        ]
        self._places = queue.Queue()
        for place in self._all_places:
            self._places.put(place)

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
        profiles, left_out = {}, {}
        for name, target in self._recipe.targets.items():
            try:
                with waited_for(held(target.claims(), cancelled=is_cancelled)):
                    profiles[name] = self._profile(
                        target, config, spec, reference, look, directory / name
                    )
            except Unsupported as reason:
                if not target.optional:
                    raise Unsupported(f"{name}: {reason}") from reason
                left_out[name] = str(reason)
        return Profiled(profiles=profiles, left_out=left_out)

    def train(self, job: TrainJob, directory: Path) -> Rung:
        """As `Evaluator.train`."""
        with (
            waited_for(self._free_place()) as place,
            waited_for(held(training_claims(place.device), cancelled=is_cancelled)),
        ):
            return self._train(job, directory, place)

    @contextmanager
    def _free_place(self) -> Iterator["_Place"]:
        """One that is free, waited for."""
        while True:
            try:
                place = self._places.get(timeout=POLL_S)
                break
            except queue.Empty:
                check()
        try:
            yield place
        finally:
            self._places.put(place)

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

    def _profile(
        self,
        target: Target,
        config: ProfileConfig,
        spec: StackSpec,
        reference: StackSpec,
        look: int,
        directory: Path,
    ) -> Profile:
        try:
            samples = read_samples(directory)
        except ValueError:
            samples = None
        wanted = (spec, reference, target, config)
        if samples is not None and wanted == (
            samples.spec,
            samples.reference,
            samples.target,
            samples.config,
        ):
            looks, found = samples.looks, profile_from_samples(samples)
        else:
            shutil.rmtree(directory, ignore_errors=True)
            looks, found = 0, None
        try:
            if found is None:
                looks = 1
                found = profile(
                    spec,
                    target,
                    config,
                    reference=reference,
                    directory=directory,
                    artifacts=self._artifacts,
                    nursery=self._nursery,
                )
            # Samples of an earlier look may be lost: then this one takes as many as both had.
            for _ in range(looks, look):
                found = extend(directory, artifacts=self._artifacts, nursery=self._nursery)
            return found
        except ChangedIdentityError as error:
            raise StudyError(
                f"another look would not compare with those before: {error}; go back to what it "
                "was, or start a study of another name"
            ) from error
        except WorkerError as error:
            if error.cause == "unsupported" and error.role == "candidate":
                raise Unsupported(f"{target.runtime}: {error.detail}") from error
            raise CandidateFailed(f"profiling: {error}", error.cause) from error
