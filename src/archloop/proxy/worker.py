"""One proxy training in a process of its own: ``python -m archloop.proxy.worker`` is that process.

A crash, a hang or a process killed for memory marks its trial and nothing else. `run_isolated` is
what callers use. The result is one file, written whole or not at all.
"""

import errno
import os
from pathlib import Path
from typing import Literal

from archloop import registry
from archloop.devices.choice import DeviceChoice
from archloop.files import write_atomic
from archloop.proxy.config import ProxyConfig
from archloop.proxy.mixture import prepare
from archloop.proxy.proxy import train_and_score
from archloop.proxy.record import Rung, TrainJob
from archloop.workers.deaths import WorkerError
from archloop.workers.messages import Message, Request
from archloop.workers.process import WorkerProcess
from archloop.workers.serve import serve


class Trained(Message):
    """What came of a job."""

    rung: Rung


class Train(Request[Trained]):
    """Train and score a proxy.

    Attributes:
        config: the recipe's.
        root: folder that the corpus's relative paths start from.
        cache_dir: of tokenizers and tokens; None: the user's.
        threads: for PyTorch.
    """

    command: Literal["train"] = "train"
    job: TrainJob
    config: ProxyConfig
    root: Path
    cache_dir: Path | None = None
    threads: int


def run_isolated(
    asked: Train,
    directory: Path,
    time_limit_s: float,
    memory_limit_bytes: int | None = None,
) -> Rung:
    """Run a job in a process of its own and wait for its result.

    The process and all that it started are killed at the time limit and when this process is
    interrupted; it ends by itself when this process is gone.

    Args:
        asked: what to do, and by what.
        directory: for the job, its result and its standard error; made if missing. A result of the
            same job already there is not computed again.
        time_limit_s: wall time.
        memory_limit_bytes: of private memory.

    Raises:
        WorkerError: the process crashed, hung or took too much memory.
        OSError: the directory cannot be written, or the disk is full, which is no fault of the job.
    """
    directory.mkdir(parents=True, exist_ok=True)
    job_file, result_file = directory / "job.json", directory / "result.json"
    text = asked.model_dump_json()
    if job_file.exists() and job_file.read_text() == text and result_file.exists():
        return Rung.model_validate_json(result_file.read_bytes())
    result_file.unlink(missing_ok=True)
    write_atomic(job_file, text.encode())
    host = DeviceChoice().open()
    python = host.python_argv()
    assert python is not None
    worker = WorkerProcess(
        host,
        [*python, "-m", "archloop.proxy.worker"],
        directory / "stderr.txt",
        threads=asked.threads,
        time_limit_s=time_limit_s,
        # Without it cuBLAS may add up in another order the next time.
        env={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    )
    try:
        worker.hello(
            plugins=[str(path) for path in registry.folders()],
            memory_limit_bytes=memory_limit_bytes,
        )
        rung = worker.ask(asked).rung
    except WorkerError as error:
        if error.kind == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from error
        raise
    finally:
        worker.kill()
    write_atomic(result_file, rung.model_dump_json().encode())
    return rung


def _train(asked: Train) -> Trained:
    import torch

    torch.set_num_threads(asked.threads)
    data = prepare(asked.config, asked.cache_dir, asked.root)
    return Trained(rung=train_and_score(asked.job, data, asked.config))


if __name__ == "__main__":
    serve({Train: _train})
