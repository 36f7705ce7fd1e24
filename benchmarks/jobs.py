"""Trainings shared out among processes of one card, a line of JSON for each that is finished.

A key that has a line is not done again, so the same command goes on where an earlier one stopped.
After the time is over no training is begun; what runs then is ended `GRACE` seconds later.
"""

import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

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
    with tempfile.TemporaryDirectory() as claims:
        given = (todo, train, records, Path(claims), began + seconds)
        processes = [context.Process(target=_work, args=given) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, began + seconds + GRACE - time.time()) if seconds < 1e9 else None)
            if process.is_alive():
                process.kill()
                process.join()
    print(f"{time.time() - began:.0f} s in all", flush=True)
    return read(records)


def _work(
    todo: Sequence[str],
    train: Callable[[str], Record],
    records: Path,
    claims: Path,
    deadline: float,
) -> None:
    for key in todo:
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
