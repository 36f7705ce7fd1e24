"""NVIDIA's MPS: started, joined and ended, by a control program that stands in for NVIDIA's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from archloop.workers import mps
from archloop.workers.mps import CONTROL, Mps, MpsError

DAEMON = """#!/bin/sh
# As NVIDIA's: -d starts the daemon of a pipe folder, without arguments it reads commands for it.
pid="$CUDA_MPS_PIPE_DIRECTORY/daemon.pid"
if [ "$1" = -d ]; then
    if [ -e "{home}/forbidden" ]; then echo "Insufficient permissions"; exit 1; fi
    echo "start $CUDA_MPS_PIPE_DIRECTORY ${{CUDA_VISIBLE_DEVICES-all}}" >> {home}/calls
    sleep 600 >/dev/null 2>&1 &
    echo $! > "$pid"
    exit 0
fi
while read -r command; do
    echo "$command" >> {home}/calls
    case "$command" in
        quit*) kill "$(cat "$pid")" ;;
        get_server_list) echo 71; echo 72 ;;
    esac
done
"""
WORKS, FAILS = "pass", "raise SystemExit('cuInit: MPS client failed to connect (CUDA error 805)')"
OWNER = """
import sys
from archloop.workers import mps
mps.PROBE = (sys.executable, "-c", "pass")
service = mps.Mps()
print(service.env["CUDA_MPS_PIPE_DIRECTORY"], flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Of the program and of temporary files; the program notes its calls there."""
    program = tmp_path / CONTROL
    program.write_text(DAEMON.format(home=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    probed(monkeypatch, WORKS)
    return tmp_path


def probed(monkeypatch, code: str) -> None:
    monkeypatch.setattr(mps, "PROBE", (sys.executable, "-c", code))


def calls(home: Path) -> list[str]:
    file = home / "calls"
    return file.read_text().splitlines() if file.exists() else []


def daemon(folder: Path) -> int:
    return int((folder / "daemon.pid").read_text())


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def left(home: Path) -> list[Path]:
    return [folder for place in home.glob("archloop-mps-*") for folder in place.iterdir()]


def test_ends_with_its_owner_and_leaves_nothing(home, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    service = Mps()
    folder = Path(service.env["CUDA_MPS_PIPE_DIRECTORY"])
    pid = daemon(folder)
    assert runs(pid)
    # Who is not told of the folders has the card as ever, and cards keep their numbers.
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert calls(home) == [f"start {folder} all"]
    service.close()
    until(lambda: not runs(pid))
    assert calls(home)[1:] == ["quit -t 10"]
    assert service.env == {}
    assert left(home) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ends_when_its_owner_is_killed(home, how):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert owner.stdout is not None
    pid = daemon(Path(owner.stdout.readline().decode().strip()))
    # As a terminal does: to the whole group.
    os.killpg(owner.pid, how)
    owner.communicate()
    until(lambda: not runs(pid))
    until(lambda: left(home) == [])


def test_a_keeper_that_is_ended_ends_the_daemon(home):
    service = Mps()
    pid = daemon(Path(service.env["CUDA_MPS_PIPE_DIRECTORY"]))
    service._service._keeper.terminate()
    until(lambda: not runs(pid))
    service.close()


def test_a_daemon_whose_keeper_was_killed_too_is_ended_by_the_next(home):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().decode().strip())
    pid = daemon(folder)
    [keeper] = Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split()
    os.kill(int(keeper), signal.SIGKILL)
    owner.kill()
    owner.communicate()
    assert runs(pid)
    service = Mps()
    try:
        until(lambda: not runs(pid))
        assert left(home) == [Path(service.env["CUDA_MPS_PIPE_DIRECTORY"])]
    finally:
        service.close()


def test_no_program(home, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MpsError, match=f"{CONTROL}.*is not on PATH"):
        Mps()


def test_another_users_folder_is_not_used(home):
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    (home / f"archloop-mps-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(MpsError, match="is another user's; remove it, or set TMPDIR"):
        Mps()
    assert calls(home) == []


def test_no_permission(home):
    (home / "forbidden").touch()
    with pytest.raises(MpsError, match="did not start: Insufficient permissions"):
        Mps()
    assert left(home) == []


def test_a_service_that_nobody_can_join_is_none(home, monkeypatch):
    probed(monkeypatch, FAILS)
    with pytest.raises(MpsError, match=r"joined it failed: cuInit.*805"):
        Mps()
    assert calls(home)[-1] == "quit -t 10"
    assert left(home) == []


def test_the_probe_joins_and_says_what_failed():
    asked = subprocess.run(
        [sys.executable, "-m", "archloop.workers.mps_probe"],
        env={**os.environ, "LD_LIBRARY_PATH": "", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 1
    assert len(asked.stderr.strip().splitlines()) == 1


def test_replaced_only_if_it_does_not_answer(home, monkeypatch):
    service = Mps()
    first = service.env
    service.check()
    assert service.env == first
    # It answers once to whoever asks first, as the service that comes next does.
    flag = home / "fault"
    flag.touch()
    probed(
        monkeypatch,
        f"import pathlib; f = pathlib.Path({str(flag)!r}); "
        "assert not f.exists() or f.unlink(), 'fault'",
    )
    service.check()
    assert service.env not in (first, {})
    assert [call.split()[0] for call in calls(home)] == ["start", "quit", "start"]
    probed(monkeypatch, FAILS)
    service.check()
    assert service.env == {}
    service.close()
    assert left(home) == []


def test_a_process_parts_from_each_server(home):
    service = Mps()
    service.part(4711)
    service.close()
    assert calls(home)[1:4] == [
        "get_server_list",
        "terminate_client 71 4711",
        "terminate_client 72 4711",
    ]
