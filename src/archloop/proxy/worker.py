"""One proxy training in a process of its own: ``python -m archloop.proxy.worker JOB PID [FOLDER]``.

A crash, a hang or a process killed for memory marks its trial and nothing else. `run_isolated` is
what callers use; the module run as a program is the process it starts. The result is one file,
written whole or not at all.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from archloop import registry
from archloop.files import write_atomic
from archloop.proxy.proxy import ProxyConfig, ProxyResult, prepare, train_and_score
from archloop.stack.spec import StackSpec
from archloop.workers.victim import prefer_as_victim

POLL_SECONDS = 0.1
KEPT_STDERR_CHARS = 4000

_EXIT_MEMORY = 3
_EXIT_DISK_FULL = 4
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")

FailureKind = Literal["crash", "timeout", "memory"]


class Job(BaseModel):
    """What a worker is asked to do; see `train_and_score`.

    Attributes:
        root: folder that the corpus's relative paths start from.
        cache_dir: of tokenizers and tokens; None: the user's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: StackSpec
    config: ProxyConfig
    root: Path
    cache_dir: Path | None = None
    rung: int = Field(default=0, ge=0)
    seed: int
    learning_rate: float | None = None
    resume_from: Path | None = None
    checkpoint_to: Path | None = None


class TrainingError(Exception):
    """A worker came to no result.

    Attributes:
        kind: crash, timeout or memory.
        detail: one line.
    """

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


def run_isolated(
    job: Job,
    directory: Path,
    time_limit_s: float,
    threads: int,
    memory_limit_bytes: int | None = None,
) -> ProxyResult:
    """Run a job in a process of its own and wait for its result.

    The process and all that it started are killed at the time limit, when it holds more memory
    than the limit (Linux), and when this process is interrupted.

    Args:
        job: what to do.
        directory: for the job, its result and its standard error; made if missing. A result of the
            same job already there is not computed again.
        time_limit_s: wall time.
        threads: for PyTorch.
        memory_limit_bytes: resident memory.

    Raises:
        TrainingError: the process crashed, hung or took too much memory.
        OSError: the directory cannot be written, or the disk is full, which is no fault of the job.
    """
    directory.mkdir(parents=True, exist_ok=True)
    job_file, result_file = directory / "job.json", directory / "result.json"
    text = job.model_dump_json()
    if job_file.exists() and job_file.read_text() == text and result_file.exists():
        return ProxyResult.model_validate_json(result_file.read_bytes())
    result_file.unlink(missing_ok=True)
    write_atomic(job_file, text.encode())
    # -P: a stray random.py in the working folder must not stand in for a library.
    command = [sys.executable, "-P", "-m", "archloop.proxy.worker", str(job_file)]
    command += [str(os.getpid()), *map(str, registry.folders())]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Without it cuBLAS may add up in another order the next time.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    log_file = directory / "stderr.txt"
    with log_file.open("wb") as log:
        # A session of its own is a process group of its own, which can be killed as a whole.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait(process, time_limit_s, memory_limit_bytes)
        finally:
            _kill_group(process)
    if process.returncode == 0 and result_file.exists():
        return ProxyResult.model_validate_json(result_file.read_bytes())
    if process.returncode == _EXIT_DISK_FULL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
    raise _failure(process.returncode, log_file)


def main(job_file: Path, parent: int | None = None, plugins: Sequence[Path] = ()) -> int:
    """The process: do the job and write ``result.json`` beside it; returns the exit status.

    Args:
        job_file: a `Job`.
        parent: process whose end ends this one.
        plugins: folders of plug-ins, which the job may name.
    """
    for folder in plugins:
        registry.add_folder(folder)
    job = Job.model_validate_json(job_file.read_bytes())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        result = _run(job, parent)
        write_atomic(job_file.with_name("result.json"), result.model_dump_json().encode())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _EXIT_DISK_FULL
    except (MemoryError, RuntimeError) as error:
        words = str(error).lower()
        if not isinstance(error, MemoryError) and not any(w in words for w in _MEMORY_WORDS):
            raise
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
        return _EXIT_MEMORY
    return 0


def _run(job: Job, parent: int | None) -> ProxyResult:
    data = prepare(job.config, job.cache_dir, job.root)
    return train_and_score(
        job.spec,
        data,
        job.config,
        job.rung,
        job.seed,
        job.learning_rate,
        resume_from=job.resume_from,
        checkpoint_to=job.checkpoint_to,
        on_step=_leave_orphaned(parent),
    )


def _leave_orphaned(parent: int | None) -> Callable[[int, float], None]:
    """A step hook that ends the process once the one that started it is gone (``kill -9``)."""

    def on_step(step: int, loss: float) -> None:
        del step, loss
        if parent is not None and os.getppid() != parent:
            sys.exit("the process that started this training is gone")

    return on_step


def _wait(
    process: "subprocess.Popen[bytes]", time_limit_s: float, memory_limit_bytes: int | None
) -> None:
    """Wait for the end of a process, within its limits."""
    deadline = time.monotonic() + time_limit_s
    while True:
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        else:
            return
        if time.monotonic() > deadline:
            raise TrainingError("timeout", f"no result after {time_limit_s:g} s")
        held = _resident_bytes(process.pid)
        if memory_limit_bytes is not None and held > memory_limit_bytes:
            raise TrainingError(
                "memory", f"{held / 2**20:.0f} MiB exceed {memory_limit_bytes / 2**20:.0f} MiB"
            )


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system does not tell or the process is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process that still runs, and whatever it has started."""
    # Once it has been waited for, its number may belong to somebody else.
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(status: int, log_file: Path) -> TrainingError:
    """Why a process that ended by itself has no result."""
    tail = log_file.read_text(errors="replace")[-KEPT_STDERR_CHARS:]
    lines = [line for line in tail.splitlines() if line.strip()]
    last = lines[-1] if lines else "no message"
    if status == _EXIT_MEMORY:
        return TrainingError("memory", last)
    if status == -signal.SIGKILL:
        return TrainingError("memory", "the system killed the process, most likely for memory")
    if status < 0:
        return TrainingError("crash", f"ended by {signal.Signals(-status).name}: {last}")
    return TrainingError("crash", f"exit status {status}: {last}")


if __name__ == "__main__":
    prefer_as_victim()
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), [Path(each) for each in sys.argv[3:]]))
