"""Recipes: a whole study as one YAML file, checked before anything runs.

Whatever is wrong with a recipe is a `RecipeError`: one line that names the file, the key and the
remedy. What can be known without measuring (names, types, widths, budgets that no spec can meet,
missing corpus files) is refused here; `search.plan` resolves the rest.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from archloop.profiling.config import ProfileConfig
from archloop.profiling.target import MAX_THREADS, Target
from archloop.proxy.config import ProxyConfig
from archloop.ranking.budgets import Budget
from archloop.ranking.objectives import MEASURED, OBJECTIVES, has_contexts
from archloop.ranking.record import Objective
from archloop.search.recipe import plain_yaml
from archloop.search.recipe.code import what_runs
from archloop.search.recipe.earlier import known_to
from archloop.search.recipe.errors import RecipeError, boolean_for_number, describe
from archloop.search.recipe.tables import TableSection, section_of
from archloop.space.config import SpaceConfig
from archloop.stack.spec import StackSpec

REFERENCE = "reference"
"""What the reference preset is called among the anchor stacks."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME_RULE = (
    "a name is a folder's name: up to 100 letters, digits, '.', '_' and '-', "
    "the first a letter or digit"
)


def _without_password(url: str | None) -> str | None:
    """A database's URL without what may open it; the URL itself if it has no such part."""
    if url is None:
        return None
    parsed = make_url(url)
    secret = [key for key in parsed.query if "password" in key.lower()]
    if parsed.password is None and not secret:
        return url
    # SQLAlchemy's `URL.set` takes None for "no change", so the password is removed by the named
    # tuple's own `_replace`.
    rest = parsed._replace(password=None).difference_update_query(secret)
    return rest.render_as_string(hide_password=False)


def _preset_or_section(value: object) -> object:
    return {"preset": value} if isinstance(value, str) else value


def _known_objective(value: object) -> object:
    return next((each for each in OBJECTIVES if each.name == value), value)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reference(_Section):
    """The reference preset, by one of three ways; a bare word is the name of a preset.

    Attributes:
        preset: a named spec.
        layout: mixers by block, with the first listed values of the space's genes.
        spec: a whole spec, at ship width.
    """

    preset: str | None = None
    layout: tuple[str, ...] | None = None
    spec: StackSpec | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "Reference":
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError("give one of preset, layout and spec")
        return self


class GivenStack(_Section):
    """A stack to try as it is, with a proxy of its own: what has no like at the space's width.

    Attributes:
        name: what the study calls it.
        spec: at ship width.
        proxy: what is trained, with the vocabulary of the study's text and tasks.
    """

    name: str
    spec: StackSpec
    proxy: StackSpec


class AnchorPair(_Section):
    """Two stacks between which scores are normalised.

    Each is ``reference``, a mixer of the space (a stack of it alone), a layout, a preset or a spec.

    Attributes:
        lacks: a stack that lacks the skill.
        has: one that has it.
    """

    lacks: str | tuple[str, ...] | StackSpec
    has: str | tuple[str, ...] | StackSpec


class StrategySection(_Section):
    """A strategy's plug-in name and its settings.

    Attributes:
        name: as `archloop plugins strategies` lists it.
        settings: of that strategy, by name.
    """

    name: str = "nsga2"
    settings: dict[str, Any] = {}


