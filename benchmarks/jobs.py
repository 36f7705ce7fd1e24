"""Trainings shared out among processes of one card, a line of JSON for each that is finished.

A key that has a line is not done again, so the same command goes on where an earlier one stopped.
After the time is over no training is begun; what runs then is ended `GRACE` seconds later. The
processes join an MPS of their own where NVIDIA's program can start one (`workers.mps`); else they
take turns at the card.
"""

import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

from archloop.workers.mps import Mps, MpsError

Record = dict[str, Any]
GRACE = 20.0
"""Seconds that trainings have to end after the time is over."""


def read(file: Path) -> list[Record]:
    """The records, or none; a line that was cut off by a kill is passed over and shown."""
    found = []
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            print(f"{file}: line {number} is no JSON and left out")
    return found


def run(
    keys: Sequence[str],
    train: Callable[[str], Record],
    records: Path,
    *,
    workers: int,
    seconds: float,
) -> list[Record]:
    """Train what has no record yet, in the order of the keys; all records of the file.

    Args:
        keys: name the trainings; each stands in its record under ``key``.
        train: called in a process of its own, so a function of a module or a partial of one.
        records: file of lines.
        workers: processes.
        seconds: after these no training is begun.
    """
    began = time.time()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = {record.get("key") for record in read(records)}
    todo = [key for key in keys if key not in done]
    context = multiprocessing.get_context("spawn")
    mps = _service()
    with closing(mps) if mps else nullcontext(), tempfile.TemporaryDirectory() as claims:
        shared = {} if mps is None else mps.env
        os.environ.update(shared)
        given = (todo, train, records, Path(claims), began + seconds)
        processes = [context.Process(target=_work, args=given) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, began + seconds + GRACE - time.time()) if seconds < 1e9 else None)
            if process.is_alive():
                if mps is not None and process.pid is not None:
                    # A kill in the middle of its work would take the others along.
                    mps.part(process.pid)
                process.kill()
                process.join()
        for key in shared:
            del os.environ[key]
    print(f"{time.time() - began:.0f} s in all", flush=True)
    return read(records)


def _service() -> Mps | None:
    try:
        return Mps()
    except MpsError as error:
        print(f"without MPS: {error}", flush=True)
        return None


def _work(
    todo: Sequence[str],
    train: Callable[[str], Record],
    records: Path,
    claims: Path,
    deadline: float,
) -> None:
    parent = multiprocessing.parent_process()
    for key in todo:
        if parent is not None and not parent.is_alive():
            # Nobody is left who would end it when its time is over.
            return
        if time.time() > deadline or not _claimed(claims, key):
            continue
        began = time.time()
        try:
            record = {"key": key, **train(key)}
        except Exception:
            # One training that fails leaves the others theirs, and has no line.
            print(f"{key} failed:\n{traceback.format_exc()}", flush=True)
            continue
        # One write to a file that is opened for appending stays whole among several processes.
        with records.open("ab", buffering=0) as out:
            out.write((json.dumps(record) + "\n").encode())
        print(f"{key}: {time.time() - began:.1f} s", flush=True)


def _claimed(folder: Path, key: str) -> bool:
    """Whether this process is the first of the call that wants the training."""
    try:
        name = sha256(key.encode()).hexdigest()
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
