"""A recipe resolved: the space, the reference preset's specs, the strategy, ready to run.

Everything that a recipe can be wrong about without measuring comes to light here.
"""

from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError

from archloop import registry
from archloop.errors import UserError
from archloop.profiling.target import Target
from archloop.proxy import mixture
from archloop.ranking.budgets import check_budgets
from archloop.ranking.objectives import readable
from archloop.runtimes.base import Runtime
from archloop.search import anchors, exportable, screening
from archloop.search.anchors import AnchorStacks
from archloop.search.base import Proposal, Strategy
from archloop.search.mixer_checks import check_mixers
from archloop.search.recipe.errors import RecipeError, describe
from archloop.search.recipe.recipe import GivenStack, Recipe
from archloop.search.screening import Screen
from archloop.space import seeding
from archloop.space.budget import OutOfReachError
from archloop.space.checking import check_sequence_length
from archloop.space.encoding import proxied
from archloop.space.genome import Genome
from archloop.space.opening import open_space
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.stack import cost, presets
from archloop.stack.spec import StackSpec
from archloop.store.record import Candidate, Costs
from archloop.text import corpora
from archloop.training.loop import torch_device


class Plan(NamedTuple):
    """What a study runs.

    Attributes:
        contexts: profiled on any target, ascending.
        reference: ship spec of the reference preset; `reference_proxy` is what is trained.
        reference_genome: of the reference preset, empty when it is not of this space.
        vocab_size: of proxies: text and task tokens.
        given: candidates that the recipe itself names, tried before the strategy is asked.
        anchors: stacks between which scores are normalised.
        screen: the recipe's tables of measured blocks, which the strategy is held to.
    """

    recipe: Recipe
    space: Space
    strategy: Strategy
    contexts: tuple[int, ...]
    reference: StackSpec
    reference_proxy: StackSpec
    reference_genome: dict[str, Any]
    vocab_size: int
    given: tuple[Candidate, ...]
    anchors: AnchorStacks
    screen: Screen | None

    @property
    def reference_candidate(self) -> Candidate:
        """The reference preset as a trial's subject."""
        return Candidate(
            spec=self.reference,
            proxy_spec=self.reference_proxy,
            genome=self.reference_genome or None,
            origin="reference",
        )

    def of_devices(self) -> "Plan":
        """The same without quality: what devices say is optimised, and no candidate is trained."""
        wanted = readable(self.recipe.objectives, None)
        proxy = self.recipe.proxy
        # Nothing climbs to a rung on which nothing is trained.
        first = proxy.model_copy(update={"rungs": proxy.rungs[:1]})
        recipe = self.recipe.model_copy(update={"objectives": wanted, "proxy": first})
        return self._replace(recipe=recipe, strategy=_strategy(recipe, self.space, self.screen))

    def without_early_end(self) -> "Plan":
        """The same, ended by the number of its trials alone."""
        recipe = self.recipe.model_copy(update={"max_hours": None, "until_still": None})
        return self._replace(recipe=recipe)

    def with_seeds(self, seeds: int) -> "Plan":
        """The same with so many trainings of each trial at rung 0."""
        return self._replace(recipe=self.recipe.model_copy(update={"seeds": seeds}))

    @property
    def trains(self) -> bool:
        """Whether candidates are trained: some objective is read of their scores."""
        return any(each.category is not None for each in self.recipe.objectives)

    def candidate(self, proposal: Proposal) -> Candidate:
        """What a proposed genome comes to, at both widths."""
        return Candidate(
            spec=to_spec(self.space, proposal.genome, "ship"),
            proxy_spec=to_spec(self.space, proposal.genome, "proxy", self.vocab_size),
            genome=proposal.genome.model_dump(mode="json"),
            origin=proposal.origin,
            parents=proposal.parents,
            replicates=proposal.replicates,
        )

    def costs(self, spec: StackSpec) -> Costs:
        """What formulas say of a ship spec."""
        return Costs(
            num_params=cost.num_params(spec),
            num_active_params=cost.num_active_params(spec),
            state_bytes={str(c): cost.state_bytes(spec, c, torch.bfloat16) for c in self.contexts},
            decode_flops={str(c): cost.decode_flops(spec, c) for c in self.contexts},
        )


