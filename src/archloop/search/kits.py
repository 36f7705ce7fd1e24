"""The contract kits over a recipe's own plug-ins, whatever their kind, before a study runs them.

The kits are pytest classes (`archloop.testing`) and run in a process of their own, so that a
plug-in that crashes or hangs takes nothing with it. The library's own plug-ins pass them before
each release and are left out here.
"""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from archloop.scratch import Scratch

KITS = {
    "mixers": ("MixerContract",),
    "channel_mixers": ("ChannelMixerContract",),
    "runtimes": ("RuntimeContract",),
    "devices": ("DeviceContract",),
    "tasks": ("EvaluationContract", "TaskContract"),
    "strategies": ("StrategyContract",),
    "layouts": ("LayoutContract",),
    "presets": ("PresetContract",),
}
"""The kits of each kind of plug-in."""
LIMIT_S = 900.0


class Kits(NamedTuple):
    """What the kits said of a folder of plug-ins.

    Attributes:
        plugins: by kind, those that were tested.
        num_passed: tests.
        failures: one line each: the kit, the test with the plug-in, and what was wrong.
    """

    plugins: dict[str, tuple[str, ...]]
    num_passed: int
    failures: tuple[str, ...]


def plugins_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """Names of a folder's plug-ins by kind, those kinds that it has."""
    found = {}
    for kind in KITS:
        files = (folder / kind).glob("[!_]*.yaml" if kind == "presets" else "[!_]*.py")
        if names := tuple(sorted(file.stem for file in files)):
            found[kind] = names
    return found


def missing() -> str | None:
    """What to install before kits can run; None if nothing is missing."""
    return None if find_spec("pytest") else "pip install 'archloop[test]'"


def run(folder: Path) -> Kits:
    """Run the kits of every kind over a folder's plug-ins.

    Args:
        folder: ``<folder>/<kind>/<name>.py``.
    """
    found = plugins_in(folder)
    if not found:
        return Kits({}, 0, ())
    with Scratch("kits") as scratch:
        test, report = Path(scratch) / "test_plugins.py", Path(scratch) / "report.xml"
        test.write_text(_tests(folder.resolve(), found))
        call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
        call += [f"--junitxml={report}", str(test)]
        try:
            done = subprocess.run(
                call, cwd=scratch, capture_output=True, text=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return Kits(found, 0, (f"the kits did not end within {LIMIT_S:g} s",))
        if not report.exists():
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            return Kits(found, 0, (f"the kits could not run: {' '.join(last)}",))
        cases = list(ElementTree.parse(report).iter("testcase"))
    failures = tuple(_failures(cases))
    passed = sum(len(case) == 0 for case in cases)
    return Kits(found, passed, failures)


def _tests(folder: Path, found: dict[str, tuple[str, ...]]) -> str:
    """A test file: one class for each kit."""
    names = [(kit, kind) for kind in found for kit in KITS[kind]]
    where = f"    folder = Path({str(folder)!r})\n"
    classes = "".join(
        f"\n\nclass Test{kit.removesuffix('Contract')}({kit}):\n{where}" for kit, _ in names
    )
    kits = ", ".join(kit for kit, _ in names)
    return f"from pathlib import Path\nfrom archloop.testing import {kits}\n{classes}"


def _failures(cases: list[ElementTree.Element]) -> Iterator[str]:
    for case in cases:
        for outcome in case:
            if outcome.tag in ("failure", "error"):
                kit = case.get("classname", "").rpartition(".")[2].removeprefix("Test")
                first, *_ = (outcome.get("message") or "failed").strip().splitlines() or ["failed"]
                yield f"{kit} {case.get('name', '')}: {first}"
