"""Own figures of a preset or another spec, measured once on a machine and kept in the user's cache.

Figures count again only for the very same question: spec, target, settings, device as it describes
itself, engine at its version, archloop and plug-ins at their code. Ratios are never taken from
here: what a stack is compared with is measured beside it.
"""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from archloop import registry
from archloop.files import default_cache_dir
from archloop.profiling.config import ProfileConfig
from archloop.profiling.record import Profile
from archloop.profiling.samples import SAMPLES, read_samples
from archloop.profiling.summary import profile_from_samples
from archloop.profiling.target import Target
from archloop.runtimes.base import Runtime
from archloop.runtimes.pieces import code_digest
from archloop.stack.spec import StackSpec
from archloop.version import __version__


class Recalled(NamedTuple):
    """Figures that were measured before, and when."""

    profile: Profile
    when: datetime


def folder(spec: StackSpec, target: Target, config: ProfileConfig) -> Path:
    """Where a measurement's samples lie, or would.

    Raises:
        UserError: the device cannot be reached.
    """
    question = f"{spec.digest} {circumstances(target, config)}"
    return default_cache_dir() / "profiles" / _digest(question)


def circumstances(target: Target, config: ProfileConfig) -> str:
    """Digest of all that figures hang on beside the spec.

    Raises:
        UserError: the device cannot be reached.
    """
    runtime: Runtime = registry.get("runtimes", target.runtime)()
    device = target.device.open()
    found = {
        "target": target.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "device": device.describe().model_dump(mode="json"),
        "engine": runtime.written_by(),
        "programs": _contents(device.programs()),
        "archloop": __version__,
        "code": code_digest(),
    }
    return _digest(json.dumps(found, sort_keys=True))


def _contents(folder: Path | None) -> dict[str, str]:
    """Digests of a folder's files by name: a program may be built anew in the same place."""
    files = [] if folder is None else sorted(each for each in folder.rglob("*") if each.is_file())
    return {str(each): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def recall(place: Path) -> Recalled | None:
    """What was measured there; None if nothing was, or the file is damaged."""
    try:
        profile = profile_from_samples(read_samples(place))
        when = datetime.fromtimestamp((place / SAMPLES).stat().st_mtime).astimezone()
    except (OSError, ValueError):
        return None
    return Recalled(profile, when)
