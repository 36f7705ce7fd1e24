"""Reading a study: its database and stage files, and nothing else, become a `StudyRecord`.

No device, no recipe file and no PyTorch is needed, so a report can be made anywhere. A file that is
missing or damaged takes nothing away but itself: its trial is shown with what the database has, and
the file is named.
"""

import math
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from archloop.errors import UserError
from archloop.proxy.record import Rung
from archloop.store.connection import open_for_reading
from archloop.store.database import Stored
from archloop.store.folder import StudyFolder, TrialFolder
from archloop.store.identity import of_data
from archloop.store.record import FamilyRate, Outcome, StudyRecord, TrialRecord
from archloop.store.reference_run import ReferenceRun, one_rung
from archloop.store.stages import Profiled

T = TypeVar("T", bound=BaseModel)


def read(folder: str | Path, storage: str | None = None) -> StudyRecord:
    """A study's record, whether it is finished, running or was killed.

    Args:
        folder: ``<runs>/<name>``.
        storage: URL of its database, where that takes a password, which the folder does not keep.

    Raises:
        UserError: there is no study, it follows another schema, or its database is damaged.
    """
    home = StudyFolder(folder)
    card = home.read_card()
    if card is None and storage is None and not home.has_database():
        raise UserError(f"{folder}: no study here; run `archloop search` with a recipe first")
    url = storage or (card.settings["storage"] if card else None)
    with closing(open_for_reading(home.path, url, card.name if card else None)) as database:
        attributes = database.attributes()
        card = of_data(attributes.get("card"), str(folder))
        stored = database.trials()
    reference_run = None
    if "reference_run" in attributes:
        reference_run = ReferenceRun.model_validate(attributes["reference_run"])
    trials = [trial_record(home, trial) for trial in stored]
    reference = None if reference_run is None else _reference(home, reference_run)
    seconds = _seconds(trials if reference is None else [reference, *trials])
    return StudyRecord(
        name=card.name,
        recipe=card.settings,
        environment=attributes.get("environment") or {},
        reference=reference,
        reference_point=None if reference_run is None else reference_run.worst,
        scale=None if reference_run is None else reference_run.scale,
        dropped={} if reference_run is None else reference_run.dropped,
        anchors={} if reference_run is None else reference_run.anchors,
        noise=() if reference_run is None else reference_run.noise,
        learning_rates={} if reference_run is None else reference_run.learning_rates,
        ended=attributes.get("ended"),
        num_trials=attributes.get("num_trials") or card.settings.get("num_trials") or 0,
        trials=tuple(trials),
        seconds_by_phase=seconds,
        overhead=_overhead(seconds),
    )


class About(NamedTuple):
    """What commands on one trial need to know of its study.

    Attributes:
        settings: of the recipe.
        recipe_folder: where the recipe lay when the study last ran, on the machine it ran on.
        learning_rates: tuned, by mixer.
    """

    settings: dict[str, Any]
    recipe_folder: Path
    learning_rates: dict[str, FamilyRate]


def about(folder: str | Path) -> About:
    """What a study is, without its trials. Raises as `read`."""
    home = StudyFolder(folder)
    card = home.read_card()
    if card is None:
        raise UserError(f"{folder}: no study here; run `archloop search` with a recipe first")
    url = card.settings["storage"]
    with closing(open_for_reading(home.path, url, card.name)) as database:
        attributes = database.attributes()
    rates: dict[str, FamilyRate] = {}
    if "reference_run" in attributes:
        rates = ReferenceRun.model_validate(attributes["reference_run"]).learning_rates
    return About(card.settings, Path(attributes.get("recipe_folder") or "."), rates)


# --- trials -------------------------------------------------------------------------------------


class _Files:
    """Stage files of one trial that the database vouches for, and what is wrong with the others."""

    def __init__(self, folder: TrialFolder, checksums: dict[str, str]) -> None:
        self._folder, self._checksums = folder, checksums
        self.damaged: list[str] = []

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self._checksums if name.startswith(prefix))

    def read(self, name: str, record_type: type[T]) -> T | None:
        try:
            return self._folder.read(name, record_type, self._checksums[name])
        except UserError as error:
            self.damaged.append(str(error))
            return None

    def trainings(self, names: list[str]) -> list[Rung]:
        """A rung's trainings; none if the file of one is lost, since an average needs all."""
        found = [rung for name in names if (rung := self.read(name, Rung)) is not None]
        return found if len(found) == len(names) else []


def _rungs(trainings: dict[int, list[Rung]]) -> dict[str, Any]:
    """What a record has of trainings by rung: their average, and the scores of each of several."""
    return {
        "rungs": tuple(one_rung(each) for each in trainings.values() if each),
        "scores_by_seed": {
            index: tuple(rung.scores for rung in each)
            for index, each in trainings.items()
            if len(each) > 1
        },
    }


def trial_record(home: StudyFolder, stored: Stored) -> TrialRecord:
    """A trial as the database and its files have it; `damaged` names the files that are lost."""
    outcome = stored.outcome or Outcome(state="running")
    files = _Files(home.trial(stored.number), outcome.files)
    # The last look has the samples of those before; these are read for whether they are whole.
    looks = range(1, TrialFolder.last_look(outcome.files) + 1)
    looked = [files.read(TrialFolder.profile(look), Profiled) for look in looks]
    profiled = looked[-1] if looked else None
    trainings = {}
    # Of a study of devices no trial was trained.
    trained = TrialFolder.rung(0) in outcome.files
    for index in range(len(outcome.by_rung) if trained else 0):
        names = [TrialFolder.rung(index)]
        names += files.names(TrialFolder.rung(index, 0).removesuffix("0"))
        trainings[index] = files.trainings(names)
    return TrialRecord(
        **dict(stored.candidate),
        **dict(outcome),
        number=stored.number,
        costs=stored.costs,
        profiles={} if profiled is None else profiled.profiles,
        left_out={} if profiled is None else profiled.left_out,
        **_rungs(trainings),
        damaged=tuple(files.damaged),
    )


def _reference(home: StudyFolder, reference_run: ReferenceRun) -> TrialRecord:
    files = _Files(home.reference(), reference_run.files)
    profiled = files.read(TrialFolder.profile(1), Profiled)
    trainings = {
        index: files.trainings(files.names(TrialFolder.rung(index, 0).removesuffix("0")))
        for index in range(len(reference_run.objectives))
    }
    return TrialRecord(
        **dict(reference_run.candidate),
        state="complete",
        by_rung=reference_run.objectives,
        files=reference_run.files,
        seconds=reference_run.seconds,
        number=-1,
        costs=reference_run.costs,
        profiles={} if profiled is None else profiled.profiles,
        left_out={} if profiled is None else profiled.left_out,
        **_rungs(trainings),
        damaged=tuple(files.damaged),
    )


# --- time ---------------------------------------------------------------------------------------


def _seconds(records: list[TrialRecord]) -> dict[str, float]:
    """Wall time by phase, over the reference preset and all trials."""
    names = list(dict.fromkeys(name for record in records for name in record.seconds))
    return {name: math.fsum(record.seconds.get(name, 0.0) for record in records) for name in names}


def _overhead(seconds: dict[str, float]) -> float | None:
    """Share of what the main process did beside its jobs; imports aside."""
    total = math.fsum(seconds.values())
    return seconds.get("search", 0.0) / total if total > 0 else None
