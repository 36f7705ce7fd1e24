"""`archloop plan`: what a recipe's study would measure, train and take, before it begins."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archloop.cli.command import AsJson, command, print_json, stderr, stdout
from archloop.ranking.reliability import NEEDED
from archloop.scratch import Scratch

if TYPE_CHECKING:
    from archloop.search.kits import Kits
    from archloop.search.outlook import Probe, SpaceOutlook
    from archloop.search.plan import Plan


@command(takes_plugins=False)
def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    probe: Annotated[
        bool, typer.Option(help="Measure and train a little, for times and noise.")
    ] = True,
    kits: Annotated[
        bool, typer.Option(help="Run the contract kits over the recipe's own plug-ins.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Check a recipe; say what its study would do, how long it takes and what it can tell."""
    from archloop.devices.lease import told_waiting
    from archloop.search import outlook
    from archloop.search.errors import StudyError
    from archloop.search.evaluator import CandidateFailed
    from archloop.search.hardware import HardwareEvaluator
    from archloop.search.plan import resolve
    from archloop.search.recipe.recipe import load

    resolved = resolve(load(recipe))
    tested = _tested(resolved) if kits else None
    space = outlook.of_space(resolved)
    found = None
    if probe:
        with Scratch("plan") as scratch:
            evaluator = HardwareEvaluator(resolved.recipe, Path(scratch) / "artifacts")
            try:
                with told_waiting(_say_waiting):
                    found = outlook.probe(resolved, evaluator, Path(scratch), _say)
            except CandidateFailed as error:
                raise StudyError(f"the probe failed: {error}") from error
    if as_json:
        print_json(_plain(resolved, space, found, tested))
        return
    for line in (*_of_kits(tested), *_lines(resolved, space, found)):
        stdout().print(line, markup=False, soft_wrap=True)


def _say(what: str) -> None:
    stderr.print(f"probe: {what}", markup=False, soft_wrap=True)


def _say_waiting(words: str) -> None:
    _say(f"waiting for {words}" if words else "the device is free")


def _tested(plan: "Plan") -> "Kits | None":
    """What the kits say of the recipe's plug-ins; None if it has none, or kits cannot run here.

    Raises:
        RecipeError: a plug-in breaks its contract.
    """
    from archloop.search import kits

    recipe = plan.recipe
    if recipe.plugins is None:
        return None
    if remedy := kits.missing():
        stderr.print(f"plug-ins were not tested: the kits need pytest; {remedy}")
        return None
    stderr.print("the contract kits over the recipe's plug-ins")
    found = kits.run(recipe.root / recipe.plugins)
    if found.failures:
        more = len(found.failures) - 1
        also = f" (and {more} more)" if more else ""
        raise recipe.error(f"plugins: {found.failures[0]}{also}; mend the plug-in, or --no-kits")
    return found


def _of_kits(tested: "Kits | None") -> Iterator[str]:
    if tested is not None:
        names = [f"{kind} {', '.join(names)}" for kind, names in tested.plugins.items()]
        yield f"plug-ins keep their contracts ({tested.num_passed} tests): {'; '.join(names)}"


def _plain(
    resolved: "Plan", space: "SpaceOutlook", found: "Probe | None", tested: "Kits | None"
) -> dict[str, Any]:
    from archloop.search import outlook
    from archloop.search.anchoring import too_short

    return {
        "name": resolved.recipe.name,
        "targets": {
            name: {"contexts": target.contexts, "runtime": target.runtime, "quant": target.quant}
            for name, target in resolved.recipe.targets.items()
        },
        "kits": None if tested is None else tested._asdict(),
        "rungs": resolved.recipe.proxy.rungs,
        "num_trials": resolved.recipe.num_trials,
        "not_counted": too_short(resolved),
        "space": {"log10_genomes": space.log10_genomes, "draws": space.draws._asdict()},
        "probe": None
        if found is None
        else {
            **found._asdict(),
            "quality": {name: e.model_dump() for name, e in found.quality.items()},
        },
        "seconds": None if found is None else outlook.seconds(resolved, found),
        "seconds_a_claim": None if found is None else outlook.claim_seconds(resolved, found),
    }


