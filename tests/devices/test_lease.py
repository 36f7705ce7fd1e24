"""Never two measurements at once on a device, nor a training beside one; across processes."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from archloop.devices.lease import LeaseCancelledError, lease

fork = multiprocessing.get_context("fork")


def hold(folder: Path, alone: bool, held_s: float, log: Path, name: str) -> None:
    with lease("host", alone=alone, folder=folder):
        with log.open("a") as file:
            file.write(f"+{name}\n")
        time.sleep(held_s)
        with log.open("a") as file:
            file.write(f"-{name}\n")


def run_all(folder: Path, alone: list[bool], held_s: float = 0.02) -> list[str]:
    log = folder / "log"
    workers = [
        fork.Process(target=hold, args=(folder, each, held_s, log, f"{'mt'[not each]}{index}"))
        for index, each in enumerate(alone)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return log.read_text().split()


def test_measurements_and_trainings_never_overlap(tmp_path):
    inside: set[str] = set()
    for line in run_all(tmp_path, [True, False, True, False, False, True]):
        sign, name = line[0], line[1:]
        if sign == "-":
            inside.remove(name)
            continue
        inside.add(name)
        measuring = [each for each in inside if each.startswith("m")]
        assert len(measuring) <= 1
        assert not measuring or len(inside) == 1


def test_trainings_share(tmp_path):
    lines = run_all(tmp_path, [False] * 3, held_s=1.0)
    assert [line[0] for line in lines] == ["+"] * 3 + ["-"] * 3


def test_devices_do_not_wait_for_each_other(tmp_path):
    with (
        lease("host", alone=True, folder=tmp_path),
        lease("host cuda:0", alone=True, folder=tmp_path),
    ):
        pass


def test_a_measurement_gets_its_turn_among_trainings_without_end(tmp_path):
    order: list[str] = []
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            with lease("host", alone=False, folder=tmp_path):
                time.sleep(0.02)

    threads = [threading.Thread(target=train) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.1)
        with lease("host", alone=True, folder=tmp_path):
            order.append("measured")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert order == ["measured"]


def test_who_waits_can_be_told_to_stop(tmp_path):
    asked = iter([False, False, True])
    with (
        lease("host", alone=False, folder=tmp_path),
        pytest.raises(LeaseCancelledError),
        lease("host", alone=True, folder=tmp_path, cancelled=lambda: next(asked)),
    ):
        pass
    with lease("host", alone=True, folder=tmp_path):
        pass


def test_a_killed_process_frees_its_lease(tmp_path):
    log = tmp_path / "log"
    worker = fork.Process(target=hold, args=(tmp_path, True, 60, log, "m"))
    worker.start()
    while not log.exists():
        time.sleep(0.01)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with lease("host", alone=True, folder=tmp_path):
        pass
