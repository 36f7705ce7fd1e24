"""`archloop quantised`: the front's proxies in the numbers of each target's quantisation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from archloop.cli.command import AsJson, command, print_json, stderr
from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.findings.quantised import Loss


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
        _show(losses, Console(highlight=False))


def _losses(folder: Path) -> "list[Loss]":
    import torch

    from archloop import registry
    from archloop.cli.models import find
    from archloop.findings import quantised as findings
    from archloop.findings.verdict import verdict
    from archloop.proxy import mixture, quantised, scoring
    from archloop.search.study import Study

    opened = Study.open(folder)
    recipe, record = opened.recipe, opened.read()
    found = verdict(record)
    if found is None or record.scale is None:
        raise UserError(f"{folder} has no front with scores yet; let `archloop search` go on")
    data = mixture.prepare(recipe.proxy, None, recipe.root)
    losses = []
    for row in findings.front(found):
        named = find(str(folder), str(row.trial.number))
        decoder = named.text_model(torch.float32).decoder.eval()
        before = scoring.evaluate(decoder, data, recipe.proxy)
        for engine in dict.fromkeys((at.runtime, at.quant) for at in recipe.targets.values()):
            runtime = registry.get("runtimes", engine[0])()
            try:
                after = quantised.scores(decoder, runtime, engine[1], data, recipe.proxy)
            except UserError as error:
                stderr.print(f"trial {row.trial.number}, {' '.join(engine)}: {error}", markup=False)
                continue
            losses.append(findings.loss(record, found, row, engine, before, after))
    return losses


def _plain(loss: "Loss") -> dict[str, Any]:
    return {
        **loss._asdict(),
        "before": {name: score.value for name, score in loss.before.items()},
        "after": {name: score.value for name, score in loss.after.items()},
        "is_marked": loss.is_marked,
    }


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