def _lines(plan: "Plan", space: "SpaceOutlook", probe: "Probe | None") -> Iterator[str]:
    """One line each."""
    from archloop.search.anchoring import too_short

    recipe = plan.recipe
    yield f"{recipe.label}: in order"
    for name, target in recipe.targets.items():
        contexts = ", ".join(f"{context:,}" for context in target.contexts)
        yield (
            f"measured on {name}: {target.runtime} {target.quant}, contexts {contexts}, "
            f"{recipe.profile.processes} processes a look, up to {recipe.looks} looks"
        )
    for budget in recipe.budgets:
        yield f"budget: {budget}"
    steps = ", then ".join(f"{steps}" for steps in recipe.proxy.rungs)
    times = "one training" if recipe.seeds == 1 else f"{recipe.seeds} trainings"
    yield (
        f"trained: {recipe.num_trials} trials for {steps} steps at width "
        f"{recipe.space.proxy.d_model}, {times} each; the reference"
        f"{''.join(f' and {name}' for name in plan.anchors.stacks)}, "
        f"{recipe.reference_seeds} each"
    )
    anchors = {**plan.anchors.pairs, "all other scores": plan.anchors.default}
    for what, (lacks, has) in anchors.items():
        yield f"quality: 0 is {lacks}, 1 is {has}, of {what}"
    short = too_short(plan)
    for task, reason in short.items():
        yield f"{task} does not count: {reason}"
    yield from _space(space)
    yield from _screened(plan)
    if probe is None:
        yield "not probed: no times, no noise"
        return
    yield from _probe(plan, probe, short)


def _screened(plan: "Plan") -> "Iterator[str]":
    """What each table rules out of the prior's draws; estimates, nothing is measured."""
    if plan.screen is None:
        return
    from archloop.search import screening

    for name, share in screening.shares_kept(plan.screen, plan.space, plan.recipe.seed).items():
        where, num_rows = plan.screen.tables[name].where, plan.screen.tables[name].num_rows
        yield (
            f"screened by tables.{name} ({num_rows} rows of {where.runtime} {where.quant} on "
            f"{where.device}): {share:.0%} of {screening.NUM_DRAWS:,} draws of the prior are "
            "estimated to keep its budgets"
        )


def _space(space: "SpaceOutlook") -> Iterator[str]:
    draws = space.draws
    size = f"10^{space.log10_genomes:.1f}"
    yield f"space: at most {size} genomes, before rules and budget, sharing aside"
    families = ", ".join(f"{count} with {number}" for number, count in draws.families.items())
    yield (
        f"its prior, {draws.num_genomes} draws: {draws.distinct} different specs; by number of "
        f"mixers: {families}; {draws.without_global:.0%} without any that reads every token"
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in draws.share_of_blocks.items())
    yield f"blocks of the prior: {shares}"


def _probe(plan: "Plan", probe: "Probe", short: dict[str, str]) -> Iterator[str]:
    from archloop.report.html import duration
    from archloop.search import outlook

    phases = outlook.seconds(plan, probe)
    parts = ", ".join(f"{phase} {duration(s)}" for phase, s in phases.items() if s)
    more = outlook.claim_seconds(plan, probe)
    replicates = f", and {duration(more)} more for each trial that it would claim" if more else ""
    yield f"time: about {duration(sum(phases.values()))} ({parts}){replicates}"
    for figure, share in probe.resolved.items():
        yield f"the gate resolves {share:.1%} around the limit of {figure}"
    for name, estimate in probe.quality.items():
        yield f"quality of {name}: {estimate.mean:.3f} ± {estimate.half_width():.3f}"
    for score, reason in probe.dropped.items():
        # What the recipe alone rules out was said above.
        if score not in short:
            yield f"{score} would not count: {reason}"
    if not probe.quality:
        yield (
            "no score told the anchor stacks apart: a study of devices, which trains no candidate, "
            "unless its own trainings of these stacks differ from the probe's"
        )
    elif probe.seeds is None:
        yield "these stacks do not differ in quality: no number of trainings ranks by it"
    else:
        needed = "one training" if probe.seeds == 1 else f"{probe.seeds} trainings"
        yield (
            f"reliability of one training at most {probe.reliability:.2f} ({NEEDED:g} is needed): "
            f"a ranking by quality takes at least {needed} a stack"
        )
