"""Who holds a lock, by the system's own table: nothing is written that could outlive its writer.

Linux lists every lock with the process that took it in ``/proc/locks``. Where there is no such
list, or it does not show the process, nobody is named.
"""

import os
from pathlib import Path

LOCKS = Path("/proc/locks")
_LONGEST = 80
"""Characters of a command line that are shown."""


def holders(file: int) -> list[int]:
    """Processes that hold a lock on an open file, ascending; empty where that is not known."""
    about = os.fstat(file)
    device, inode = about.st_dev, about.st_ino
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return []
    # Such as "7: FLOCK  ADVISORY  WRITE 5760 fe:00:2311231 0 EOF"; "->" marks one that waits.
    fields = [line.split() for line in lines]
    found = {int(each[4]) for each in fields if each[1] == "FLOCK" and each[5] == place}
    # A process of another container has number 0 here.
    return sorted(found - {0})


def in_words(process: int) -> str:
    """A process as its user knows it: by the command that started it, and its number."""
    try:
        arguments = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return f"process {process}"
    words = [word for word in arguments.split("\0") if word]
    # "python -m archloop search x" and "/usr/bin/archloop search x" are "archloop search x".
    while words and (Path(words[0]).name.startswith("python") or words[0].startswith("-")):
        del words[0]
    if not words:
        return f"process {process}"
    command = " ".join([Path(words[0]).name, *words[1:]])
    if len(command) > _LONGEST:
        command = f"{command[:_LONGEST]}…"
    return f"`{command}` (process {process})"
