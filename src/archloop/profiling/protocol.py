"""The measuring protocol: fresh processes, the reference beside the candidate, every sample kept.

    >>> from archloop import load_preset
    >>> from archloop.profiling import Target, profile
    >>> target = Target(runtime="torch_eager", contexts=(1024,))
    >>> profile(load_preset("lfm2-350m"), target, directory=Path("out"))  # doctest: +SKIP

How each number comes about is told in `docs/methodology.md`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path

from archloop import registry
from archloop.devices.base import Device, DeviceError, DeviceInfo
from archloop.devices.choice import DeviceChoice
from archloop.profiling.artifacts import Exporting, Wanted, held_artifacts, plugin_folders, writing
from archloop.profiling.config import ProfileConfig
from archloop.profiling.nursery import Nursery
from archloop.profiling.record import Identity, Profile
from archloop.profiling.samples import PairSamples, Samples, read_samples
from archloop.profiling.summary import load_flags, profile_from_samples, spare_cores
from archloop.profiling.target import Target
from archloop.profiling.turns import Subject, foreseen_work, measure_context, start, wait_started
from archloop.runtimes.artifact import Manifest
from archloop.runtimes.base import Runner, Runtime
from archloop.stack.spec import StackSpec
from archloop.workers.deaths import Role, WorkerError
from archloop.workers.forking import ForkedProcess
from archloop.workers.process import WorkerProcess
from archloop.workers.wire import Memory

Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and what is being done."""


class ChangedIdentityError(ValueError):
    """A measurement cannot be added to: what it was taken on is not the same any more."""


def profile(
    spec: StackSpec,
    target: Target,
    config: ProfileConfig | None = None,
    *,
    reference: StackSpec | None = None,
    directory: Path,
    artifacts: Path | None = None,
    made: Path | None = None,
    progress: Progress | None = None,
    nursery: Nursery | None = None,
) -> Profile:
    """Measure a spec with random weights on a target, beside a reference if one is given.

    Args:
        spec: the candidate; equal to `reference` in an A/A run.
        target: what to measure on.
        config: how to measure; the defaults if None.
        reference: measured in the same run, for ratios.
        directory: gets `samples.json`, and logs of processes that had something to say.
        artifacts: folder of artifacts to use; the reference's is added to it for later runs, the
            candidate's only for this one. By default nothing is kept.
        made: folder in which `prepare` put the candidate's artifact; by default it is exported.
        progress: called as work is done.
        nursery: starts the processes; one for this measurement alone if None.

    Raises:
        ValueError: the target names an unknown device, runtime or quantisation, or one that lacks
            something; the message says what to install.
        WorkerError: the runtime cannot run a spec, or a process crashed, hung or ran out of
            memory; it says which one and how.
    """
    config = config or ProfileConfig.model_validate({})
    measurement = _Measurement(
        spec, target, config, reference, directory, artifacts, made, progress
    )
    samples = measurement.measure(first_pair=0, num_pairs=config.processes, nursery=nursery)
    samples.write(directory)
    return profile_from_samples(samples)


def extend(
    directory: Path,
    processes: int | None = None,
    *,
    artifacts: Path | None = None,
    made: Path | None = None,
    progress: Progress | None = None,
    nursery: Nursery | None = None,
) -> Profile:
    """Another look: add fresh processes to a measurement whose interval straddles a budget.

    Whoever looks again until the answer pleases gets intervals that lie: how many looks there may
    be, and what each may decide, is settled beforehand (`ranking.looks`).

    Args:
        directory: of `profile`.
        processes: how many more; by default as many as a look has.
        artifacts: as `profile`.
        made: as `profile`.
        progress: as `profile`.
        nursery: as `profile`.

    Raises:
        ValueError: there are no samples.
        ChangedIdentityError: the device, the engine or the like is no longer the same, or other
            code exports the graphs, which may then be others.
        WorkerError: as `profile`.
    """
    old = read_samples(directory)
    measurement = _Measurement(
        old.spec, old.target, old.config, old.reference, directory, artifacts, made, progress
    )
    if is_of_other_code(old):
        raise ChangedIdentityError(
            f"{directory}: its graphs were exported by other code ({old.written_by}); measure anew"
        )
    count = processes or old.config.processes
    new = measurement.measure(first_pair=len(old.pairs), num_pairs=count, nursery=nursery)
    if new.identity != old.identity:
        raise ChangedIdentityError(f"{directory}: {old.identity.changes(new.identity)}")
    changes = {
        "pairs": old.pairs + new.pairs,
        "disturbed": old.disturbed + new.disturbed,
        "looks": old.looks + 1,
        "seconds": old.seconds + new.seconds,
    }
    samples = old.model_copy(update=changes)
    samples.write(directory)
    return profile_from_samples(samples)


