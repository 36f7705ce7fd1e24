"""Resident memory of this very process, from ``/proc``; elsewhere from psutil, which is untested.

Read inside the process: a parent's view of its children's peak (``ru_maxrss``) starts at the
parent's own size when the child was forked from it.
"""

from pathlib import Path

from archloop.errors import UserError

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

    On other systems than Linux the parts are not told apart, and the peak is since the start.

    Raises:
        UserError: the system is another one and psutil is missing.
    """
    if not _STATUS.exists():
        return _told_by_psutil()
    return of_status(_STATUS.read_text())


def of_status(text: str) -> dict[str, int]:
    """As `read`, from the text of a process's ``/proc/PID/status``."""
    pairs = (line.partition(":") for line in text.splitlines())
    table = {key: value.split() for key, _, value in pairs}
    # Some kernels leave out the split or the swap; a missing one counts as nothing.
    return {
        name: int(table[field][0]) * 1024 if field in table else 0
        for name, field in _FIELDS.items()
    }


def _told_by_psutil() -> dict[str, int]:
    try:
        import psutil
    except ImportError:
        raise UserError(
            "peak memory is read from /proc/self/status, which only Linux has, or by psutil; "
            "pip install psutil"
        ) from None
    told = psutil.Process().memory_info()
    # Windows tells the peak there, macOS as the largest resident size, in bytes.
    peak = getattr(told, "peak_wset", None)
    if peak is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_bytes": int(peak),
        "resident_bytes": int(told.rss),
        "anonymous_bytes": int(told.rss),
        "file_bytes": 0,
        "swapped_bytes": 0,
    }


def reset_peak() -> bool:
    """Let the peak start from what is resident now; False where that is not allowed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
