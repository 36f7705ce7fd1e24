"""One proxy training in a process of its own: ``python -m archloop.proxy.worker`` is that process.

A crash, a hang or a process killed for memory marks its trial and nothing else. `run_isolated` is
what callers use. The result is one file, written whole or not at all.
"""

import errno
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from archloop import registry
from archloop.devices.choice import DeviceChoice
from archloop.files import write_atomic
from archloop.proxy.config import ProxyConfig
from archloop.proxy.mixture import prepare
from archloop.proxy.proxy import ProxyResult, train_and_score
from archloop.stack.spec import StackSpec
from archloop.workers.deaths import WorkerError
from archloop.workers.messages import Message, Request
from archloop.workers.process import WorkerProcess
from archloop.workers.serve import serve


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


class Trained(Message):
    """What came of a job."""

    result: ProxyResult


class Train(Request[Trained]):
    """Train and score a proxy."""

    command: Literal["train"] = "train"
    job: Job
    threads: int


def run_isolated(
    job: Job,
    directory: Path,
    time_limit_s: float,
    threads: int,
    memory_limit_bytes: int | None = None,
) -> ProxyResult:
    """Run a job in a process of its own and wait for its result.

    The process and all that it started are killed at the time limit and when this process is
    interrupted; it ends by itself when this process is gone.

    Args:
        job: what to do.
        directory: for the job, its result and its standard error; made if missing. A result of the
            same job already there is not computed again.
        time_limit_s: wall time.
        threads: for PyTorch.
        memory_limit_bytes: of private memory.

    Raises:
        WorkerError: the process crashed, hung or took too much memory.
        OSError: the directory cannot be written, or the disk is full, which is no fault of the job.
    """
    directory.mkdir(parents=True, exist_ok=True)
    job_file, result_file = directory / "job.json", directory / "result.json"
    text = job.model_dump_json()
    if job_file.exists() and job_file.read_text() == text and result_file.exists():
        return ProxyResult.model_validate_json(result_file.read_bytes())
    result_file.unlink(missing_ok=True)
    write_atomic(job_file, text.encode())
    host = DeviceChoice().open()
    python = host.python_argv()
    assert python is not None
    worker = WorkerProcess(
        host,
        [*python, "-m", "archloop.proxy.worker"],
        directory / "stderr.txt",
        threads=threads,
        time_limit_s=time_limit_s,
        # Without it cuBLAS may add up in another order the next time.
        env={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    )
    try:
        worker.hello(
            plugins=[str(path) for path in registry.folders()],
            memory_limit_bytes=memory_limit_bytes,
        )
        result = worker.ask(Train(job=job, threads=threads)).result
    except WorkerError as error:
        if error.kind == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
        raise
    finally:
        worker.kill()
    write_atomic(result_file, result.model_dump_json().encode())
    return result


def _train(asked: Train) -> Trained:
    import torch

    torch.set_num_threads(asked.threads)
    job = asked.job
    data = prepare(job.config, job.cache_dir, job.root)
    result = train_and_score(
        job.spec,
        data,
        job.config,
        job.rung,
        job.seed,
        job.learning_rate,
        resume_from=job.resume_from,
        checkpoint_to=job.checkpoint_to,
    )
    return Trained(result=result)


if __name__ == "__main__":
    serve({Train: _train})
