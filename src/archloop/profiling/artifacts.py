"""The artifacts of one measurement: exported when first needed, compared, brought to the device.

What nobody asked to keep is removed at the end, here and on the device.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from archloop import registry
from archloop.devices.base import Device, DeviceError
from archloop.devices.choice import DeviceChoice
from archloop.errors import UserError
from archloop.profiling.exporter import Export, export_apart
from archloop.profiling.target import Target
from archloop.runtimes.artifact import Manifest, read_manifest
from archloop.runtimes.base import Runtime
from archloop.runtimes.pieces import code_digest
from archloop.scratch import Scratch
from archloop.stack.spec import StackSpec
from archloop.workers import wire
from archloop.workers.deaths import Role, WorkerError
from archloop.workers.forking import Start
from archloop.workers.process import WorkerProcess

StartRunner = Callable[[Role, str], WorkerProcess]
"""A runner on the device that has said hello, for a role, with a name for its log."""


def writing(runtime: Runtime) -> str:
    """What exports a runtime's graphs now: versions of all that writes them, and the code's digest.

    With other code the same stack may be another graph, which takes another time.
    """
    return f"{runtime.written_by()} {code_digest()}"


class Wanted(NamedTuple):
    """What is exported, and how.

    Attributes:
        specs: by role.
        seed: of random weights.
        time_limit_s: of an export.
        logs: folder of the exporting processes' logs.
    """

    specs: Mapping[Role, StackSpec]
    target: Target
    seed: int
    time_limit_s: float
    logs: Path

    def name(self, role: Role) -> str:
        """Of an artifact's folder: another for all that another artifact would come of."""
        target = self.target
        runtime: Runtime = registry.get("runtimes", target.runtime)()
        # Other code may write another graph of the same stack, or read other files of it.
        engine = f"{target.runtime}-{runtime.written_by()}-{target.quant}-{code_digest()}"
        return f"{self.specs[role].digest}-{engine}-{self.seed}"


class Exporting(NamedTuple):
    """Where artifacts are exported.

    Attributes:
        device: this machine, or the part of it that exporting processes may use.
        run: starts these processes; None starts Python anew.
        threads: of each; None takes one per core.
        warm: prompt lengths that each artifact runs once, so that what a measurement needs is
            compiled.
        warm_room: tokens beyond these.
    """

    device: Device
    run: Start | None = None
    threads: int | None = None
    warm: tuple[int, ...] = ()
    warm_room: int = 2

    def export(self, wanted: Wanted, role: Role, home: Path) -> None:
        """Put an artifact into a folder, whole.

        Raises:
            WorkerError: the process crashed, hung or ran out of memory, or the export is refused.
        """
        home.parent.mkdir(parents=True, exist_ok=True)
        with Scratch("export", home.parent) as made:
            asked = Export(
                spec=wanted.specs[role],
                seed=wanted.seed,
                runtime=wanted.target.runtime,
                quant=wanted.target.quant,
                directory=Path(made) / home.name,
                threads=self.threads or self.device.describe().num_cores,
                warm=self.warm,
                warm_room=self.warm_room,
            )
            log = wanted.logs / f"export-{role}.log"
            limit_s = wanted.time_limit_s
            export_apart(asked, self.device, log, time_limit_s=limit_s, role=role, run=self.run)
            try:
                asked.directory.rename(home)
            except OSError:
                # Another study that shares the folder was faster; its artifact is the same.
                if not home.exists():
                    raise


