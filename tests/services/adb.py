#!/usr/bin/env python3
"""A scripted adb: the phone is a folder, and its shell is this machine's.

``ADB_PHONE`` names the folder; a file ``says`` in it holds a line that every call answers with,
before it fails, as adb does when the phone is gone or full.
"""

import os
import pathlib
import shutil
import subprocess
import sys

phone = pathlib.Path(os.environ["ADB_PHONE"])
words = sys.argv[1:]
if words[0] == "-s":
    (phone / "serial").write_text(words[1])
    words = words[2:]
if (phone / "says").exists():
    sys.stderr.write((phone / "says").read_text())
    sys.exit(1)
if words[0] == "push":
    source, there = map(pathlib.Path, words[1:])
    shutil.copytree(source, there / source.name if there.exists() else there)
elif words[0] == "shell":
    assert words[1] == "-T"
    here = {"PATH": f"{phone / 'bin'}:{os.environ['PATH']}"}
    sys.exit(subprocess.run(["sh", "-c", words[2]], env={**os.environ, **here}).returncode)
else:
    sys.exit(f"adb: unknown command {words[0]}")
