"""Folders that go with their process: by a clean end, and by the next one after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from archloop.scratch import Scratch, clear

HOLDER = """
import sys, time
from pathlib import Path
from archloop.scratch import Scratch
folder = Scratch("job", Path(sys.argv[1]))
Path(folder.name, "samples").write_text("much")
print(folder.name, flush=True)
sys.stdin.readline()
"""


def holder(home: Path) -> tuple["subprocess.Popen[str]", Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, home],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_goes_with_the_next_folder(tmp_path: Path) -> None:
    killed, left = holder(tmp_path)
    alive, kept = holder(tmp_path)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert left.is_dir()
    with Scratch("job", tmp_path) as name:
        assert not left.exists()
        assert (kept / "samples").read_text() == "much"
        assert Path(name).name.startswith("archloop-job-")
    assert sorted(tmp_path.iterdir()) == [kept]
    alive.communicate("\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_surely_ours_and_dead_stays(tmp_path: Path) -> None:
    foreign = tmp_path / "archloop-notes"
    foreign.mkdir()
    (tmp_path / "archloop-file").write_text("")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".owner").write_text("")
    (tmp_path / "archloop-link").symlink_to(elsewhere)
    before = sorted(tmp_path.rglob("*"))
    clear(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_lives_as_long_as_a_process_forked_from_its_owner(tmp_path: Path) -> None:
    forks = "import os\nif os.fork(): os.kill(os.getpid(), 9)\nsys.stdin.readline()\nos._exit(0)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.replace("sys.stdin.readline()\n", forks), tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    process.wait()
    clear(tmp_path)
    assert folder.is_dir()
    process.stdin.close()
    process.stdout.read()
    # The system closes a process's files one after the other.
    until = time.monotonic() + 10
    while folder.exists() and time.monotonic() < until:
        clear(tmp_path)
    assert not folder.exists()
