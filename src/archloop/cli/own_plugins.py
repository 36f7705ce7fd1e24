"""A study's own plug-ins, which commands on its trials look for where they lay when it last ran."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archloop.store.folder import StudyFolder


def add_plugins_of(study: "StudyFolder") -> bool:
    """Look for plug-ins in a study's own folder too; whether there is one."""
    from archloop import registry
    from archloop.store import reading

    card = study.read_card()
    assert card is not None
    name = card.settings.get("plugins")
    if not name:
        return False
    folder = reading.about(study.path).recipe_folder / name
    # Elsewhere they are given by --plugins; a mixer that is missing says so itself.
    if not folder.is_dir():
        return False
    registry.add_folder(folder)
    return True


def add_plugins_around(path: Path) -> None:
    """The plug-ins of the study that a file is of, as of ``trials/000007/spec.json``."""
    from archloop.store.folder import StudyFolder

    for folder in path.resolve().parents[1:3]:
        study = StudyFolder(folder)
        if study.has_card():
            add_plugins_of(study)
