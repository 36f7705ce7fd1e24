"""A real PostgreSQL server on this machine, for as long as a test module takes.

Debian's ``postgresql`` package brings the programs; its cluster is not touched. The server listens
on a socket in a folder of its own and on no network address.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """Folder of ``initdb`` and ``pg_ctl``; None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).parent


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database of a server that runs inside the block."""
    folder = programs()
    assert folder is not None
    with tempfile.TemporaryDirectory(prefix="archloop-pg-") as scratch:
        home = Path(scratch)
        # The server refuses to run as root; the package made a user for it.
        user = "postgres" if os.getuid() == 0 else None
        if user is not None:
            shutil.chown(home, user)

        def run(*command: str) -> None:
            subprocess.run(
                command, user=user, cwd=home, check=True, stdout=subprocess.DEVNULL, timeout=120
            )

        data = home / "data"
        run(str(folder / "initdb"), "-D", str(data), "-A", "trust", "-U", "archloop", "--no-sync")
        options = f"-k {home} -c listen_addresses='' -c fsync=off"
        control = str(folder / "pg_ctl")
        run(control, "-D", str(data), "-w", "-o", options, "-l", str(home / "log"), "start")
        try:
            yield f"postgresql+psycopg://archloop@/postgres?host={home}"
        finally:
            run(control, "-D", str(data), "-w", "-m", "immediate", "stop")
