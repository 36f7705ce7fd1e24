"""What MODEL means on a command line, the same for every command that takes one.

    a preset's name                 its spec; weights are random
    a spec's .json file             likewise, such as a trial's trials/000007/spec.json
    a checkpoint's folder, a hub id its weights
    STUDY:7, STUDY --trial 7        to time and export: the trial's spec to ship, with random
                                    weights; to ask: its trained proxy; after `archloop train` its
                                    checkpoint either way. A number, or `reference`
    an exported artifact's folder   what was exported, run by its engine

A folder comes before a preset of its name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from archloop.cli.own_plugins import add_plugins_around, add_plugins_of
from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.generation.model import Model as TextModel
    from archloop.runtimes.artifact import Manifest
    from archloop.runtimes.base import Session
    from archloop.stack.decoder import Decoder
    from archloop.stack.spec import StackSpec
    from archloop.store.folder import StudyFolder, TrialFolder

Source = Literal["spec", "checkpoint", "trial", "artifact"]

SOURCE_HELP = (
    "A preset, a spec's .json file, a checkpoint's folder or hub id, or a study's trial "
    "(runs/x:7, or runs/x with --trial 7)."
)
MODEL_HELP = f"{SOURCE_HELP.removesuffix('.')}; or an exported artifact's folder."
MOST_SEED = 2**63 - 1
"""PyTorch takes none above."""
Trial = Annotated[
    str | None, typer.Option(help="MODEL is a study; this trial of it: a number, or reference.")
]


@dataclass(frozen=True)
class Named:
    """What a command line names.

    Attributes:
        label: for messages, and for a folder's name.
        source: a preset is a spec that has a name.
        spec: of the model to ship; of an artifact or a checkpoint, its own.
        folder: of the checkpoint or artifact; of a trial, that of its trained model, which is
            there only after `archloop train`.
        proxy: folder of a trial's proxy, which is there only if the study kept it.
        study: folder of the study that a trial is of.
    """

    label: str
    source: Source
    spec: "StackSpec"
    folder: Path | None = None
    proxy: Path | None = None
    study: Path | None = None

    @property
    def is_random(self) -> bool:
        """Whether nobody has trained it: a spec alone."""
        return self.source != "artifact" and not (self.folder and self.folder.is_dir())

    def decoder(self, seed: int) -> "tuple[Decoder, str]":
        """A decoder to export, and where its weights are from: a checkpoint, or at random.

        Raises:
            UserError: an artifact has no decoder, or the checkpoint cannot be loaded.
        """
        from archloop.runtimes.exporting import build_random

        if self.source == "artifact":
            raise UserError(f"{self.label} is an exported artifact; name what it was exported from")
        if self.folder is not None and self.folder.is_dir():
            from archloop.checkpoints.loading import load

            return load(self.folder).eval(), "checkpoint"
        return build_random(self.spec, seed), "random"

    def weights(self) -> Path | None:
        """Folder of the checkpoint to ask: a trial's trained model, else its proxy.

        Raises:
            UserError: the study has neither.
        """
        if self.source != "trial":
            return self.folder if self.source == "checkpoint" else None
        for folder in (self.folder, self.proxy):
            if folder is not None and folder.is_dir():
                return folder
        raise UserError(
            f"{self.label} has no weights here: the study did not keep its proxy (the recipe's "
            "keep:), or was copied without; train it by archloop train"
        )

    def is_proxy(self) -> bool:
        """Whether what `weights` answers is a trial's proxy."""
        return self.source == "trial" and self.weights() == self.proxy

    def text_model(self, dtype: object = None, device: object = "cpu") -> "TextModel":
        """Decoder, tokenizer and sampling defaults of a checkpoint or a trial.

        Raises:
            UserError: there are no weights, or they cannot be loaded.
        """
        import torch

        from archloop.generation.model import load_model

        folder = self.weights()
        if folder is None:
            raise UserError(
                f"{self.label} has random weights, which say nothing; give a checkpoint"
            )
        if dtype is None and self.is_proxy():
            # Kept in float16 to be small; it was trained in float32.
            dtype = torch.float32
        assert dtype is None or isinstance(dtype, torch.dtype)
        assert isinstance(device, (str, torch.device))
        return load_model(folder, dtype, device)


