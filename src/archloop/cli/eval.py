"""`archloop eval`: score a model on a suite, or train and test a layout by MAD's protocol."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from archloop.cli.command import AsJson, command, print_json, stderr, stdout
from archloop.cli.models import MODEL_HELP, Named, Trial, find
from archloop.cli.subject import open_subject
from archloop.errors import UserError, suggest

if TYPE_CHECKING:
    from archloop.evals.base import Evaluation

SUITES = "quick, proxy, full, external, ruler, or mad."


@command(resumes=True)
def eval(  # noqa: A001  (a command has its function's name)
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    trial: Trial = None,
    suite: Annotated[str, typer.Option(help=SUITES)] = "quick",
    tasks: Annotated[str | None, typer.Option(help="Some of the suite, by commas.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Name the evaluations and end.")] = False,
    fetching: Annotated[
        bool, typer.Option("--fetch", help="Download packages of questions and end.")
    ] = False,
    pack: Annotated[
        Path | None, typer.Option(help="Write the questions into this file and end.")
    ] = None,
    packed: Annotated[
        Path | None, typer.Option(help="Ask the questions of this file, made by --pack.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Examples of each.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the examples.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Most rows at a time.")] = 32,
    quick: Annotated[
        bool, typer.Option("--quick", help="Of mad: default settings only, briefly.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Keeps what is finished; default runs/eval or runs/mad.")
    ] = None,
    device: Annotated[str, typer.Option(help="PyTorch device.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Score a model on a suite of evaluations; goes on where it was stopped.

    A study's trial is asked as its proxy, or as trained by archloop train. An artifact's engine is
    asked token by token, with at most 4,096 steps a request.

    Suite mad trains: a spec file is taken as it is; of a preset, the order of mixers, at MAD's
    width of 128.
    """
    chosen = [] if tasks is None else list(dict.fromkeys(tasks.split(",")))
    if suite != "mad" and quick:
        raise UserError("--quick belongs to --suite mad; give --suite quick, or --limit")
    if suite == "mad" and (listing or fetching or pack or packed or limit is not None or seed):
        raise UserError(
            "--list, --fetch, --pack, --packed, --limit and --seed belong to other suites; mad "
            "trains"
        )
    if model is None and not (listing or fetching or pack):
        raise UserError("name a model: a checkpoint's folder, a study's trial, a preset, ...")
    if suite == "mad":
        assert model is not None
        _mad(find(model, trial), chosen, quick, output or Path("runs/mad"), device, as_json)
    elif fetching:
        _fetch(suite, chosen)
    elif listing:
        _list(suite, chosen, as_json)
    elif pack is not None:
        _pack(suite, chosen, pack, seed, _limit(suite, limit))
    else:
        assert model is not None
        named, limit = find(model, trial), _limit(suite, limit, packed)
        folder = output or Path("runs/eval") / Path(named.label).name
        asked = _ready(suite, chosen) if packed is None else _unpacked(packed, chosen, seed, limit)
        _score(named, asked, folder, (seed, limit, batch_size), device, as_json)


def _fetch(suite: str, chosen: list[str]) -> None:
    from archloop.evals import suites

    refused: dict[str, str] = {}
    for name, evaluation in suites.load(suite, chosen).items():
        try:
            evaluation.fetch()
            stderr.print(f"{name}: here", markup=False)
        except UserError as error:
            refused[name] = str(error)
            stderr.print(f"{name}: {error}", markup=False)
    if refused:
        # What can be had is here by now; what cannot is said once more, as the command's failure.
        reasons = dict.fromkeys(refused.values())
        raise UserError(f"{len(refused)} evaluations have no data: {'; '.join(reasons)}")


def _list(suite: str, chosen: list[str], as_json: bool) -> None:
    from archloop.evals import runner, suites

    rows = [runner.describe(*entry) for entry in suites.load(suite, chosen).items()]
    if as_json:
        print_json(rows)
        return
    table = Table("evaluation", "category", "verb", "chance", "perfect", "licence", box=None)
    for row in rows:
        numbers = [f"{row[key]:.4g}" for key in ("chance", "perfect")]
        table.add_row(row["name"], row["category"], row["verb"], *numbers, row["licence"])
    stdout().print(table)


