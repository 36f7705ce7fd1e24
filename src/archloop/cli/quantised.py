"""`archloop quantised`: the front's proxies in the numbers of each target's quantisation."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from archloop.cli.command import AsJson, command, print_json, stderr, stdout
from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.findings.quantised import Loss
    from archloop.stack.decoder import Decoder


@command(takes_plugins=False)
def quantised(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")],
    as_json: AsJson = False,
) -> None:
    """Score the front's proxies as each target quantises, and mark whose lead that takes.

    Eager PyTorch computes with the engines' own rounding of weights and activations. The proxies
    must have been kept (the recipe's keep: front or all).
    """
    losses = _losses(study)
    if as_json:
        print_json([_plain(each) for each in losses])
    else:
        _show(losses, stdout())


def _losses(folder: Path) -> "list[Loss]":
    from archloop import registry
    from archloop.cli.own_plugins import add_plugins_of
    from archloop.findings import quantised as findings
    from archloop.findings.verdict import verdict
    from archloop.proxy import mixture, quantised, scoring
    from archloop.search.study import Study
    from archloop.store.folder import StudyFolder

    opened = Study.open(folder)
    recipe, record = opened.recipe, opened.read()
    found = verdict(record)
    if found is None or record.scale is None:
        raise UserError(f"{folder} has no front with scores yet; let `archloop search` go on")
    # Its tasks may be its own.
    add_plugins_of(StudyFolder(folder))
    data = mixture.prepare(recipe.proxy, None, recipe.root)
    rows, losses, gone = findings.front(found), [], []
    for row in rows:
        try:
            decoder = _proxy(folder, row.trial.number)
        except UserError as error:
            # What is let go while a stack is off the front is not there when it is back.
            gone.append(error)
            stderr.print(str(error), markup=False)
            continue
        before = scoring.evaluate(decoder, data, recipe.proxy)
        for engine in dict.fromkeys((at.runtime, at.quant) for at in recipe.targets.values()):
            runtime = registry.get("runtimes", engine[0])()
            try:
                after = quantised.scores(decoder, runtime, engine[1], data, recipe.proxy)
            except UserError as error:
                stderr.print(f"trial {row.trial.number}, {' '.join(engine)}: {error}", markup=False)
                continue
            losses.append(findings.loss(record, found, row, engine, before, after))
    if gone and len(gone) == len(rows):
        raise gone[0]
    return losses


def _proxy(folder: Path, number: int) -> "Decoder":
    """A trial's trained proxy, also where its model to ship was trained, with another tokenizer.

    Raises:
        UserError: the study did not keep it, or it cannot be loaded.
    """
    import torch

    from archloop.checkpoints.loading import load
    from archloop.cli.models import find

    named = find(str(folder), str(number))
    if named.proxy is None or not named.proxy.is_dir():
        raise UserError(
            f"{named.label} has no proxy here: the study did not keep its proxy, or was copied "
            "without; search under another name with keep: all"
        )
    # Kept in float16 to be small; it was trained in float32.
    return load(named.proxy, torch.float32)


def _plain(loss: "Loss") -> dict[str, Any]:
    return {
        **loss._asdict(),
        "lost": _finite(loss.lost),
        "before": {name: _finite(score.value) for name, score in loss.before.items()},
        "after": {name: _finite(score.value) for name, score in loss.after.items()},
        "is_marked": loss.is_marked,
    }


def _finite(value: float) -> float | None:
    """A number that JSON has; None for a score that overflowed."""
    return value if math.isfinite(value) else None


def _show(losses: "list[Loss]", console: Console) -> None:
    names = list(losses[0].before) if losses else []
    table = Table("trial", "runtime", "quant", *names, "quality lost", "lead", "", box=None)
    for loss in losses:
        scores = [f"{loss.before[n].value:.4f} > {loss.after[n].value:.4f}" for n in names]
        lead = "-" if loss.lead is None else f"{loss.lead:.3f}"
        mark = "loses more than its lead" if loss.is_marked else ""
        head = (str(loss.number), loss.runtime, loss.quant)
        table.add_row(*head, *scores, f"{loss.lost:.3f}", lead, mark)
    console.print(table)
