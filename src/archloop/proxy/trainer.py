"""The study's side of proxy trainings: a process that trains one job after another, and its deaths.

A crash, a hang or a process killed for memory marks its trial and nothing else. A process that has
trained before may die of what earlier trainings left in it, so the job it held is then done once
more, in a new process: only what befalls a job there is said of the job. Likewise one that shared
its card with others through MPS, where a fault of one is a fault of all: it is done once more by a
process that shares nothing. The result is one file, written whole or not at all.
"""

import errno
import os
import shutil
from pathlib import Path

from archloop import registry
from archloop.devices.choice import DeviceChoice
from archloop.files import write_atomic
from archloop.proxy.record import Rung
from archloop.proxy.worker import Train
from archloop.scratch import Scratch
from archloop.workers.deaths import Cause, WorkerError
from archloop.workers.mps import Mps
from archloop.workers.process import WorkerProcess

LOG = "stderr.txt"
"""In a job's folder: what its process said, if the job failed."""
_PERHAPS_OF_AGE: tuple[Cause, ...] = ("crash", "memory")
"""Deaths that a process may owe to its earlier work."""


class Trainer:
    """A process for trainings, started when the first is asked for and replaced when it is of no
    use any more: it died, a job in it failed, or a job left its settings changed.

    Args:
        time_limit_s: of a job, in wall time; with the process's start if it had to be started.
        memory_limit_bytes: of private memory.
        mps: that its processes join; None: they share no card, or take turns at it.
    """

    def __init__(
        self,
        time_limit_s: float,
        memory_limit_bytes: int | None = None,
        mps: Mps | None = None,
    ) -> None:
        self._time_limit_s, self._memory_limit_bytes = time_limit_s, memory_limit_bytes
        self._mps = mps
        # The service, where the present process has joined it.
        self._joined: Mps | None = None
        self._worker: WorkerProcess | None = None
        self._started_for: tuple[int, list[str]] = (0, [])
        self._logs = Scratch("trainer")

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def train(self, asked: Train, directory: Path) -> Rung:
        """Train and score a proxy, and wait for its result.

        The process and all that it started are killed at the time limit and when this process is
        interrupted; it ends by itself when this process is gone.

        Args:
            asked: what to do, and by what.
            directory: for the job, its result and, if it fails, what the process said; made if
                missing. A result of the same job already there is not computed again.

        Raises:
            WorkerError: the process crashed, hung or took too much memory.
            OSError: the directory cannot be written, or the disk is full, which is no fault of the
                job.
        """
        directory.mkdir(parents=True, exist_ok=True)
        job_file, result_file = directory / "job.json", directory / "result.json"
        text = asked.model_dump_json()
        if job_file.exists() and job_file.read_text() == text and result_file.exists():
            return Rung.model_validate_json(result_file.read_bytes())
        result_file.unlink(missing_ok=True)
        write_atomic(job_file, text.encode())
        try:
            rung = self._trained(asked, directory)
        except WorkerError as error:
            if error.cause == "disk":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
            raise
        write_atomic(result_file, rung.model_dump_json().encode())
        return rung

    def close(self) -> None:
        """End the process."""
        self._end()
        self._logs.cleanup()

    def _trained(self, asked: Train, directory: Path) -> Rung:
        needed = asked.threads, [str(path) for path in registry.folders()]
        if needed != self._started_for:
            # A process keeps the threads and plug-ins that it was started with, so others need a
            # new one.
            self._end()
            self._started_for = needed
        used = self._worker is not None
        try:
            return self._ask(asked, directory, self._mps)
        except WorkerError as error:
            if error.cause not in _PERHAPS_OF_AGE or not (used or self._mps is not None):
                raise
        if self._mps is not None:
            self._mps.check()
        rung = self._ask(asked, directory, None)
        if self._mps is not None:
            # The process that shares nothing was for this job alone.
            self._end()
        return rung

    def _ask(self, asked: Train, directory: Path, mps: Mps | None) -> Rung:
        """Have the job done by the process as it is; whatever goes wrong ends the process.

        Args:
            asked: the job.
            directory: for what the process said.
            mps: that a process joins which has to be started.
        """
        try:
            told = self._ready(mps).ask(asked)
        except BaseException:
            if self._worker is not None:
                self._keep_log(self._worker, directory)
            self._end()
            raise
        rung = told.rung.model_copy(update={"cuda_mps": self._joined is not None})
        if told.left:
            self._end()
        return rung

    def _ready(self, mps: Mps | None) -> WorkerProcess:
        """The process, with the whole time limit before it."""
        if self._worker is not None:
            self._worker.begin()
            return self._worker
        threads, plugins = self._started_for
        host = DeviceChoice().open()
        python = host.python_argv()
        assert python is not None
        shared = {} if mps is None else mps.env
        self._joined = mps if shared else None
        self._worker = WorkerProcess(
            host,
            [*python, "-m", "archloop.proxy.worker"],
            Path(self._logs.name) / LOG,
            threads=threads,
            time_limit_s=self._time_limit_s,
            # Without it cuBLAS may add up in another order the next time.
            env={"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **shared},
        )
        self._worker.hello(plugins=plugins, memory_limit_bytes=self._memory_limit_bytes)
        return self._worker

    def _keep_log(self, worker: WorkerProcess, directory: Path) -> None:
        with worker.log.open("rb") as log, (directory / LOG).open("wb") as kept:
            log.seek(worker.log_start)
            shutil.copyfileobj(log, kept)
        if not (directory / LOG).stat().st_size:
            (directory / LOG).unlink()

    def _end(self) -> None:
        if self._worker is not None:
            if self._joined is not None and self._worker.process.poll() is None:
                self._joined.part(self._worker.process.pid)
            self._worker.kill()
            self._worker = self._joined = None
