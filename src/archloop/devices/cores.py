"""How many cores this process may keep busy: a container is often given fewer than there are."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that the scheduler lets this process use, and whose time its control group may spend.

    The quota (``cpu.max`` of version 2) of the group and of those above it; a share of a core
    counts as none, and one core is always left.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas())]))


def _quotas() -> list[float]:
    """Cores' worth of time that each control group around this process may spend."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    group = CGROUPS / own.strip("/")
    found = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(CGROUPS):
            break
        try:
            most, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            # The root group has no such file, and other systems have no such folder.
            continue
        if most != "max":
            found.append(int(most) / int(period))
    return found
