"""Workers forked from a server: as fresh, as apart and as mortal as started ones."""

import os
import signal
import time
from pathlib import Path

import pytest

from archloop.devices.choice import DeviceChoice
from archloop.workers.forking import ForkError, ForkServer

WORKER = """
import os, sys
asked = 0

def main():
    global asked
    for line in sys.stdin:
        asked += 1
        if line.startswith("exit"):
            sys.exit(3)
        if line.startswith("raise"):
            raise RuntimeError("a fault of the worker")
        print(asked, os.getpid(), os.getpgid(0), os.environ.get("GIVEN"), flush=True)
"""


@pytest.fixture
def serve(tmp_path):
    """Starts a server of a module's text."""
    servers = []

    def start(text: str = WORKER, *imports: str) -> ForkServer:
        (tmp_path / "the_worker.py").write_text(text)
        env = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "GIVEN": "given"}
        servers.append(ForkServer(DeviceChoice().open(), "the_worker", imports, env))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(worker, line: str) -> list[str]:
    worker.stdin.write(line.encode() + b"\n")
    return worker.stdout.readline().decode().split()


def test_each_worker_begins_where_the_imports_ended(serve, tmp_path):
    server = serve()
    with (tmp_path / "log").open("wb") as log:
        one, two = server.fork(log), server.fork(log)
    assert ask(one, "hello") == ["1", str(one.pid), str(one.pid), "given"]
    assert ask(one, "hello")[0] == "2"
    assert ask(two, "hello") == ["1", str(two.pid), str(two.pid), "given"]
    assert one.poll() is None
    # Its end is its parent's closing of the input, as of any worker.
    one.stdin.close()
    assert one.wait() == 0
    assert ask(two, "hello")[0] == "2"
    two.stdin.close()
    assert two.wait() == two.poll() == 0


def test_ends_are_told_apart_and_errors_go_to_the_log(serve, tmp_path):
    server, log = serve(), tmp_path / "log"
    for line, status in ((b"exit\n", 3), (b"raise\n", 1)):
        with log.open("wb") as stderr:
            worker = server.fork(stderr)
        worker.stdin.write(line)
        assert worker.wait() == status
    assert "a fault of the worker" in log.read_text()
    with log.open("wb") as stderr:
        worker = server.fork(stderr)
    os.killpg(worker.pid, signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    assert not Path(f"/proc/{worker.pid}").exists()


def test_a_killed_server_ends_its_workers_and_forks_no_more(serve, tmp_path):
    server = serve()
    with (tmp_path / "log").open("wb") as log:
        worker = server.fork(log)
        assert ask(worker, "hello")
        os.kill(server._process.pid, signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
        worker.stdin.close()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{worker.pid}").exists():
            state = Path(f"/proc/{worker.pid}/stat").read_text().split()[2]
            if state == "Z":
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(ForkError, match="is gone"):
            server.fork(log)


def test_what_imports_print_is_no_answer(serve, tmp_path):
    server = serve(f"print('an engine says hello', flush=True)\n{WORKER}")
    with (tmp_path / "log").open("wb") as log:
        worker = server.fork(log)
    assert ask(worker, "hello")[0] == "1"
    worker.stdin.close()
    assert worker.wait() == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", "1 th"),
        ("raise ImportError('no engine here')", "no engine here"),
    ],
)
def test_what_cannot_be_forked_is_said(serve, text, why):
    with pytest.raises(ForkError, match=why):
        serve(text)