class Artifacts:
    """Artifacts by role, in a folder here and on a device.

    Args:
        wanted: what is exported.
        runtime: that writes them.
        device: that they are brought to.
        kept: folder of those that are used again: the reference's.
        own: folder of this measurement's own.
        exporting: where those are made that are not in their folder yet.
    """

    def __init__(
        self,
        wanted: Wanted,
        runtime: Runtime,
        device: Device,
        kept: Path,
        own: Path,
        exporting: Exporting,
    ) -> None:
        self._wanted, self._runtime, self._device = wanted, runtime, device
        self._kept, self._own, self._exporting = kept, own, exporting
        self._pushed: dict[Path, str] = {}
        self._whole: set[Path] = set()

    def manifest(self, role: Role) -> Manifest:
        """What an artifact is; it must have been exported."""
        return read_manifest(self._home(role))

    def on_device(self, role: Role, start_runner: StartRunner) -> str:
        """The artifact's folder on the device, exported and compared if it is not whole.

        Raises:
            WorkerError: the export or the comparison failed.
        """
        home = self._home(role)
        if home not in self._whole:
            if not _is_whole(home):
                # Of one that was kept, files may be lost or changed since.
                shutil.rmtree(home, ignore_errors=True)
                self._exporting.export(self._wanted, role, home)
            self._whole.add(home)
        path = self.push(home)
        if (home / "parity.json").exists() and self.manifest(role).parity_error is None:
            self._compare(role, home, path, start_runner)
        return path

    def push(self, local: Path) -> str:
        """Bring a folder to the device; it is removed there with the artifacts."""
        if local not in self._pushed:
            self._pushed[local] = self._device.push(local)
        return self._pushed[local]

    def remove_pushed(self) -> None:
        """Remove from the device all that was brought there."""
        while self._pushed:
            _, path = self._pushed.popitem()
            try:
                self._device.remove(path)
            except DeviceError:
                # The device is gone, so the measurement has failed as well: its error says more
                # than this one.
                return

    def _home(self, role: Role) -> Path:
        # Another measurement of the candidate, such as a replicate's, may run beside this one and
        # end first, so the candidate's artifact is this measurement's alone.
        is_kept = self._wanted.specs[role] == self._wanted.specs.get("reference")
        return (self._kept if is_kept else self._own) / self._wanted.name(role)

    def _compare(self, role: Role, home: Path, path: str, start_runner: StartRunner) -> None:
        """Compare on the device what could not be compared when it was exported."""
        from archloop.runtimes.exporting import agreed
        from archloop.runtimes.parity import decoded, read_case

        case = read_case(home)
        assert case is not None
        runner = start_runner(role, f"parity-{role}")
        try:
            runner.ask(wire.Start(threads=1))
            directory = path if case.artifact == "." else f"{path}/{case.artifact}"
            runner.ask(wire.Open(directory=directory, max_context=case.num_tokens))
            answer = runner.ask(wire.Logits(parts=case.parts, steps=case.steps))
            error = case.error(decoded(answer.rows))
        except ValueError as problem:
            detail = f"logits that the runner answered cannot be compared: {problem}"
            raise WorkerError("crash", detail, role) from problem
        finally:
            runner.kill()
        try:
            agreed(self.manifest(role), case, error).write(home)
        except UserError as problem:
            raise WorkerError("unsupported", str(problem), role) from problem


def _is_whole(home: Path) -> bool:
    """Whether an artifact is there with all of its files, unchanged."""
    try:
        read_manifest(home)
    except UserError:
        return False
    return True


@contextmanager
def held_artifacts(
    wanted: Wanted,
    runtime: Runtime,
    device: Device,
    *,
    kept: Path | None,
    scratch: Path,
    exporting: Exporting | None = None,
    made: Path | None = None,
) -> Iterator[Artifacts]:
    """Artifacts for the time of a measurement.

    Args:
        wanted: what is exported.
        runtime: that writes them.
        device: that they are brought to.
        kept: folder that keeps the reference's, to be used again; None keeps nothing.
        scratch: folder for those that are not kept.
        exporting: where they are made; by default on this machine.
        made: folder that has what was made before (`Exporting.export`), and gets the rest.
    """
    exporting = exporting or Exporting(DeviceChoice().open())
    with Scratch("artifacts", scratch) as temporary:
        own = made or Path(temporary)
        found = Artifacts(wanted, runtime, device, kept or own, own, exporting)
        try:
            yield found
        finally:
            found.remove_pushed()


def plugin_folders(found: Artifacts) -> list[str]:
    """The folders of plug-ins on the device, for a process that must see the same ones."""
    return [found.push(folder) for folder in registry.folders()]