class Tuning(_Section):
    """Learning rates to try for each mixer of the space, on a stack of that mixer alone.

    Attributes:
        learning_rates: at least 3, or 2 where the curvature is known.
        num_steps: of each run.
        curvature: held-out bits per byte that a rate twice or half the best one costs, as other
            trainings of such stacks have shown it. The loss is then taken for a parabola of this
            curvature in the logarithm of the rate, and its lowest point is the rate.
    """

    # Before the rates, whose check reads it.
    curvature: Annotated[float, Field(gt=0)] | None = None
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...]
    num_steps: Annotated[int, Field(ge=1)]

    @field_validator("learning_rates")
    @classmethod
    def _check_count(cls, rates: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        rates = tuple(sorted(set(rates)))
        needed = 3 if info.data.get("curvature") is None else 2
        if len(rates) < needed:
            with_it = ", or 2 with a curvature" if needed == 3 else ""
            raise ValueError(
                f"{len(rates)} different values; tuning needs at least {needed}{with_it}"
            )
        return rates


class TimeLimits(_Section):
    """Wall time that a worker may take, in seconds.

    Attributes:
        train_s: of one training with its evaluation; one that takes longer has failed.
    """

    train_s: Annotated[float, Field(gt=0)] = 3600.0


class ExecutorSection(_Section):
    """Who does the work, and how many jobs at once: of the machine, and no part of the study.

    It may change between two runs of a study. With several jobs at once, a proposal knows of fewer
    results, which is kept with it.

    Attributes:
        name: ``local``, this machine; ``ray``, a Ray cluster that runs already.
        workers: jobs at once, each in a process of its own. None: as many as there is room for,
            which is `per_device` trainings on each card of the machine where `proxy.device` is
            ``cuda``, and one otherwise; one job more where some target can be measured while
            trainings go on.
        devices: of trainings, such as ``[cuda:0, cuda:1]``, one training on each entry at a time;
            an entry that is named twice takes two. Empty: `proxy.device`, where ``cuda`` means
            all cards in turn.
        per_device: trainings at once on each card; small ones leave a card idle in between.
        cuda_mps: NVIDIA's Multi-Process Service, by which trainings at once on one card compute at
            the same time instead of in turns: started for trainings alone, ended with the study.
            None: where several trainings share a card and it can be started; true: the study
            does not begin without it; false: never.
        address: of the Ray cluster, as ``auto`` or ``ray://head:10001``.
        train: what a training takes of a node of the cluster, by Ray's names, such as
            ``{GPU: 1}``; empty: its share of a card, or a processor for each of its threads.
        targets: likewise what measuring on a target takes, by the target's name: a phone at the
            cable of one node is ``{phone: 1}`` where that node was started with this resource.
    """

    name: Literal["local", "ray"] = "local"
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    devices: tuple[str, ...] = ()
    per_device: Annotated[int, Field(ge=1, le=64)] = 1
    cuda_mps: bool | None = None
    address: str = "auto"
    train: dict[str, Annotated[float, Field(ge=0)]] = {}
    targets: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = {}

    @model_validator(mode="after")
    def _check_name(self) -> "ExecutorSection":
        others = ("devices", "cuda_mps") if self.name == "ray" else ("address", "train", "targets")
        for key in sorted(others):
            # A recipe that was written out in full has every key, most at its default.
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} says nothing to executor {self.name}; leave it out")
        return self


