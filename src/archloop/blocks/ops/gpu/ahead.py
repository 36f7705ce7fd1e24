"""The kernels of a pass compiled side by side, before the pass runs.

Triton compiles a kernel when it is first launched: the twenty of a mixer's first training pass one
after the other, on one core, and as many again for a length that divides otherwise.

Imported only where Triton is installed.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
import triton
from triton.runtime import Autotuner

from archloop.blocks.ops.gpu.wgmma import without_wgmma


def compile_ahead(run: Callable[[], object]) -> None:
    """As `triton_kernels.compile_ahead`.

    Everything is compiled `without_wgmma`, an environment variable that all threads see.
    """
    if not hasattr(triton, "AsyncCompileMode"):  # before Triton 3.5
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Reading a kernel's launcher also loads the kernel, onto the reading thread's own current card.
    card = torch.cuda.current_device()
    threads = ThreadPoolExecutor(cores, initializer=torch.cuda.set_device, initargs=(card,))
    with threads as pool, without_wgmma():
        # Backward kernels must be queued from this thread too, not from autograd's own threads.
        # Nothing is computed, so anomaly detection would report NaN in unwritten memory.
        one_thread = torch.autograd.set_multithreading_enabled(False)
        lenient = torch.autograd.set_detect_anomaly(False)
        with one_thread, lenient, _queued(), triton.AsyncCompileMode(pool) as mode:
            run()
        kernels = [future.result() for future in mode.future_kernels.values()]
        # A kernel's launcher is C code of its own, which Triton compiles when `run` is first read.
        list(pool.map(attrgetter("run"), kernels))


@contextmanager
def _queued() -> Iterator[None]:
    """Launches made by this thread compile only; those of kernels that tune themselves do nothing.

    Tuning would time launches that never were.
    """
    launch, tune, thread = triton.JITFunction.run, Autotuner.run, threading.get_ident()

    def run(kernel: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        mine = threading.get_ident() == thread
        return launch(kernel, *args, warmup=warmup or mine, **options)

    def run_tuned(kernel: Any, *args: Any, **options: Any) -> Any:
        if threading.get_ident() == thread:
            return None
        return tune(kernel, *args, **options)

    triton.JITFunction.run, Autotuner.run = run, run_tuned
    try:
        yield
    finally:
        triton.JITFunction.run, Autotuner.run = launch, tune
