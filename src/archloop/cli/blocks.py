"""`archloop blocks`: a table of what the blocks of a recipe's space cost, for screening."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archloop.cli.command import AsJson, command, print_json, stderr
from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.profiling.block_table import BlockTable
    from archloop.profiling.record import Profile
    from archloop.search.plan import Plan
    from archloop.stack.spec import StackSpec

DRAWS = 200
"""Stacks of the prior, from which the blocks are taken that occur most often."""


@command(takes_plugins=False)
def blocks(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table's file.")],
    target: Annotated[
        str | None, typer.Option(help="One of the recipe's targets; all by default.")
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, help="Halves of blocks to measure, the most frequent first.")
    ] = 60,
    copies: Annotated[
        int, typer.Option(min=1, help="Of a half, in the stack measured for it.")
    ] = 4,
    stacks: Annotated[
        int, typer.Option(min=0, help="Whole stacks of the space, which tell what copies cannot.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Measure what single blocks of a recipe's space cost, so that its study can screen by them.

    Name the file under the recipe's tables:. Measurements stay beside it, so that an interrupted
    run goes on.
    """
    from archloop.search.plan import resolve
    from archloop.search.recipe.recipe import load

    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name the table's file")
    plan = resolve(load(recipe).varied(tables={}))
    names = list(plan.recipe.targets) if target is None else [target]
    if unknown := [name for name in names if name not in plan.recipe.targets]:
        raise UserError(f"--target {unknown[0]}: the recipe has {', '.join(plan.recipe.targets)}")
    folder = output.with_name(f"{output.name}.measured")
    first, *others = (_table(plan, name, folder / name, most, copies, stacks) for name in names)
    found = first.joined(others)
    found.write(output)
    if as_json:
        print_json({"file": str(output), "rows": len(found.rows), "targets": names})
        return
    stderr.print(f"{output}: {len(found.rows)} rows on {', '.join(names)}", markup=False)


def _table(
    plan: "Plan", name: str, folder: Path, most: int, copies: int, stacks: int
) -> "BlockTable":
    """Rows of one target."""
    from archloop import registry
    from archloop.devices.lease import held, told_waiting
    from archloop.profiling import piecework, profile, remembered
    from archloop.profiling.artifacts import writing

    target = plan.recipe.targets[name]
    # Every half of the reference preset comes first: ratios and budgets refer to it.
    drawn = _drawn(plan)
    wanted = piecework.halves(plan.reference, drawn)
    kept = {ends: list(islice(own, most)) for ends, own in wanted.items()}
    num_halves = sum(map(len, kept.values()))
    left_out = sum(map(len, wanted.values())) - num_halves
    whole = piecework.whole((plan.reference, *drawn), stacks)
    stderr.print(
        f"{name}: {len(kept) + num_halves} ends and halves and {len(whole)} stacks to measure, "
        f"{left_out} rarer halves left to be estimated"
    )

    def say_waiting(words: str) -> None:
        if words:
            stderr.print(f"{name}: waiting for {words}", markup=False, soft_wrap=True)

    def measure(spec: "StackSpec", home: Path) -> "Profile":
        stderr.print(f"{name}: {_in_words(spec)}", markup=False)
        with told_waiting(say_waiting), held(target.claims()):
            return profile(spec, target, plan.recipe.profile, directory=home)

    # What was measured with other settings, or by another version of the engine, does not count.
    place = folder / remembered.circumstances(target, plan.recipe.profile)
    written_by = writing(registry.get("runtimes", target.runtime)())
    return piecework.table(kept, whole, measure, place, copies, written_by)


def _in_words(spec: "StackSpec") -> str:
    """What a stack that is measured for a table consists of."""
    halves = Counter(
        " + ".join(part.name for part in (*block.mixers, block.channel_mixer) if part is not None)
        for block in spec.blocks
    )
    return ", ".join(f"{count} x {half}" for half, count in halves.items()) or "ends alone"


def _drawn(plan: "Plan") -> "list[StackSpec]":
    """Draws of the prior, at ship width."""
    import numpy as np

    from archloop.space.specs import to_spec
    from archloop.space.variation import sample

    rng = np.random.default_rng(plan.recipe.seed)
    return [to_spec(plan.space, sample(plan.space, rng), "ship") for _ in range(DRAWS)]
