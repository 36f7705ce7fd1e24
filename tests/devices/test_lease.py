"""Never two measurements at once on a device, nor a training beside one; across processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from archloop.devices import host
from archloop.devices.choice import DeviceChoice
from archloop.devices.host import card_name, training_claims
from archloop.devices.lease import (
    Claim,
    LeaseCancelledError,
    exclude,
    held,
    is_free,
    lease,
    told_waiting,
)

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


def test_jobs_of_one_process_are_served_in_the_order_in_which_they_came(tmp_path):
    served: list[int] = []
    in_line = [threading.Event() for _ in range(8)]

    def work(index: int) -> None:
        # Whoever waits is asked whether to wait on, so being asked tells that it stands in line.
        with lease(
            "host",
            alone=index % 3 != 0,
            folder=tmp_path,
            cancelled=lambda: in_line[index].set() or False,
        ):
            served.append(index)
            time.sleep(0.01 * (index % 2))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    with lease("host", alone=True, folder=tmp_path):
        for thread, event in zip(threads, in_line, strict=True):
            thread.start()
            assert event.wait(10)
    for thread in threads:
        thread.join()
    assert served == list(range(8))


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


# --- claims -------------------------------------------------------------------------------------


def test_a_card_is_measured_beside_trainings_that_are_not_on_it():
    here, second = DeviceChoice().open(), DeviceChoice(name="host", gpu=1).open()
    assert not exclude(second.claims(on_card=True), training_claims("cuda:0"))
    assert not exclude(second.claims(on_card=True), training_claims("cpu"))
    assert exclude(second.claims(on_card=True), training_claims("cuda:1"))
    assert exclude(here.claims(on_card=True), training_claims("cuda"))
    assert exclude(here.claims(on_card=True), here.claims(on_card=True))
    assert not exclude(training_claims("cuda:1"), training_claims("cuda:1"))
    for device in ("cpu", "cuda:0"):
        assert exclude(here.claims(on_card=False), training_claims(device))
    phone = DeviceChoice(name="android", serial="abc").open()
    assert not exclude(phone.claims(on_card=False), training_claims("cpu"))
    assert exclude(phone.claims(on_card=False), here.claims(on_card=False))


def test_one_machine_is_one_however_it_is_logged_in_to():
    one = DeviceChoice(name="ssh", host="box", user="a").open()
    assert one.address == DeviceChoice(name="ssh", host="box", user="b", python="p").open().address
    assert one.address != DeviceChoice(name="ssh", host="box", port=2222).open().address


def test_a_card_has_one_name_whatever_a_process_may_see(monkeypatch):
    monkeypatch.setattr(host, "_uuids", lambda: ("GPU-aa", "GPU-bb", "GPU-cc"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert card_name(2) == "host card 2"
    for listed, index in (("1,2", 1), ("2", 0), ("GPU-cc", 0), ("GPU-aa,GPU-cc", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        assert card_name(index) == "host card 2", listed


def test_work_that_takes_several_devices_never_waits_in_a_circle(tmp_path):
    wanted = [
        [Claim("a", False), Claim("b", True)],
        [Claim("b", False), Claim("a", True)],
        [Claim("a", True)],
        [Claim("b", True)],
    ]
    ended = []

    def work(claims: list[Claim]) -> None:
        for _ in range(20):
            with held(claims, folder=tmp_path):
                time.sleep(0.001)
        ended.append(claims)

    threads = [threading.Thread(target=work, args=(claims,), daemon=True) for claims in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ended) == len(wanted)


def test_processes_share_a_lease_unless_they_are_told_of_another_folder_for_it(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("ARCHLOOP_LEASES")  # The tests have a folder of their own.
    name = f"test {uuid.uuid4()}"
    code = (
        "import sys; from archloop.devices.lease import *\n"
        "with lease(sys.argv[1], alone=True, cancelled=lambda: True): print('had it')"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code, name]
    with lease(name, alone=False):
        told = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert "LeaseCancelledError" in told.stderr
        apart = {**environment, "ARCHLOOP_LEASES": str(tmp_path / "cores-2-3")}
        told = subprocess.run(command, env=apart, capture_output=True, text=True)
        assert told.stdout == "had it\n"
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told.stdout == "had it\n"


def test_who_waits_says_for_what_and_who_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr("archloop.devices.lease.TELL_AFTER_S", 0.1)
    code = (
        "import pathlib, sys; from archloop.devices.lease import lease\n"
        "with lease('host', alone=True, folder=pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    (tmp_path / "archloop").write_text(code)
    holder = subprocess.Popen(
        [sys.executable, tmp_path / "archloop", tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    told: list[str] = []

    def hear(words: str) -> None:
        told.append(words)
        if words:
            holder.stdin.write("\n")
            holder.stdin.flush()

    with told_waiting(hear), lease("host", alone=True, folder=tmp_path):
        pass
    assert holder.wait() == 0
    waiting, over = told
    assert waiting.startswith("host, which `archloop ")
    assert waiting.endswith(f"(process {holder.pid}) uses")
    assert over == ""
    # A wait that is over at once is not told.
    with told_waiting(told.append), lease("host", alone=True, folder=tmp_path):
        pass
    assert told == [waiting, over]


def test_another_job_of_the_same_process_is_called_so(tmp_path, monkeypatch):
    monkeypatch.setattr("archloop.devices.lease.TELL_AFTER_S", 0.05)
    told: list[str] = []
    with (
        lease("host", alone=False, folder=tmp_path),
        told_waiting(told.append),
        pytest.raises(LeaseCancelledError),
        lease("host", alone=True, folder=tmp_path, cancelled=lambda: bool(told)),
    ):
        pass
    assert told == ["host, which another job of this process uses"]


def test_what_would_have_to_wait_is_not_free(tmp_path):
    measuring, training = (Claim("card", alone=True),), (Claim("card", alone=False),)
    assert is_free(measuring, folder=tmp_path)
    with held(training, folder=tmp_path):
        assert is_free(training, folder=tmp_path)
        assert not is_free(measuring, folder=tmp_path)
    with held(measuring, folder=tmp_path):
        assert not is_free(training, folder=tmp_path)
    assert is_free(measuring, folder=tmp_path)