class Recipe(_Section):
    """A study.

    Attributes:
        name: of the study and its folder.
        seed: with a trial's number, the source of everything random.
        num_trials: at most.
        max_hours: of measuring and training, after which no trial is proposed.
        until_still: trials in a row that are not on the front after which none is proposed.
        reference: what ratios and budgets refer to.
        objectives: what is optimised, each a figure, the way that is better, and how it is
            aggregated over contexts; bare words are those of the default. Quality, by which stacks
            are ranked, and latency, by which reports order them, are always among them.
        specs: stacks to try as they are, names of presets or whole specs at ship width, before the
            strategy is asked: the blocks of a model left out one by one, say. With a `proxy` of
            its own where the space's width does not suit; the reference's spec among them says
            which proxy the reference has.
        initial: layouts to try first: names of presets, or mixers by block.
        targets: what candidates are measured on, by name; the names key every record and figure.
        tables: of measured blocks, by which proposals are screened before one is measured: of a
            target, by its name, or of a device that is not here, by a name of your own.
        profile: how they are measured, on every target alike.
        promote_share: a trial whose expected hypervolume contribution is in this top share of its
            rung goes to the next one.
        looks: at the device, each in `processes` more processes, until the budgets are decided.
        resolve: distance from a budget, as a share of it, that the last look is to tell from the
            budget: a trial's looks are then as small as the noise known so far allows, and no
            larger than `profile.processes`. None: always that many.
        seeds: trainings of each trial at rung 0: more of them rank better.
        reference_seeds: trainings of the reference preset and of each anchor stack.
        replicates: of each trial that would be called on the front, before the study ends.
        anchors: by the name of a score or of a category, or `default`: stacks between which it is
            normalised. Without a `default`, the space's mixer that sees least far lacks every
            skill and the reference preset has it.
        keep: weights of trained proxies, in float16: of none, of the trials that no other surely
            dominates at a rung that it reached (`front`), or of all.
        tuning: of learning rates; without it the record says that they were not tuned.
        executor: jobs at once, and where; may change between runs.
        threads: of a training; None takes one per core, shared out among trainings at once.
        plugins: folder of plug-ins, from the recipe's own folder.
        storage: RDB URL of the study; SQLite in the study's folder if None. Its password is used
            and never kept: no file of the study has it, and another one is no other recipe.
    """

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    num_trials: Annotated[int, Field(ge=1)]
    max_hours: Annotated[float, Field(gt=0)] | None = None
    until_still: Annotated[int, Field(ge=2)] | None = None
    reference: Annotated[Reference, BeforeValidator(_preset_or_section)]
    objectives: tuple[Annotated[Objective, BeforeValidator(_known_objective)], ...] = OBJECTIVES
    specs: tuple[str | StackSpec | GivenStack, ...] = ()
    initial: tuple[str | tuple[str, ...], ...] = ()
    space: SpaceConfig
    targets: dict[str, Target] = Field({"host": Target.model_validate({})}, min_length=1)
    tables: dict[str, Annotated[TableSection, BeforeValidator(section_of)]] = {}
    profile: ProfileConfig = ProfileConfig.model_validate({})
    budgets: tuple[Budget, ...] = ()
    looks: Annotated[int, Field(ge=1, le=8)] = 2
    resolve: Annotated[float, Field(gt=0, le=1)] | None = None
    proxy: ProxyConfig = ProxyConfig()
    promote_share: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    reference_seeds: Annotated[int, Field(ge=2, le=1000)] = 3
    replicates: Annotated[int, Field(ge=0, le=100)] = 2
    anchors: dict[str, AnchorPair] = {}
    keep: Literal["none", "front", "all"] = "front"
    tuning: Tuning | None = None
    strategy: StrategySection = StrategySection()
    time_limits: TimeLimits = TimeLimits()
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)] | None = None
    plugins: str | None = None
    storage: str | None = None
    executor: ExecutorSection = ExecutorSection()

    _file: Path | None = PrivateAttr(None)
    _source: bytes = PrivateAttr(b"")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(_NAME_RULE)
        return name

    @field_validator("objectives")
    @classmethod
    def _check_objectives(cls, wanted: tuple[Objective, ...]) -> tuple[Objective, ...]:
        names = [objective.name for objective in wanted]
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two objectives are called {doubled!r}; name them apart")
        by_name = {objective.name: objective for objective in wanted}
        for needed in OBJECTIVES[:2]:
            if by_name.get(needed.name) != needed:
                raise ValueError(f"leave {needed.name} among them as it is; add others beside it")
        for objective in wanted:
            if objective.category is None and objective.of not in MEASURED:
                raise ValueError(
                    f"{objective.name!r} is of figure {objective.of!r}; known are quality, "
                    f"quality:<category>, {', '.join(MEASURED)}"
                )
            if objective.contexts == "worst" and not has_contexts(objective.of):
                raise ValueError(
                    f"{objective.name!r}: {objective.of} is not known by context; leave contexts "
                    "out, or name ttft_ms and decode_p50_ms with contexts: worst"
                )
        return wanted

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: dict[str, Target]) -> dict[str, Target]:
        for name in targets:
            # Each target has a folder of its name in the records of a trial.
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a target; {_NAME_RULE}")
        if all(target.optional for target in targets.values()):
            raise ValueError("every target is optional; leave optional out of one at least")
        return targets

    @model_validator(mode="after")
    def _check_executor(self) -> "Recipe":
        for name in self.executor.targets:
            if name not in self.targets:
                known = ", ".join(self.targets)
                raise ValueError(f"executor.targets.{name}: no such target; there are {known}")
        on = self.executor.devices or (self.proxy.device,)
        if self.executor.cuda_mps and not any(device.startswith("cuda") for device in on):
            raise ValueError(
                f"executor.cuda_mps: trainings run on {', '.join(on)}, and MPS shares NVIDIA's "
                "cards alone; leave it out, or say proxy.device: cuda"
            )
        return self

    @field_validator("storage")
    @classmethod
    def _check_storage(cls, url: str | None) -> str | None:
        try:
            _without_password(url)
        except ArgumentError:
            raise ValueError("no database URL, such as postgresql://user@host/name") from None
        return url

    @property
    def root(self) -> Path:
        """Folder that relative paths start from: the recipe's, or the working directory."""
        return self._file.parent if self._file else Path.cwd()

    @property
    def label(self) -> str:
        """What messages call it: its file, or its name."""
        return str(self._file) if self._file else f"recipe {self.name!r}"

    @property
    def source(self) -> bytes:
        """The YAML it was read from, or YAML that says the same; without a password."""
        if self._source and self.storage == _without_password(self.storage):
            return self._source
        return yaml.safe_dump(self.plain(), sort_keys=False).encode()

    def plain(self) -> dict[str, Any]:
        """All settings, defaults included, as JSON data; without the password of the storage."""
        return {**self.model_dump(mode="json"), "storage": _without_password(self.storage)}

    @property
    def digest(self) -> str:
        """Hash of all settings, tables and the plug-ins' code; layout and comments play no part."""
        return self._digest_of(self.plain())

    def digest_beside(self, kept: Mapping[str, Any]) -> str:
        """The digest of this recipe as an earlier archloop, which had fewer keys, would give it.

        A key that it did not have counts only where this recipe says something else than the
        default. A default that has another value since counts as the change that it is.

        Args:
            kept: all settings of a recipe, as that archloop wrote them.
        """
        return self._digest_of(self.plain_beside(kept))

    def plain_beside(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """All settings but those that an earlier archloop did not have and this recipe leaves be.

        Arguments as `digest_beside`.
        """
        said = self.model_dump(mode="json", exclude_defaults=True)
        found: dict[str, Any] = known_to(kept, self.plain(), said)
        return found

    def _digest_of(self, settings: Mapping[str, Any]) -> str:
        settings = {key: value for key, value in settings.items() if key != "executor"}
        if not settings.get("tables"):
            # So that a study from before there were tables is the same one still.
            settings.pop("tables", None)
        hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for file in (self.root / name for each in self.tables.values() for name in each.files):
            hasher.update(file.read_bytes() if file.is_file() else b"")
        if self.plugins is not None:
            folder = self.root / self.plugins
            for file in sorted(folder.rglob("*.py")):
                hasher.update(str(file.relative_to(folder)).encode())
                hasher.update(hashlib.sha256(what_runs(file.read_bytes())).digest())
        return hasher.hexdigest()

    def varied(self, **changes: Any) -> "Recipe":
        """The recipe with other settings, beside it: relative paths start where its own do.

        Raises:
            RecipeError: a key, type or value is wrong.
        """
        recipe = parse({**self.plain(), **changes}, self.label)
        recipe._file = self._file
        return recipe

    def error(self, message: str) -> RecipeError:
        """An error about this recipe."""
        return RecipeError(f"{self.label}: {message}")


def load(source: str | Path | Mapping[str, Any]) -> Recipe:
    """Read a recipe.

    Args:
        source: path of its YAML file; or its keys as a dict, whose relative paths start from the
            working directory.

    Raises:
        RecipeError: it is not plain YAML, or a key, type or value is wrong.
    """
    if isinstance(source, Mapping):
        return parse(dict(source), f"recipe {source.get('name', '')!r}")
    path = Path(source)
    try:
        data, text = plain_yaml.load(path)
    except plain_yaml.PlainYamlError as error:
        raise RecipeError(str(error)) from error
    recipe = parse(data, str(path))
    recipe._file, recipe._source = path.resolve(), text
    return recipe


def kept(copy: Path, folder: Path) -> Recipe:
    """The recipe that a study keeps, read as if it lay where it did.

    Args:
        copy: in the study's folder.
        folder: of the recipe, from which its relative paths start.

    Raises:
        RecipeError: as `load`.
    """
    recipe = load(copy)
    recipe._file = (folder / copy.name).resolve()
    return recipe


def parse(data: Any, label: str) -> Recipe:
    """A recipe from plain data; `label` is what messages call it. Raises as `load`."""
    if not isinstance(data, dict):
        raise RecipeError(f"{label}: a recipe is a mapping of keys, such as name: and space:")
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{label}: {describe(error, Recipe, data)}") from error
    if path := boolean_for_number(data, recipe.model_dump()):
        raise RecipeError(f"{label}: {path}: true and false are no numbers; give a number")
    return recipe


__all__ = ["Recipe", "RecipeError", "load", "parse"]