def resolve(recipe: Recipe) -> Plan:
    """Resolve a recipe.

    Raises:
        RecipeError: a name, value or combination that cannot work; one line with key and remedy.
    """
    try:
        return _resolve(recipe)
    except RecipeError:
        raise
    except UserError as error:
        raise recipe.error(str(error)) from error


def _resolve(recipe: Recipe) -> Plan:
    if recipe.plugins is not None:
        _add_plugins(recipe)
    for name, target in recipe.targets.items():
        where = f"targets.{name}."
        target.check(where)
        runtime: Runtime = registry.get("runtimes", target.runtime)()
        elsewhere = recipe.executor.name != "local"
        missing = runtime.missing_to_export() or _missing_here(target, runtime)
        if missing and not elsewhere:
            raise UserError(f"{where}runtime: {target.runtime}: {missing}")
    contexts = tuple(sorted({c for target in recipe.targets.values() for c in target.contexts}))
    check_budgets(recipe.budgets, {n: t.contexts for n, t in recipe.targets.items()}, True)
    for path in recipe.proxy.corpus.paths:
        _prefixed("proxy.corpus.paths", corpora.resolve, path, recipe.root)
    if recipe.executor.name == "local":
        _prefixed("proxy.device", torch_device, recipe.proxy.device)
    for index, device in enumerate(recipe.executor.devices):
        _prefixed(f"executor.devices[{index}]", torch_device, device)
    space = open_space(recipe.space)
    seq_len = recipe.proxy.training.seq_len
    _prefixed("proxy.training.seq_len", check_sequence_length, space, seq_len)
    vocab_size = _prefixed("proxy", mixture.vocab_size, recipe.proxy)
    said = recipe.space.proxy.vocab_size
    if said not in (None, vocab_size):
        raise UserError(
            f"space.proxy.vocab_size={said}: text and tasks need {vocab_size}; leave it out"
        )
    reference, genome = _prefixed("reference", _reference, recipe, space)
    reference_proxy = _prefixed("reference", proxied, space, reference, vocab_size)
    if genome:
        reference_proxy = to_spec(space, Genome.model_validate(genome), "proxy", vocab_size)
    for given in recipe.specs:
        if isinstance(given, GivenStack) and given.spec == reference:
            reference_proxy = given.proxy
    for spec in (reference, reference_proxy):
        _prefixed("reference", cost.check, spec)
    for name, target in recipe.targets.items():
        if reason := registry.get("runtimes", target.runtime)().unsupported(reference):
            raise UserError(
                f"targets.{name}: {target.runtime} cannot run the reference preset, so nothing "
                f"can be compared with it there: {reason}"
            )
    check_mixers(space, reference_proxy)
    screen = screening.read(recipe, reference)
    return Plan(
        recipe,
        space,
        _strategy(recipe, space, screen),
        contexts,
        reference,
        reference_proxy,
        genome,
        vocab_size,
        _given(recipe, space, vocab_size, (reference, reference_proxy)),
        anchors.resolve(recipe, space, reference_proxy, vocab_size),
        screen,
    )


def _missing_here(target: Target, runtime: Runtime) -> str | None:
    """What a target on this very machine lacks; a device elsewhere is asked when it is reached."""
    return runtime.missing_to_run() if target.device.name == "host" else None


def _prefixed(key: str, function: Any, *arguments: Any) -> Any:
    """Call; a `UserError`'s message then starts with the recipe's key."""
    try:
        return function(*arguments)
    except UserError as error:
        text = str(error)
        if isinstance(error, OutOfReachError):
            text += "; take another layout, or widen space.budget.tolerance"
        raise UserError(text if text.startswith(key) else f"{key}: {text}") from error


def _add_plugins(recipe: Recipe) -> None:
    assert recipe.plugins is not None
    try:
        folder = (recipe.root / recipe.plugins).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        # Python 3.11 and 3.12 tell of a circle of symbolic links by a RuntimeError.
        raise UserError(f"plugins={recipe.plugins!r} cannot be followed: {error}") from error
    if Path(recipe.plugins).is_absolute() or not folder.is_relative_to(recipe.root.resolve()):
        raise UserError(
            f"plugins={recipe.plugins!r} leads outside the recipe's folder; plug-ins are programs, "
            "so keep them beside the recipe that runs them"
        )
    _prefixed("plugins", registry.add_folder, folder)


