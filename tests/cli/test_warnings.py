"""What the command line makes of warnings."""

import subprocess
import sys

SCRIPT = """
import sys, warnings
from archloop.cli import command
from archloop.search import hardware
command.app = lambda: [
    exec(compile(f"warnings.warn('{what}')", where, "exec"))
    for what, where in (("ours", hardware.__file__), ("theirs", "/elsewhere/library.py"))
]
command.main()
"""


def test_a_warning_of_archloops_is_one_line_that_says_what() -> None:
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    ).stderr
    assert told.splitlines()[0] == "archloop: ours"
    assert "library.py:1: UserWarning: theirs" in told
