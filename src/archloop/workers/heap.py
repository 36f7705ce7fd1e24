"""Freed memory given back to the system, so that a process's next work starts without it."""

import ctypes
import gc


def free() -> None:
    """Collect what Python still holds in circles, and give freed pages back."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
