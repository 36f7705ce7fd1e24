"""Reading a study: its database and stage files, and nothing else, become a `StudyRecord`.

No device, no recipe file and no PyTorch is needed, so a report can be made anywhere.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.ranking import front
from archloop.ranking.objectives import as_point
from archloop.store import stages
from archloop.store.baseline import FOLDER as REFERENCE
from archloop.store.baseline import Baseline, reference_rungs
from archloop.store.connection import open_for_reading
from archloop.store.database import Stored
from archloop.store.record import Rung, StudyRecord, TrialRecord
from archloop.store.stages import Profiled, Proposed

RECIPE_COPY = "recipe.yaml"
RECIPE = "recipe.json"


def read(folder: str | Path, storage: str | None = None) -> StudyRecord:
    """A study's record, whether it is finished, running or was killed.

    Args:
        folder: ``<runs>/<name>``.
        storage: URL of its database, where that takes a password, which the folder does not keep.

    Raises:
        UserError: there is no study, or a file of it is damaged; names the file.
    """
    folder = Path(folder)
    kept = read_recipe(folder)
    if kept is None:
        raise UserError(f"{folder}: no study here; run `archloop search` with a recipe first")
    recipe, _ = kept
    database = open_for_reading(folder, storage or recipe["storage"], recipe["name"])
    try:
        environment = database.attribute("environment") or {}
        ended = database.attribute("ended")
        attribute = database.attribute("baseline")
        stored = database.trials()
    finally:
        database.close()
    baseline = None if attribute is None else Baseline.model_validate(attribute)
    trials = [_trial(folder, trial) for trial in stored]
    reference = None if baseline is None else _reference(folder, baseline)
    records = [record for record in [reference, *trials] if record is not None]
    seconds = _seconds(records)
    return StudyRecord(
        name=recipe["name"],
        recipe=recipe,
        environment=environment,
        reference=reference,
        reference_point=None if baseline is None else baseline.worst,
        admitted=() if baseline is None else baseline.admitted,
        dropped={} if baseline is None else baseline.dropped,
        noise=() if baseline is None else baseline.noise,
        learning_rates={} if baseline is None else baseline.learning_rates,
        ended=ended,
        trials=tuple(trial for trial in trials if trial is not None),
        seconds_by_stage=seconds,
        overhead=_overhead(seconds),
    )


def hypervolume_curve(record: StudyRecord) -> list[tuple[int, float]]:
    """(trial number, hypervolume of rung 0's front after it) for each finished trial."""
    if record.reference_point is None:
        return []
    worst = as_point(record.reference_point)
    points = np.empty((0, 3))
    curve, volume = [], 0.0
    for trial in record.trials:
        if trial.state == "running":
            continue
        if trial.state == "complete" and trial.objectives is not None:
            points = np.vstack([points, as_point(trial.objectives)])
            points = points[front.nondominated(points)]
            volume = front.hypervolume(points, worst)
        curve.append((trial.number, volume))
    return curve


# --- the recipe's copy --------------------------------------------------------------------------


def read_recipe(folder: Path) -> tuple[dict[str, Any], str] | None:
    """All settings of the study's recipe and their digest; None if there is no study yet.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RECIPE
    try:
        kept = json.loads(path.read_bytes())
        settings: dict[str, Any] = kept["settings"]
        digest = str(kept["digest"])
        if kept["sha256"] != _checksum(settings):
            raise ValueError("the checksum differs")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it from a copy") from error
    return settings, digest


def write_recipe(folder: Path, settings: dict[str, Any], digest: str) -> None:
    """Keep a study's settings, defaults included."""
    content = {"digest": digest, "sha256": _checksum(settings), "settings": settings}
    write_atomic(folder / RECIPE, json.dumps(content, indent=1).encode())


def _checksum(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


# --- trials -------------------------------------------------------------------------------------


def trial_folder(folder: Path, number: int) -> Path:
    """A trial's folder."""
    return folder / "trials" / f"{number:06d}"


def _trial(folder: Path, stored: Stored) -> TrialRecord | None:
    """A trial's record; None for one that was killed before it had a spec."""
    home = trial_folder(folder, stored.number)
    origin: dict[str, Any] = {
        "number": stored.number,
        "origin": stored.origin,
        "parents": stored.parents,
        "genome": stored.genome,
    }
    result = stored.result
    if result is None:
        return _running(home, origin)
    files = result.files
    proposed = stages.read(home / "spec.json", Proposed, files["spec"]).value
    profiled = Profiled(profiles={})
    looks = [name for name in ("profile-2", "profile") if name in files]
    if looks:
        path = home / f"{looks[0]}.json"
        profiled = stages.read(path, Profiled, files[looks[0]]).value
    rungs = [
        stages.read(home / f"rung-{index}.json", Rung, files[f"rung-{index}"]).value.model_copy(
            update={"objectives": objectives}
        )
        for index, objectives in enumerate(result.objectives)
    ]
    return TrialRecord(
        **origin,
        state=result.state,
        spec=proposed.spec,
        proxy_spec=proposed.proxy_spec,
        costs=proposed.costs,
        profiles=profiled.profiles,
        left_out=profiled.left_out,
        broken=result.broken,
        straddles=result.straddles,
        rungs=tuple(rungs),
        hypervolume_gain=result.hypervolume_gain,
        error=result.error,
        seconds=result.seconds,
    )


def _running(home: Path, origin: dict[str, Any]) -> TrialRecord | None:
    try:
        proposed = stages.peek(home / "spec.json", Proposed)
    except (OSError, ValueError):
        return None
    return TrialRecord(
        **origin,
        state="running",
        spec=proposed.spec,
        proxy_spec=proposed.proxy_spec,
        costs=proposed.costs,
    )


def _reference(folder: Path, baseline: Baseline) -> TrialRecord:
    home, files = folder / REFERENCE, baseline.files
    proposed = stages.read(home / "spec.json", Proposed, files["spec"]).value
    profiled = stages.read(home / "profile.json", Profiled, files["profile"]).value
    by_rung: list[list[Rung]] = [[] for _ in baseline.objectives]
    for name in sorted(name for name in files if name.startswith("rung-")):
        rung = stages.read(home / f"{name}.json", Rung, files[name]).value
        by_rung[rung.index].append(rung)
    return TrialRecord(
        number=-1,
        state="complete",
        origin="reference",
        genome={},
        spec=proposed.spec,
        proxy_spec=proposed.proxy_spec,
        costs=proposed.costs,
        profiles=profiled.profiles,
        rungs=tuple(reference_rungs(by_rung, baseline.objectives)),
        seconds=baseline.seconds,
    )


# --- time ---------------------------------------------------------------------------------------


def _seconds(records: list[TrialRecord]) -> dict[str, float]:
    """Wall time by stage, over the reference preset and all trials."""
    names = list(dict.fromkeys(name for record in records for name in record.seconds))
    return {name: math.fsum(record.seconds.get(name, 0.0) for record in records) for name in names}


def _overhead(seconds: dict[str, float]) -> float | None:
    """Share of the main process outside the stages; imports aside."""
    total = math.fsum(seconds.values())
    return seconds.get("search", 0.0) / total if total > 0 else None