def is_of_other_code(samples: Samples) -> bool:
    """Whether the same engine would now be given other graphs than those that were measured.

    Another version of the engine is another identity, and no matter of this.
    """
    runtime: Runtime = registry.get("runtimes", samples.target.runtime)()
    version = samples.identity.runtime_version.partition(", run by ")[0]
    return version == runtime.version() and samples.written_by not in (None, writing(runtime))


def noise_floor(
    spec: StackSpec,
    target: Target,
    config: ProfileConfig | None = None,
    *,
    directory: Path,
    progress: Progress | None = None,
) -> Profile:
    """An A/A run: the spec beside itself, one sample of the noise.

    Its ratios would all be 1 without noise. Of a few processes its intervals are themselves
    uncertain: from 4 they are between a third and 1.6 times as wide as the noise is. Arguments and
    errors as `profile`.
    """
    return profile(spec, target, config, reference=spec, directory=directory, progress=progress)


def prepare(
    spec: StackSpec,
    target: Target,
    config: ProfileConfig,
    *,
    made: Path,
    logs: Path,
    device: Device,
    threads: int,
    nursery: Nursery,
) -> None:
    """Export a candidate ahead of `profile` or `extend`, on another part of this machine.

    What a measurement compiles is compiled here already, so that the target's own device is held
    for timing alone. Worth it where that part is like the target's: a card of the same kind.

    Args:
        spec: the candidate.
        target: that it will be measured on.
        config: how it will be measured.
        made: folder that gets the artifact.
        logs: folder of the exporting process's log.
        device: where to export.
        threads: of the exporting process.
        nursery: starts the process.

    Raises:
        WorkerError: as `profile`.
    """
    runtime: Runtime = registry.get("runtimes", target.runtime)()
    if reason := runtime.unsupported(spec):
        raise WorkerError("unsupported", reason, "candidate")
    wanted = Wanted({"candidate": spec}, target, config.seed, config.time_limit_s, logs)
    run = partial(nursery.run, device, runtime) if config.forks(runtime.on_card) else None
    exporting = Exporting(device, run, threads, target.contexts, config.room)
    exporting.export(wanted, "candidate", made / wanted.name("candidate"))


