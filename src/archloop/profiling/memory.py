"""Resident memory of this very process, from ``/proc``.

Read inside the process: a parent's view of its children's peak (``ru_maxrss``) starts at the
parent's own size when the child was forked from it.
"""

from pathlib import Path

_STATUS = Path("/proc/self/status")
_FIELDS = {
    "peak_bytes": "VmHWM",
    "resident_bytes": "VmRSS",
    "anonymous_bytes": "RssAnon",
    "file_bytes": "RssFile",
    "swapped_bytes": "VmSwap",
}


def read() -> dict[str, int]:
    """Peak and resident bytes, the latter also apart: anonymous, file-mapped, swapped out.

    Raises:
        ValueError: the system has no such readings (it is not Linux).
    """
    if not _STATUS.exists():
        raise ValueError("peak memory is read from /proc/self/status, which only Linux has")
    pairs = (line.partition(":") for line in _STATUS.read_text().splitlines())
    table = {key: value.split() for key, _, value in pairs}
    # Some kernels leave out the split or the swap; a missing one counts as nothing.
    return {
        name: int(table[field][0]) * 1024 if field in table else 0
        for name, field in _FIELDS.items()
    }


def reset_peak() -> bool:
    """Let the peak start from what is resident now; False where that is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
