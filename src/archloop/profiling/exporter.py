"""An artifact with random weights, made in a process of its own on this machine.

``python -m archloop.profiling.exporter`` is that process: exporters take memory and leave threads
behind, and what crashes in one must mark its candidate and not the study.
"""

import logging
from contextlib import closing
from pathlib import Path
from typing import Literal

from archloop import registry
from archloop.devices.base import Device
from archloop.runtimes.base import Runtime
from archloop.runtimes.exporting import export_random
from archloop.stack.spec import StackSpec
from archloop.workers import heap
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
        warm: prompt lengths to run once with it. What the engine compiles for them it finds again
            on disk when the artifact is measured.
        warm_room: tokens beyond such a prompt that the measurement's state has room for.
    """

    command: Literal["export"] = "export"
    spec: StackSpec
    seed: int
    runtime: str
    quant: str
    directory: Path
    threads: int
    warm: tuple[int, ...] = ()
    warm_room: int = 2


def export_apart(
    asked: Export,
    here: Device,
    log: Path,
    *,
    time_limit_s: float,
    role: Role,
    run: Start | None = None,
) -> None:
    """Export in a process of its own.

    Args:
        asked: what to export, and where to.
        here: this machine, or a part of it, on which the process runs.
        log: of the process.
        time_limit_s: that it may take.
        role: whose artifact it is.
        run: starts the process; None starts Python anew.

    Raises:
        WorkerError: the process crashed, hung or ran out of memory, or the export is refused.
    """
    python = here.python_argv()
    assert python is not None
    argv = (*python, "-m", EXPORTER)
    worker = WorkerProcess(
        here, argv, log, threads=asked.threads, time_limit_s=time_limit_s, role=role, run=run
    )
    try:
        worker.hello(plugins=[str(path) for path in registry.folders()])
        worker.ask(asked)
    finally:
        worker.kill()


def _export(asked: Export) -> Done:
    import torch

    torch.set_num_threads(asked.threads)
    runtime: Runtime = registry.get("runtimes", asked.runtime)()
    if runtime.runs_here():
        # Logits are compared with the engine in the state in which it is measured: with these
        # threads, and denormals flushed to zero.
        runtime.start(asked.threads)
    export_random(runtime, asked.spec, asked.seed, asked.directory, asked.quant)
    try:
        for context in asked.warm if runtime.runs_here() else ():
            _run_once(runtime, asked, context)
            heap.free()
    except (RuntimeError, MemoryError) as error:
        # The artifact is whole all the same; what was not compiled now is when it is measured.
        logging.getLogger(__name__).warning("not run ahead: %s", error)
    return Done()


def _run_once(runtime: Runtime, asked: Export, context: int) -> None:
    """A prompt and some steps, as a measurement takes them."""
    max_context = context + asked.warm_room
    with closing(runtime.open(asked.directory, asked.threads, max_context)) as session:
        session.prefill(session.prepare((0,) * context))
        for _ in range(min(2, asked.warm_room)):
            session.decode_step(0)


def main() -> None:
    """Serve until the input closes."""
    serve({Export: _export})


if __name__ == "__main__":
    main()