def _limit(suite: str, limit: int | None, packed: Path | None = None) -> int | None:
    """Examples of each evaluation, as many as the suite says, or a file has, unless it was said."""
    from archloop.evals import packing, suites

    if limit is not None:
        return limit
    return suites.LIMITS.get(suite) if packed is None else packing.limit_of(packed)


def _ready(suite: str, chosen: list[str]) -> "tuple[dict[str, Evaluation], dict[str, str]]":
    """Evaluations that can be asked here, and why others cannot."""
    from archloop.evals import suites

    ready, left_out = suites.parted(suites.load(suite, chosen))
    if left_out and (chosen or not ready):
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    for name, reason in left_out.items():
        stderr.print(f"{name} is left out: {reason}", markup=False)
    return ready, left_out


def _pack(suite: str, chosen: list[str], file: Path, seed: int, limit: int | None) -> None:
    from archloop.evals import packing

    ready, _ = _ready(suite, chosen)
    packing.pack(ready, file, seed, limit)
    stderr.print(f"{file}: {len(ready)} evaluations", markup=False)


def _unpacked(
    file: Path, chosen: list[str], seed: int, limit: int | None
) -> "tuple[dict[str, Evaluation], dict[str, str]]":
    from archloop.evals import packing

    found = packing.unpack(file, seed, limit)
    for name in chosen:
        if name not in found:
            raise UserError(f"{file} has no {name!r}; {suggest(name, sorted(found))}")
    return {name: found[name] for name in chosen or found}, {}


def _score(
    model: Named,
    asked_for: "tuple[dict[str, Evaluation], dict[str, str]]",
    folder: Path,
    numbers: tuple[int, int | None, int],
    device: str,
    as_json: bool,
) -> None:
    from archloop.evals import runner

    seed, limit, batch_size = numbers
    evaluations, left_out = asked_for
    asked, identity = open_subject(model, device, batch_size)

    def tell(result: runner.Result, is_known: bool) -> None:
        score = result.score
        how = "known" if is_known else f"{result.seconds:.1f} s"
        line = f"{result.name}: {score.value:.4g} +- {score.standard_error:.2g} ({how})"
        stderr.print(line, markup=False)

    results = runner.run(
        asked, identity, evaluations, folder, seed=seed, limit=limit, on_result=tell
    )
    summary = runner.summarise(results)
    if as_json:
        scores = {
            name: {**r.score.model_dump(), "normalized": r.score.normalized, "seconds": r.seconds}
            for name, r in results.items()
        }
        print_json(
            {
                "model": model.label,
                "identity": identity,
                "scores": scores,
                "left_out": left_out,
                **summary._asdict(),
            }
        )
        return
    table = Table("evaluation", "category", "score", "error", "chance", "0 to 1", box=None)
    for name, result in results.items():
        score = result.score
        figures = (score.value, score.standard_error, score.chance, score.normalized)
        table.add_row(name, score.category, *(f"{figure:.3f}" for figure in figures))
    for category, (value, error) in summary.categories.items():
        table.add_row("", category, "", f"{error:.3f}", "", f"{value:.3f}")
    table.add_row("mean", "", "", f"{summary.standard_error:.3f}", "", f"{summary.mean:.3f}")
    stdout().print(table)


def _mad(
    model: Named, chosen: list[str], quick: bool, output: Path, device: str, as_json: bool
) -> None:
    from archloop.proxy.mad import CHANGES, MadConfig, TrainingResult, mad_spec, run_mad
    from archloop.training.loop import torch_device

    tasks = tuple(chosen or CHANGES)
    torch_device(device)
    config = MadConfig.quick(tasks) if quick else MadConfig(tasks=tasks)

    def tell(done: int, total: int, result: TrainingResult) -> None:
        stderr.print(f"{done}/{total} {result.task}: accuracy {result.macro:.3f}", markup=False)

    spec = model.spec if model.label.endswith(".json") else mad_spec(model.spec.layout)
    found = run_mad(spec, config, output, device=device, on_run=tell)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    table = Table("task", "accuracy by class", "accuracy by token", box=None)
    for name, score in found.tasks.items():
        table.add_row(name, f"{score.macro:.3f}", f"{score.micro:.3f}")
    table.add_row("mean", f"{found.macro:.3f}", f"{found.micro:.3f}")
    stdout().print(table)