def find(name: str, trial: str | None = None) -> Named:
    """What a command line names.

    Args:
        name: MODEL.
        trial: of a study, whose folder MODEL then is.

    Raises:
        UserError: there is no such thing, or a trial is named of what is no study.
    """
    path = Path(name)
    if path.is_dir():
        return _folder(path, trial)
    study, colon, number = name.rpartition(":")
    if trial is None and colon and Path(study).is_dir():
        return _folder(Path(study), number)
    if trial is not None:
        raise UserError(f"--trial {trial} is of a study, and {name} is no folder of one")
    return Named(name, "spec", load_spec(name)) if _is_spec(name) else _checkpoint(name)


def load_spec(name: str) -> "StackSpec":
    """A preset by name, or a spec from a ``.json`` file.

    Raises:
        UserError: neither exists, or the file is not a spec that can be built.
    """
    from archloop.stack import presets
    from archloop.stack.spec import StackSpec

    path = Path(name)
    if path.suffix != ".json":
        return presets.load(name)
    add_plugins_around(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give a preset's name or a spec file")
    from archloop.stack import cost

    try:
        spec = StackSpec.from_json(path.read_bytes())
        cost.check(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return spec


def open_artifact(folder: Path, max_context: int) -> "tuple[Session, Manifest]":
    """An artifact, loaded by its engine with room for so many tokens.

    Raises:
        UserError: it is not whole, or its engine does not run here.
    """
    import torch

    from archloop import registry
    from archloop.runtimes.artifact import read_manifest
    from archloop.runtimes.base import Runtime

    manifest = read_manifest(folder)
    engine: Runtime = registry.get("runtimes", manifest.runtime)()
    if not engine.runs_here() and engine.missing_to_run() is None:
        raise UserError(
            f"{folder} is for {manifest.runtime}, whose runner is a program of its own; it can be "
            "timed here, not asked"
        )
    return engine.open(folder, torch.get_num_threads(), max_context), manifest


def _is_spec(name: str) -> bool:
    from archloop.stack import presets

    # A hub id has a slash, which no preset's name has.
    return name.endswith(".json") or name in presets.names() or "/" not in name


def _folder(path: Path, trial: str | None) -> Named:
    from archloop.runtimes.artifact import MANIFEST, read_manifest
    from archloop.store.folder import StudyFolder

    study = StudyFolder(path)
    if study.read_card() is not None:
        return _trial(study, trial)
    if trial is not None:
        raise UserError(f"--trial {trial} is of a study, and {path} is none")
    if (path / MANIFEST).is_file():
        return Named(str(path), "artifact", read_manifest(path).spec, path)
    return _checkpoint(str(path))


def _trial(study: "StudyFolder", trial: str | None) -> Named:
    if trial is None:
        raise UserError(f"{study.path} is a study; say which of its trials: --trial 7")
    files = _trial_folder(study, trial)
    if files is None:
        numbers = study.trial_numbers()
        known = f"it has {numbers[0]} to {numbers[-1]}" if numbers else "it has none yet"
        raise UserError(f"{study.path} has no trial {trial}; {known}, and reference")
    add_plugins_of(study)
    # Absolute: the folder that "." means has a name.
    name = study.path.absolute().name
    label = f"{name}-reference" if trial == "reference" else f"{name}-trial-{trial}"
    spec = load_spec(str(files.spec))
    return Named(label, "trial", spec, files.trained, files.weights, study.path)


def _trial_folder(study: "StudyFolder", trial: str) -> "TrialFolder | None":
    if trial == "reference":
        files = study.reference()
    elif trial.isdecimal():
        files = study.trial(int(trial))
    else:
        raise UserError(f"--trial {trial!r} must be a number, or reference")
    return files if files.spec.is_file() else None


def _checkpoint(name: str) -> Named:
    from archloop.checkpoints import hub
    from archloop.checkpoints.loading import read_spec

    folder = hub.resolve(name)
    return Named(name, "checkpoint", read_spec(folder), folder)
