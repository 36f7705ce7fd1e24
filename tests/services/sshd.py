"""A real sshd on loopback, with keys, port and configuration of its own in a temporary folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


class Sshd(NamedTuple):
    """A running server.

    Attributes:
        settings: of a device that reaches it.
        far_folder: where the device keeps what is pushed.
        process: of the server.
    """

    settings: dict[str, Any]
    far_folder: Path
    process: "subprocess.Popen[bytes]"


@contextmanager
def running_sshd(folder: Path) -> Iterator[Sshd]:
    """Start a server in a folder, and end it."""
    assert PROGRAM is not None, "sshd is missing: apt-get install openssh-server"
    for key in ("host_key", "user_key"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(keygen, check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n"
    )
    (folder / "ssh_config").write_text(
        f"Host box\nHostName 127.0.0.1\nPort {port}\nIdentityFile {folder}/user_key\n"
        f"IdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
        "StrictHostKeyChecking accept-new\n"
    )
    if os.geteuid() == 0:
        # As root, sshd gives up its rights in this folder.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    far = folder / "far side"
    far.mkdir()
    with (folder / "sshd.log").open("wb") as log:
        command = [PROGRAM, "-D", "-e", "-f", str(folder / "sshd_config")]
        process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        settings = {"host": "box", "config_file": str(folder / "ssh_config"), "folder": str(far)}
        yield Sshd(settings, far, process)
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 20
    while True:
        assert process.poll() is None, "sshd ended at once"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.05)
        else:
            return
