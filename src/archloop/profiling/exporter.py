"""An artifact with random weights, made in a process of its own on this machine.

``python -m archloop.profiling.exporter`` is that process: exporters take memory and leave threads
behind, and what crashes in one must mark its candidate and not the study.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from archloop import registry
from archloop.devices.choice import DeviceChoice
from archloop.runtimes.base import Runtime
from archloop.runtimes.exporting import export_random
from archloop.stack.spec import StackSpec
from archloop.workers.deaths import Role
from archloop.workers.forking import Start
from archloop.workers.messages import Done, Request
from archloop.workers.process import WorkerProcess
from archloop.workers.serve import serve

EXPORTER = "archloop.profiling.exporter"
"""The module that is the process."""


class Export(Request[Done]):
    """Export a decoder with the random weights of a seed.

    Attributes:
        directory: gets the artifact, whole or not at all.
    """

    command: Literal["export"] = "export"
    spec: StackSpec
    seed: int
    runtime: str
    quant: str
    directory: Path
    threads: int


def export_apart(
    asked: Export, log: Path, *, time_limit_s: float, role: Role, run: Start | None = None
) -> None:
    """Export in a process of its own.

    Args:
        asked: what to export, and where to.
        log: of the process.
        time_limit_s: that it may take.
        role: whose artifact it is.
        run: starts the process; None starts Python anew.

    Raises:
        WorkerError: the process crashed, hung or ran out of memory, or the export is refused.
    """
    host = DeviceChoice().open()
    worker = WorkerProcess(
        host, argv(), log, threads=asked.threads, time_limit_s=time_limit_s, role=role, run=run
    )
    try:
        worker.hello(plugins=[str(path) for path in registry.folders()])
        worker.ask(asked)
    finally:
        worker.kill()


def argv() -> Sequence[str]:
    """The program."""
    python = DeviceChoice().open().python_argv()
    assert python is not None
    return (*python, "-m", EXPORTER)


def _export(asked: Export) -> Done:
    import torch

    torch.set_num_threads(asked.threads)
    runtime: Runtime = registry.get("runtimes", asked.runtime)()
    if runtime.runs_here():
        # Logits are compared with the engine in the state in which it is measured: with these
        # threads, and denormals flushed to zero.
        runtime.start(asked.threads)
    export_random(runtime, asked.spec, asked.seed, asked.directory, asked.quant)
    return Done()


def main() -> None:
    """Serve until the input closes."""
    serve({Export: _export})


if __name__ == "__main__":
    main()