class _Measurement:
    """One call of `profile` or `extend`: device, runtime, artifacts, then pair after pair."""

    def __init__(
        self,
        spec: StackSpec,
        target: Target,
        config: ProfileConfig,
        reference: StackSpec | None,
        directory: Path,
        artifacts: Path | None,
        made: Path | None,
        progress: Progress | None,
    ) -> None:
        self.started_s = time.monotonic()
        self.specs: dict[Role, StackSpec] = {"candidate": spec}
        if reference is not None:
            self.specs["reference"] = reference
        self.target = target
        self.config = config
        self.directory = directory
        self.kept, self.made = artifacts, made
        self.progress = progress or (lambda share, doing: None)
        target.check()
        self.device = target.device.open()
        self.runtime: Runtime = registry.get("runtimes", target.runtime)()
        self.about = _described(self.device)
        self.threads = target.threads or self.about.num_cores
        self.engine: str | None = None
        self._check()

    def measure(self, first_pair: int, num_pairs: int, nursery: Nursery | None) -> Samples:
        """Export what is not there yet, then measure the pairs."""
        try:
            with nullcontext(nursery) if nursery is not None else Nursery() as self.nursery:
                return self._measure(first_pair, num_pairs)
        except DeviceError as error:
            # A lost device counts as a worker's death does: this measurement has failed, and the
            # study goes on.
            raise WorkerError(error.cause, str(error)) from error

    def _measure(self, first_pair: int, num_pairs: int) -> Samples:
        self.directory.mkdir(parents=True, exist_ok=True)
        wanted = Wanted(
            self.specs,
            self.target,
            self.config.seed,
            self.config.time_limit_s,
            self.directory / "logs",
        )
        with held_artifacts(
            wanted,
            self.runtime,
            self.device,
            kept=self.kept,
            scratch=self.directory,
            exporting=self._exporting,
            made=self.made,
        ) as self.artifacts:
            pairs = [
                self._pair(first_pair + index, index / num_pairs, 1 / num_pairs)
                for index in range(num_pairs)
            ]
            pairs, disturbed = self._repeated(first_pair, pairs)
            manifest = self.artifacts.manifest("candidate")
        return Samples(
            spec=self.specs["candidate"],
            reference=self.specs.get("reference"),
            target=self.target,
            config=self.config,
            identity=self._identity(manifest, pairs[0].candidate.engine_empty),
            written_by=writing(self.runtime),
            weight_bytes=manifest.weight_bytes,
            device=self.about,
            pairs=tuple(pairs),
            disturbed=tuple(disturbed),
            looks=1,
            seconds=time.monotonic() - self.started_s,
        )

    def _check(self) -> None:
        self.runtime.check(self.target.quant)
        for role, spec in self.specs.items():
            if reason := self.runtime.unsupported(spec):
                raise WorkerError("unsupported", reason, role)

    def _repeated(
        self, first_pair: int, pairs: list[PairSamples]
    ) -> tuple[list[PairSamples], list[PairSamples]]:
        """Measure again what was disturbed, at the end, when that may be over.

        Returns:
            The pairs that count, and those that do not.
        """
        found, left_out = list(pairs), []
        spare = spare_cores(self.about, self.runtime.on_card)
        disturbed = [i for i, pair in enumerate(pairs) if any(load_flags((pair,), spare))]
        for index in disturbed[: self.config.repeats]:
            # On a device that stays busy it would be disturbed again.
            if not self.device.wait_until_ready(self._rest_s):
                break
            again = self._pair(first_pair + index, 1.0, 0.0)
            if any(load_flags((again,), spare)):
                left_out.append(again)
            else:
                left_out.append(pairs[index])
                found[index] = again
        return found, left_out

    def _pair(self, index: int, done: float, share: float) -> PairSamples:
        """Start a process for each spec, measure all contexts in turns, end the processes."""
        was_ready = self.device.wait_until_ready(self._rest_s)
        with self._subjects(index) as subjects:
            start(list(subjects.values()), self.threads)
            for role, subject in subjects.items():
                self.progress(done, f"exporting the {role}")
                subject.artifact = self.artifacts.on_device(role, self._runner)
            wait_started(list(subjects.values()))
            before, parent_s = self.device.readings(), self._parent_s()
            self._contexts(list(subjects.values()), index, done, share)
            after, parent_s = self.device.readings(), self._parent_s() - parent_s
            forked = all(
                isinstance(subject.worker.process, ForkedProcess) for subject in subjects.values()
            )
            samples = {role: subject.samples() for role, subject in subjects.items()}
            own_cpu_s = parent_s + sum(subject.cpu_s for subject in subjects.values())
        self.progress(done + share, f"process {index + 1} done")
        return PairSamples(
            candidate=samples["candidate"],
            reference=samples.get("reference"),
            before=before,
            after=after,
            own_cpu_s=own_cpu_s,
            was_ready=was_ready,
            forked=forked,
        )

    def _contexts(self, subjects: list[Subject], index: int, done: float, share: float) -> None:
        """Measure all contexts, and tell how far that is."""
        contexts = self.target.contexts
        work = [sum(foreseen_work(context, self.config)) for context in contexts]
        for context, own in zip(contexts, work, strict=True):
            doing, part = f"process {index + 1}, context {context}", share * own / sum(work)
            self.progress(done, doing)
            told = partial(self._told, done, part, doing)
            measure_context(subjects, context, self.config, index, told)
            done += part

    def _told(self, done: float, part: float, doing: str, of_part: float) -> None:
        self.progress(done + part * of_part, doing)

    @contextmanager
    def _subjects(self, index: int) -> Iterator[dict[Role, Subject]]:
        subjects: dict[Role, Subject] = {}
        try:
            for role, spec in self.specs.items():
                worker = self._start_runner(role, f"{role}-{index}")
                energy = partial(self.device.energy, self.runtime.on_card)
                subjects[role] = Subject(worker, spec.vocab_size, self.config.seed, energy)
            # Both load what they need at once, before either is waited for.
            for subject in subjects.values():
                self._hello(subject.worker)
            yield subjects
        finally:
            for subject in subjects.values():
                subject.worker.kill()

    def _runner(self, role: Role, name: str) -> WorkerProcess:
        """A runner on the device that has said hello."""
        worker = self._start_runner(role, name)
        try:
            self._hello(worker)
        except BaseException:
            worker.kill()
            raise
        return worker

    def _start_runner(self, role: Role, name: str) -> WorkerProcess:
        runner = self._program
        files = "" if runner.files is None else self.artifacts.push(runner.files)
        forks = self.config.forks(self.runtime.on_card)
        run = partial(self.nursery.run, self.device, self.runtime) if forks else None
        return WorkerProcess(
            self.device,
            [part.replace("{files}", files) for part in runner.argv],
            self.directory / "logs" / f"{name}.log",
            threads=self.threads,
            time_limit_s=self.config.time_limit_s,
            role=role,
            run=DeviceChoice().open().run if runner.here else run,
        )

    @cached_property
    def _program(self) -> Runner:
        """What runs artifacts on the device."""
        return self.runtime.runner(self.device)

    def _parent_s(self) -> float:
        """Processor time that this process has used of the device's: none of another machine's."""
        return time.process_time() if self.device.is_here else 0.0

    @property
    def _exporting(self) -> Exporting:
        """On this machine, whatever the device is; on the card of the device if it is a part."""
        here = self.device if self.device.is_here else DeviceChoice().open()
        forks = self.config.forks(self.runtime.on_card)
        return Exporting(here, partial(self.nursery.run, here, self.runtime) if forks else None)

    @property
    def _rest_s(self) -> float:
        """How long to wait for a device that is busy; no time for a card that is held alone.

        What keeps the processor busy beside it, such as trainings on other cards, may do so for as
        long as the study lasts, and disturbs a card little.
        """
        return 0.0 if self.runtime.on_card else self.config.ready_timeout_s

    def _hello(self, worker: WorkerProcess) -> None:
        is_here = self._program.here
        told = worker.hello(
            runtime=self.target.runtime,
            plugins=[*map(str, registry.folders())] if is_here else plugin_folders(self.artifacts),
            memory_limit_bytes=self.config.memory_limit_bytes,
        )
        self.engine = told.engine

    def _identity(self, manifest: Manifest, engine_empty: Memory) -> Identity:
        return Identity(
            device=self.about.label,
            runtime=manifest.runtime,
            runtime_version=self._version(manifest),
            quant=manifest.quant,
            precision=manifest.precision,
            threads=self.threads,
            contexts=self.target.contexts,
            decode_tokens=self.config.decode_tokens,
            memory="process" if engine_empty.device_peak_bytes is None else "device",
        )

    def _version(self, manifest: Manifest) -> str:
        """Of the engine that exported, and of the one on the device if that says another."""
        if self.engine in (None, f"{manifest.runtime} {manifest.version}"):
            return manifest.version
        return f"{manifest.version}, run by {self.engine}"


def _described(device: Device) -> DeviceInfo:
    """What the device is; one that is lost now is lost as in the middle of a measurement.

    Raises:
        WorkerError: it cannot be reached.
    """
    try:
        return device.describe()
    except DeviceError as error:
        raise WorkerError(error.cause, str(error)) from error
