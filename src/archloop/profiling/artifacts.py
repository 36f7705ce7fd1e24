"""The artifacts of one measurement: exported when first needed, compared, brought to the device.

What nobody asked to keep is removed at the end, here and on the device.
"""

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
from archloop.scratch import Scratch
from archloop.stack.spec import StackSpec
from archloop.workers import wire
from archloop.workers.deaths import Role, WorkerError
from archloop.workers.forking import Start
from archloop.workers.process import WorkerProcess

StartRunner = Callable[[Role, str], WorkerProcess]
"""A runner on the device that has said hello, for a role, with a name for its log."""


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


class Artifacts:
    """Artifacts by role, in a folder here and on a device.

    Args:
        wanted: what is exported.
        runtime: that writes them.
        device: that they are brought to.
        kept: folder of those that are used again: the reference's.
        scratch: folder of this measurement's own.
    """

    def __init__(
        self,
        wanted: Wanted,
        runtime: Runtime,
        device: Device,
        kept: Path,
        scratch: Path,
        run: Start | None = None,
    ) -> None:
        self._wanted, self._runtime, self._device = wanted, runtime, device
        self._kept, self._scratch, self._run = kept, scratch, run
        self._pushed: dict[Path, str] = {}

    def manifest(self, role: Role) -> Manifest:
        """What an artifact is; it must have been exported."""
        return read_manifest(self._home(role))

    def on_device(self, role: Role, start_runner: StartRunner) -> str:
        """The artifact's folder on the device, exported and compared if it was not before.

        Raises:
            WorkerError: the export or the comparison failed.
        """
        home = self._home(role)
        if not home.exists():
            self._export(role, home)
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
        spec, target = self._wanted.specs[role], self._wanted.target
        engine = f"{target.runtime}-{self._runtime.version()}-{target.quant}"
        # Another measurement of the candidate, such as a replicate's, may run beside this one and
        # end first, so the candidate's artifact is this measurement's alone.
        is_kept = spec == self._wanted.specs.get("reference")
        folder = self._kept if is_kept else self._scratch
        return folder / f"{spec.digest}-{engine}-{self._wanted.seed}"

    def _export(self, role: Role, home: Path) -> None:
        """Put the artifact into the folder, whole."""
        home.parent.mkdir(parents=True, exist_ok=True)
        with Scratch("export", home.parent) as made:
            asked = Export(
                spec=self._wanted.specs[role],
                seed=self._wanted.seed,
                runtime=self._wanted.target.runtime,
                quant=self._wanted.target.quant,
                directory=Path(made) / home.name,
                threads=DeviceChoice().open().describe().num_cores,
            )
            log = self._wanted.logs / f"export-{role}.log"
            export_apart(
                asked, log, time_limit_s=self._wanted.time_limit_s, role=role, run=self._run
            )
            try:
                asked.directory.rename(home)
            except OSError:
                # Another study that shares the folder was faster; its artifact is the same.
                if not home.exists():
                    raise

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


@contextmanager
def held_artifacts(
    wanted: Wanted,
    runtime: Runtime,
    device: Device,
    *,
    kept: Path | None,
    scratch: Path,
    run: Start | None = None,
) -> Iterator[Artifacts]:
    """Artifacts for the time of a measurement.

    Args:
        wanted: what is exported.
        runtime: that writes them.
        device: that they are brought to.
        kept: folder that keeps the reference's, to be used again; None keeps nothing.
        scratch: folder for those that are not kept.
        run: starts exporting processes; None starts Python anew.
    """
    with Scratch("artifacts", scratch) as temporary:
        found = Artifacts(wanted, runtime, device, kept or Path(temporary), Path(temporary), run)
        try:
            yield found
        finally:
            found.remove_pushed()


def plugin_folders(found: Artifacts) -> list[str]:
    """The folders of plug-ins on the device, for a process that must see the same ones."""
    return [found.push(folder) for folder in registry.folders()]
