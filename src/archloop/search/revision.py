"""Which commit of archloop runs: of the clone that it runs from, or that pip installed.

A wheel of a release has none: its version says as much.
"""

import json
import subprocess
from importlib import metadata
from pathlib import Path

_TIME_LIMIT_S = 10.0


def revision(folder: Path | None = None) -> str | None:
    """The commit, with ``+changes`` where tracked files differ from it; None if there is none.

    Args:
        folder: of the package's code; default: this one.
    """
    folder = folder or Path(__file__).parents[1]
    # A wheel's files may lie inside somebody's clone too, which tracks none of them.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return _installed()
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{commit}+changes" if changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where it is missing, slow or refuses."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_TIME_LIMIT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _installed() -> str | None:
    """The commit of ``pip install git+https://...``, which pip writes beside the package."""
    try:
        text = metadata.distribution("archloop").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    found = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    return found if isinstance(found, str) else None