def _known(key: str, kind: str, name: str) -> None:
    names = registry.names(kind)
    if name not in names:
        raise UserError(f"{key}={name!r}: unknown; {registry.suggest(name, names)}")


def _reference(recipe: Recipe, space: Space) -> tuple[StackSpec, dict[str, Any]]:
    section = recipe.reference
    if section.layout is not None:
        genome = seeding.from_layout(space, section.layout)
        return to_spec(space, genome, "ship"), genome.model_dump(mode="json")
    if section.spec is not None:
        return section.spec, {}
    assert section.preset is not None
    return presets.load(section.preset), {}


def _given(
    recipe: Recipe, space: Space, vocab_size: int, reference: tuple[StackSpec, StackSpec]
) -> tuple[Candidate, ...]:
    """The recipe's own specs: no genome, so nothing is mutated, repaired or told to a strategy.

    The reference preset among them is trained as the reference preset is.
    """
    candidates = []
    for index, given in enumerate(recipe.specs):
        key = f"specs[{index}]"
        origin, own = "recipe", None
        if isinstance(given, GivenStack):
            origin, spec, own = given.name, given.spec, given.proxy
            if own.vocab_size != vocab_size:
                raise UserError(
                    f"{key}.proxy.vocab_size={own.vocab_size}: text and tasks need {vocab_size}"
                )
        elif isinstance(given, StackSpec):
            spec = given
        else:
            origin, spec = given, _prefixed(key, presets.load, given)
        if spec == reference[0]:
            proxy_spec = reference[1]
        else:
            proxy_spec = own or _prefixed(key, proxied, space, spec, vocab_size)
        for each in (spec, proxy_spec):
            _prefixed(key, cost.check, each)
        candidates.append(Candidate(spec=spec, proxy_spec=proxy_spec, genome=None, origin=origin))
    return tuple(candidates)


def _initial(recipe: Recipe, space: Space) -> list[Genome]:
    genomes = []
    for index, layout in enumerate(recipe.initial):
        key = f"initial[{index}]"
        if isinstance(layout, str):
            preset = _prefixed(key, presets.load, layout)
            genomes.append(_prefixed(key, seeding.from_spec, space, preset))
        else:
            genomes.append(_prefixed(key, seeding.from_layout, space, layout))
    return genomes


def _strategy(recipe: Recipe, space: Space, screen: Screen | None) -> Strategy:
    section = recipe.strategy
    _known("strategy.name", "strategies", section.name)
    strategy_class = registry.get("strategies", section.name)
    try:
        config = strategy_class.Config(**section.settings)
    except ValidationError as error:
        what = describe(error, strategy_class.Config, section.settings)
        raise UserError(f"strategy.settings.{what}") from error
    strategy: Strategy = strategy_class(space, config, _initial(recipe, space), recipe.objectives)
    exportable.hold(strategy, space)
    if screen is not None:
        screen.hold(strategy, space)
    return strategy


class Stream(IntEnum):
    """What is trained beside the trials."""

    REFERENCE = 1
    TUNING = 2
    PROBE = 3
    ANCHORS = 4


def training_seed(study_seed: int, number: int, index: int = 0) -> int:
    """Seed of a trial's training, from the study's seed, the trial's number and which it is."""
    key = [study_seed, number, index] if index else [study_seed, number]
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def stream_seed(study_seed: int, stream: Stream, index: int = 0, number: int = 0) -> int:
    """Seed of a training that is none of a trial: no trial has one of these.

    Args:
        study_seed: of the study.
        stream: what is trained.
        index: of the stack, or of the training where there is one stack.
        number: of the training, where there are several stacks.
    """
    # A key that is longer than a trial's is another one. A large number in a key as short would not
    # do: NumPy reads keys as words of 32 bits, so that it would be a trial's number and an index.
    key = [study_seed, 0, 0, 0, stream, index, number]
    return int(np.random.SeedSequence(key).generate_state(1)[0])
