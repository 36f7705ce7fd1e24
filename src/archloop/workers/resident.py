"""Pages of files that this process has in memory, and a forked child does not have yet.

A fork copies what a process wrote, but not its view of libraries' files: a child meets these pages
one by one, as it runs, and would count them to whatever it does meanwhile. So a server notes which
it had, and each child takes them all in before it begins, as if it had imported for itself.
"""

import ctypes
import mmap
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_PRESENT = 1 << 63
_ENTRY_BYTES = 8
_POPULATE_READ = 22


class Pages(NamedTuple):
    """Neighbouring pages: the address of the first, and bytes."""

    address: int
    length: int


def of_files() -> tuple[Pages, ...]:
    """All pages of mapped files that are in memory; none where the system does not tell."""
    try:
        return tuple(_found())
    except OSError:
        return ()


def take_in(ranges: Sequence[Pages]) -> None:
    """Map pages as if they had been read; does nothing on systems that cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    for address, length in ranges:
        libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _POPULATE_READ)


def _found() -> Iterator[Pages]:
    size = mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, _, _, _, inode, *_ = line.split()
            if inode == "0":
                continue
            first, end = (int(word, 16) // size for word in span.split("-"))
            pagemap.seek(first * _ENTRY_BYTES)
            entries = array("Q", pagemap.read((end - first) * _ENTRY_BYTES))
            start = None
            for number, entry in enumerate([*entries, 0]):
                if entry & _PRESENT and start is None:
                    start = number
                elif not entry & _PRESENT and start is not None:
                    yield Pages((first + start) * size, (number - start) * size)
                    start = None
