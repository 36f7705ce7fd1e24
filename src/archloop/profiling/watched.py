"""A program on a device, watched from beside it: what it prints, its memory, its processor time.

An engine's own program tells neither of the last two. A shell on the device starts it and, where
memory is asked for, reads its ``/proc/PID/status`` again and again for as long as it lives; so that
this disturbs no time, a run is either timed or looked at. The shell ends the program when this
side closes the shell's standard input, which the system does if this process dies.
"""

import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

from archloop.devices import linux
from archloop.devices.base import Device
from archloop.profiling import memory
from archloop.workers import wire
from archloop.workers.deaths import WorkerError, of_status

_NOT_RUN = (126, 127)
"""Exit statuses of a shell that cannot run a program: it is for another processor, or not there."""

# Builtins of a POSIX shell alone, but for `sleep`: a phone has little more. `kill -9 $watch` comes
# before the shell's own end, because adb waits until nobody holds the other end of its line.
_START = """\
echo '== printed'
exec 3<&0
"$@" </dev/null 3<&- & pid=$!
{ read -r word <&3; kill -9 $pid; } >/dev/null 2>&1 & watch=$!
exec 3<&-
seen=
"""
# A short run is looked at without a pause. What the child is before it becomes the program, another
# `sh`, does not count; a program that has ended has no memory, but is there until it is waited for.
_LOOK = """\
looks=0
while :; do
  now=
  while read -r field value; do
    case $field in
      Name:) name=$value;;
      VmHWM:|VmRSS:|RssAnon:|RssFile:|VmSwap:) now="$now$field $value
";;
    esac
  done 2>/dev/null </proc/$pid/status
  case $now in *VmHWM:*) ;; *) break;; esac
  [ "$name" = sh ] || seen=$now
  looks=$((looks + 1))
  [ $looks -lt 200 ] || sleep 0.05
done
"""
_END = """\
wait $pid; status=$?
kill -9 $watch 2>/dev/null
echo; echo '== memory'; echo "$seen"
echo '== cpu'; times
exit $status
"""


class Watched(NamedTuple):
    """A run that ended well.

    Attributes:
        printed: standard output.
        said: standard error.
        memory: the last reading before its end, with the peak until then; None if none was asked
            for, or none came in time.
        cpu_s: processor time of the program.
    """

    printed: str
    said: str
    memory: wire.Memory | None
    cpu_s: float


def run(
    device: Device,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    look: bool = False,
    memory_limit_bytes: int | None = None,
    kills_before: int | None = None,
) -> Watched:
    """Run a program on a device to its end.

    Args:
        device: where.
        argv: program and arguments.
        env: more of its environment.
        look: read its memory while it runs, which takes some processor time there.
        memory_limit_bytes: of its private memory; None leaves it to the system.
        kills_before: processes that the device had killed for memory beforehand; None: unknown.

    Raises:
        WorkerError: it failed, or could not be watched; the cause says how.
    """
    script = _limit(memory_limit_bytes) + _START + (_LOOK if look else "") + _END
    command = ["sh", "-c", script, "sh", *argv]
    with tempfile.TemporaryFile() as stderr:
        status, printed = _ended(device, command, env, stderr)
        stderr.seek(0)
        said = stderr.read().decode(errors="replace")
    if status:
        # The study keeps it as a log.
        sys.stderr.write(said)
        lines = said.strip().splitlines() or [""]
        raise _failure(device, argv[0].rpartition("/")[2], status, lines[-1], kills_before)
    told = linux.sections(printed)
    if "cpu" not in told:
        raise WorkerError("gone", f"the answer of device {device.name} broke off")
    seen = told.get("memory", "")
    return Watched(
        printed=told.get("printed", ""),
        said=said,
        memory=wire.Memory(**memory.of_status(seen)) if "VmHWM" in seen else None,
        cpu_s=_children_s(told["cpu"]),
    )


def _limit(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"ulimit -d {num_bytes // 1024} || exit 1\n"


def _ended(
    device: Device, command: Sequence[str], env: Mapping[str, str], stderr: IO[bytes]
) -> tuple[int, str]:
    """Exit status and standard output."""
    process = device.run(command, env=env, stderr=stderr)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        printed = process.stdout.read()
        return process.wait(), printed.decode(errors="replace").replace("\r\n", "\n")
    finally:
        process.stdin.close()
        process.stdout.close()


def _failure(
    device: Device, program: str, status: int, last_line: str, kills_before: int | None
) -> WorkerError:
    if device.is_gone(status, last_line):
        return WorkerError("gone", f"device {device.name} cannot be reached any more; {last_line}")
    if status in _NOT_RUN:
        return WorkerError("missing", f"{program} does not run on the device: {last_line}")
    kills = device.readings().oom_kills
    ran_out = kills is None or kills_before is None or kills > kills_before
    cause, detail = of_status(status, last_line, memory_ran_out=ran_out)
    return WorkerError(cause, f"{program}: {detail}")


def _children_s(times: str) -> float:
    """What the shell's `times` says of its children: the second line, user and system."""
    lines = times.strip().splitlines()
    found = re.findall(r"(\d+)m([\d.]+)s", lines[1]) if len(lines) > 1 else []
    return sum(60 * int(minutes) + float(seconds) for minutes, seconds in found)
