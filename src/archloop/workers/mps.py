"""NVIDIA's Multi-Process Service (MPS): processes whose kernels run on one card at the same time.

Without it a card gives its processes turns, and a small training leaves most of the card idle in
each of its own. MPS is a daemon that processes join through two folders named in their environment,
so who is not told of these folders, such as a measurement, has the card as ever.

1. `Mps` starts a keeper, a process of a session of its own, which starts the daemon.
2. A probe joins the daemon and opens a card: what may not, or cannot here, shows before any work.
3. Each process that is to join is started with `env`.
4. The keeper ends the daemon when its standard input closes, thus also when this process is killed.
   If the keeper is killed too, whoever starts the next service ends the daemon that was left.

A fault of one process on the card can be a fault of all that share it. So whoever loses a process
asks `check`, which replaces a service that does not answer.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from pathlib import Path

from archloop.scratch import Scratch, clear

CONTROL = "nvidia-cuda-mps-control"
"""NVIDIA's program, part of its driver: it starts the daemon, and speaks to it."""
PROBE = (sys.executable, "-P", "-m", "archloop.workers.mps_probe")
"""Ends with status 0 if a process that joins the service can open a card."""
_PIPE, _LOG, _VISIBLE = (
    "CUDA_MPS_PIPE_DIRECTORY",
    "CUDA_MPS_LOG_DIRECTORY",
    "CUDA_VISIBLE_DEVICES",
)
_START_S, _ASK_S, _PROBE_S, _QUIT_S = 20.0, 5.0, 60.0, 10
_KEEPER = f"""
trap 'echo quit -t {_QUIT_S} | {CONTROL}; rm -rf "$0"' EXIT
trap exit HUP INT TERM
{CONTROL} -d </dev/null >"$0/daemon.txt" 2>&1 || {{ tail -n 1 "$0/daemon.txt"; exit 1; }}
echo ready
read -r _
"""
"""Of the shell that keeps a daemon; its argument is the service's folder."""


class MpsError(RuntimeError):
    """There is no service; the message is one line that says why."""


class Mps:
    """A running service for the processes that this one starts, on all cards of the machine.

    Safe to use from several threads.

    Raises:
        MpsError: NVIDIA's program is missing, may not be used, or a process that joins fails.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._service: _Service | None = _Service()

    @property
    def env(self) -> dict[str, str]:
        """Environment of a process that joins; empty once there is no service any more."""
        with self._lock:
            return {} if self._service is None else dict(self._service.env)

    def check(self) -> None:
        """After a process died: replace the service if it died with it.

        Those that had joined the old one end with errors of their own.
        """
        with self._lock:
            if self._service is None or self._service.fault() is None:
                return
            self._service.close()
            self._service = None
            with suppress(MpsError):
                self._service = _Service()

    def part(self, pid: int) -> None:
        """Have the daemon give up what a process has on the card, before that process is killed.

        NVIDIA names no outcome for the others if a process is killed in the middle of its work.
        """
        with self._lock:
            if self._service is not None:
                self._service.part(pid)

    def close(self) -> None:
        """End the daemon; whoever still uses it loses its card."""
        with self._lock:
            if self._service is not None:
                self._service.close()
                self._service = None


class _Service:
    """One daemon and its keeper."""

    def __init__(self) -> None:
        if shutil.which(CONTROL) is None:
            raise MpsError(f"{CONTROL}, which comes with NVIDIA's driver, is not on PATH")
        home = Path(tempfile.gettempdir()) / f"archloop-mps-{os.getuid()}"
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid():
            raise MpsError(f"{home} is another user's; remove it, or set TMPDIR")
        clear(home, quit_left)
        self._folder = Scratch("mps", home)
        self.env = _env(Path(self._folder.name))
        # The daemon numbers the cards that it may see anew, and processes that join count these.
        about = {key: value for key, value in os.environ.items() if key != _VISIBLE}
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", _KEEPER, self._folder.name],
            env=about | self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Made after the folder, so that a process that ends by an error, without `close`, ends the
        # daemon before the folder goes by which it is reached.
        self._end = weakref.finalize(self, _end, self._keeper)
        try:
            if (reason := self._started() or self.fault()) is not None:
                raise MpsError(reason)
        except BaseException:
            self.close()
            raise

    def fault(self) -> str | None:
        """Why a process cannot join; None if one can."""
        try:
            probe = subprocess.run(
                PROBE,
                env=os.environ | self.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PROBE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"a process that joined it got no card within {_PROBE_S:g} s"
        said = probe.stderr.strip().splitlines() or ["no message"]
        return None if probe.returncode == 0 else f"a process that joined it failed: {said[-1]}"

    def part(self, pid: int) -> None:
        """As `Mps.part`."""
        for server in _ask("get_server_list", self.env).split():
            _ask(f"terminate_client {server} {pid}", self.env)

    def close(self) -> None:
        """Have the keeper end the daemon, and wait for it."""
        self._end()
        self._folder.cleanup()

    def _started(self) -> str | None:
        """Why there is no daemon; None once there is one."""
        timer = threading.Timer(_START_S, self._keeper.kill)
        timer.start()
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        timer.cancel()
        if line == b"ready\n":
            return None
        said = line.decode(errors="replace").strip() or "no message"
        return f"{CONTROL} did not start: {said}"


def _end(keeper: "subprocess.Popen[bytes]") -> None:
    """Close a keeper's input, and wait until it has ended its daemon."""
    with suppress(subprocess.TimeoutExpired):
        keeper.communicate(timeout=3 * _QUIT_S)
    if keeper.poll() is None:
        keeper.kill()
        keeper.communicate()


def quit_left(folder: Path) -> None:
    """End the daemon of a service whose owner and keeper were killed."""
    _ask(f"quit -t {_QUIT_S}", _env(folder))


def _env(folder: Path) -> dict[str, str]:
    return {_PIPE: str(folder), _LOG: str(folder)}


def _ask(command: str, env: dict[str, str]) -> str:
    """What the daemon answers to one command; nothing if it does not."""
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(
            [CONTROL],
            input=f"{command}\n",
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=_ASK_S + _QUIT_S,
            check=False,
        ).stdout
    return ""
