"""The names of a study's files: the two classes here alone know them.

    <runs>/<study>/recipe.json  recipe.yaml  study.db  report.html
                   artifacts/                 exports that are used again
                   reference/                 the reference preset, as a trial's folder
                   tuning/<mixer>/rate-0.json ...
                   ends/<mixer>/rung-0-seed-0.json ...
                   trials/000000/spec.json    the stack to ship
                                 profile.json  profile-2.json  rung-0.json ...
                                 weights/     the trained proxy, if the recipe keeps it
                                 trained/     the stack trained at ship width, if it was

What lies in a stage's file is `store.stages`' matter; how the database is opened, that of
`store.connection`.
"""

from collections.abc import Container
from pathlib import Path

from archloop.files import write_atomic
from archloop.store.identity import Card, parse
from archloop.store.stages import StageFiles

DATABASE = "study.db"
"""Name of the database in a study's folder; SQLite keeps files of its own beside it."""


class TrialFolder(StageFiles):
    """A trial's stage files by what they hold, and where its larger files lie."""

    @staticmethod
    def profile(look: int) -> str:
        """Name of the stage of a measurement's first or second look."""
        return "profile" if look == 1 else f"profile-{look}"

    @classmethod
    def last_look(cls, names: Container[str]) -> int:
        """The last look at the device that there is a stage of; 0 if there is none."""
        look = 0
        while cls.profile(look + 1) in names:
            look += 1
        return look

    @staticmethod
    def rung(index: int, seed_index: int | None = None) -> str:
        """Name of the stage of a training; of several, the others also say which seed it was."""
        return f"rung-{index}" if seed_index is None else f"rung-{index}-seed-{seed_index}"

    @staticmethod
    def rate(index: int) -> str:
        """Name of the stage of a training under one of the learning rates that are tried."""
        return f"rate-{index}"

    @property
    def samples(self) -> Path:
        """Folder of raw samples of a measurement."""
        return self.folder / "samples"

    def work(self, name: str) -> Path:
        """Folder in which a stage's training works; it goes when the stage is done."""
        return self.folder / name

    @property
    def weights(self) -> Path:
        """Folder of the trained proxy: a checkpoint, of the highest rung that was trained whole."""
        return self.folder / "weights"

    @property
    def trained(self) -> Path:
        """Folder of the ship-width model, once it was trained."""
        return self.folder / "trained"

    @property
    def training(self) -> Path:
        """Folder of the training of the ship-width model, while it is under way, and its logs."""
        return self.folder / "training"

    @property
    def spec(self) -> Path:
        """File of the spec to ship, for people and for commands that take a spec."""
        return self.folder / "spec.json"

    def write_spec(self, text: str) -> None:
        """Lay the spec to ship beside the trial's stages."""
        write_atomic(self.spec, text.encode())

    def checkpoint(self, rung: int) -> Path:
        """Where a rung's training leaves what the next rung continues."""
        return self.folder / f"rung-{rung}.checkpoint"

    def has_checkpoint(self) -> bool:
        """Whether some training left what a longer one continues."""
        return any(self.folder.glob("rung-*.checkpoint"))

    def forget_checkpoints(self, but: int | None = None) -> None:
        """Remove what trainings left for longer ones, but that of one rung."""
        for path in self.folder.glob("rung-*.checkpoint"):
            if but is None or path != self.checkpoint(but):
                path.unlink(missing_ok=True)


class StudyFolder:
    """A study's folder.

    Args:
        path: ``<runs>/<name>``; need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_copy = self.path / "recipe.yaml"
        self.report = self.path / "report.html"
        self.artifacts = self.path / "artifacts"
        self._card = self.path / "recipe.json"
        self._trials = self.path / "trials"
        self._reference = self.path / "reference"
        self._tuning = self.path / "tuning"
        self._anchors = self.path / "anchors"

    def trial(self, number: int, key: str = "") -> TrialFolder:
        """A trial's folder; `key` ties its stages to the study and the spec, for writing."""
        return TrialFolder(self._trials / f"{number:06d}", key)

    def trial_numbers(self) -> list[int]:
        """Numbers of the trials that have a folder, ascending; of copies there are none."""
        names = (path.name for path in self._trials.glob("[0-9]*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def reference(self, key: str = "") -> TrialFolder:
        """The reference preset's folder."""
        return TrialFolder(self._reference, key)

    def tuning(self, mixer: str, key: str = "") -> TrialFolder:
        """Folder of a mixer's trainings under several learning rates."""
        return TrialFolder(self._tuning / mixer, key)

    def anchor(self, index: int, key: str = "") -> TrialFolder:
        """Folder of the trainings of an anchor stack, as many as the reference preset's."""
        return TrialFolder(self._anchors / f"{index}", key)

    def has_database(self) -> bool:
        """Whether the database is a file of the folder."""
        return (self.path / DATABASE).is_file()

    def begun(self) -> bool:
        """Whether any stage was ever begun here."""
        return any(path.exists() for path in (self._reference, self._tuning, self._trials))

    def has_card(self) -> bool:
        """Whether this is a study's folder."""
        return self._card.is_file()

    def read_card(self) -> Card | None:
        """Which study this is; None if there is none yet.

        Raises:
            UserError: the file is damaged, or of another version of archloop.
        """
        try:
            content = self._card.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return parse(content, str(self._card))

    def write_card(self, card: Card, recipe: bytes) -> None:
        """Keep which study this is, and its recipe as it was written."""
        write_atomic(self.recipe_copy, recipe)
        write_atomic(self._card, card.to_json().encode())

    def remove_card(self) -> None:
        """Forget which study this was: nothing was done under it."""
        self._card.unlink(missing_ok=True)
