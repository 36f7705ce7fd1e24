"""`archloop compare`: models beside each other, measured as they are or built at one budget."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from archloop.cli.command import AsJson, command, print_json, stderr, stdout
from archloop.cli.counts import count
from archloop.cli.measuring import target_of, watched
from archloop.cli.models import find
from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.cli.comparing import Comparison
    from archloop.profiling import Target
    from archloop.report.designs import Measured
    from archloop.search.study import Study
    from archloop.stack.footprint import Footprint
    from archloop.stack.spec import StackSpec

MEASURED = "1024,4096"
CONTEXTS = "1024,2048,4096,8192,16384,32768,65536,131072"
VOCABULARY = 65536
_UNLESS_SAID = ("host", "torch_eager", "fp32", None, 5)
"""Device, runtime, quantisation, threads and processes of a measurement by default."""
_MEASURES = {
    "state_bytes": ("state, MB (estimated)", 1e6),
    "prefill_flops": ("prefill, TFLOP (estimated)", 1e12),
    "decode_flops": ("decode step, GFLOP (estimated)", 1e9),
}
"""By estimate: the title of its table, and its unit."""


Vocabulary = Annotated[
    int | None,
    typer.Option(min=1, help=f"Of every design, with a budget; default {VOCABULARY}."),
]
Plot = Annotated[
    Path | None, typer.Option(help="Draw what is found: a file ending in svg, png or pdf.")
]
Folder = Annotated[
    Path | None, typer.Option(help="Write each design's spec into this folder, as .json.")
]
Measuring = Annotated[bool, typer.Option("--profile", help="Measure the designs of a budget too.")]
Train = Annotated[
    int | None,
    typer.Option(min=1, help="Train so many proxies of each design of a budget, in a study."),
]
Taken = Annotated[
    Path | None,
    typer.Option(help="With --train: whose text, tasks, trainings and targets are taken."),
]
Runs = Annotated[Path, typer.Option(help="With --train: folder that holds studies.")]


@command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="What MODEL is; with a budget also how only one preset's name begins."),
    ],
    at_budget: Annotated[
        str | None, typer.Option(help="Build every design with so many parameters, as 350M.")
    ] = None,
    vocab_size: Vocabulary = None,
    contexts: Annotated[
        str | None, typer.Option(help=f"Tokens, by commas; default {MEASURED}, or many estimates.")
    ] = None,
    device: Annotated[str, typer.Option(help="To measure on, as in profile.")] = "host",
    runtime: Annotated[str, typer.Option(help="To measure in.")] = "torch_eager",
    quant: Annotated[str, typer.Option(help="One of the runtime's quantisations.")] = "fp32",
    threads: Annotated[int | None, typer.Option(help="To measure with.")] = None,
    processes: Annotated[int, typer.Option(help="Fresh ones of each model, measured.")] = 5,
    plot: Plot = None,
    specs: Folder = None,
    profile: Measuring = False,
    train: Train = None,
    recipe: Taken = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Measure models in turns and say which figures differ; or build designs at one budget.

    As they are, each model is measured beside the first, with random weights. With --at-budget
    nothing is measured unless --profile asks for it: a design keeps its depth, its pattern and the
    widths of its heads, its width and its feed-forwards meet the budget within 1%, and experts
    become at most 32. A family's name means the smallest preset of it. With --train the designs
    are measured and trained in a study, which says whether their quality can be told apart.
    """
    _check(at_budget, [vocab_size, plot, specs, profile or None, train], train, recipe, models)
    _check_used(at_budget, profile, (device, runtime, quant, threads, processes))
    if at_budget is None:
        lengths = _lengths(contexts or MEASURED)
        _measure(models, target_of(device, runtime, quant, threads, lengths), processes, as_json)
        return
    budget = count("--at-budget", at_budget, "parameters")
    vocab_size = vocab_size or VOCABULARY
    built = {name: _scaled(name, budget, vocab_size) for name in dict.fromkeys(models)}
    if specs is not None:
        _write(built, specs)
    study = None if train is None else _study(recipe, runs, budget, built, train)
    title = f"Designs at {at_budget} parameters, vocabulary of {vocab_size:,}"
    designs = _estimate(built, title, _lengths(contexts or CONTEXTS), plot, show=not as_json)
    found: Comparison | None = None
    if profile:
        target = target_of(device, runtime, quant, threads, _lengths(contexts or MEASURED))
        found = _measured(_runnable(built, runtime), target, processes, show=not as_json)
        _draw(designs, f"{title}; {runtime}, {quant}", plot, found.curves())
    stopped = None if found is None else found.stopped
    trained: dict[str, Any] = {}
    if study is not None and stopped is None:
        trained = _trained(study, show=not as_json)
    if as_json:
        print_json(_rows(designs, found, trained))
    if stopped is not None:
        raise stopped


def _rows(
    designs: "dict[str, Footprint]", found: "Comparison | None", trained: dict[str, Any]
) -> list[dict[str, Any]]:
    """As JSON: a design each, with what was measured and trained of it."""
    rows = [{"name": name, **design.model_dump()} for name, design in designs.items()]
    told = ("beside", "measured", "verdicts")
    measured = [] if found is None else found.plain()
    by_name = {row["name"]: {key: row[key] for key in told} for row in measured}
    return [row | by_name.get(row["name"], {}) | trained.get(row["name"], {}) for row in rows]


def _check(
    at_budget: str | None, of_budget: list[Any], train: int | None, recipe: Any, models: list[str]
) -> None:
    """Refuse options without those that they belong to."""
    if at_budget is None and any(each is not None for each in of_budget):
        raise UserError(
            "--vocab-size, --plot, --specs, --profile and --train belong to --at-budget, such as "
            "--at-budget 350M"
        )
    if train is None and recipe is not None:
        raise UserError("--recipe belongs to --train: it says what designs are trained on")
    if train is not None and (recipe is None or len(set(models)) < 2):
        raise UserError("--train needs --recipe, such as recipes/quickstart.yaml, and two designs")


def _check_used(at_budget: str | None, profile: bool, measuring: tuple[Any, ...]) -> None:
    """Refuse options of a measurement where nothing is measured."""
    if at_budget is not None and not profile and measuring != _UNLESS_SAID:
        raise UserError(
            "--device, --runtime, --quant, --threads and --processes are of a measurement: give "
            "--profile too, or leave them out"
        )


def _study(
    recipe: Path | None, runs: Path, budget: int, built: "dict[str, StackSpec]", trainings: int
) -> "Study":
    """The study of designs, not begun: what it refuses is refused before they are measured."""
    from archloop.cli import trained_designs

    assert recipe is not None

    def proxy(name: str, vocabulary: int) -> "StackSpec":
        return _scaled(name, budget, vocabulary)

    return trained_designs.study_of(recipe, runs, budget, built, proxy, trainings)


def _trained(study: "Study", show: bool) -> dict[str, Any]:
    """By design, what a study of them tells; `show` prints its outcome too."""
    from archloop.cli import trained_designs

    record, page = trained_designs.run(study)
    if show:
        trained_designs.show(record, page)
    return trained_designs.plain(record)


def _lengths(contexts: str) -> list[int]:
    return sorted({count("--contexts", part, "tokens") for part in contexts.split(",")})


def _measure(models: list[str], target: "Target", processes: int, as_json: bool) -> None:
    specs = {name: find(name).spec for name in dict.fromkeys(models)}
    if len(models) > len(specs) > 1:
        raise UserError("a model is named twice; to see the noise, name one alone")
    found = _measured(specs, target, processes, show=not as_json)
    if as_json:
        print_json(found.plain())
    if found.stopped is not None:
        raise found.stopped


def _runnable(built: "dict[str, StackSpec]", runtime: str) -> "dict[str, StackSpec]":
    """Designs that an engine can run; the others are said to be left out."""
    from archloop import registry

    engine = registry.get("runtimes", runtime)()
    lacking = {name: engine.unsupported(spec) for name, spec in built.items()}
    _say_lacking({name: why for name, why in lacking.items() if why is not None})
    found = {name: spec for name, spec in built.items() if lacking[name] is None}
    if not found:
        raise UserError(f"--runtime {runtime} runs none of the designs")
    return found


def _say_lacking(lacking: dict[str, str]) -> None:
    for name, why in lacking.items():
        stderr.print(f"{name} is not measured: {why}", markup=False, soft_wrap=True)


def _measured(
    specs: "dict[str, StackSpec]", target: "Target", processes: int, show: bool
) -> "Comparison":
    """Each model beside the first; `show` prints tables."""
    from archloop.cli import comparing
    from archloop.profiling import ProfileConfig

    if not 2 <= processes <= 1000:
        raise UserError(f"--processes {processes}: must be from 2 to 1000")
    target.check()
    with watched(stderr) as progress:
        config = ProfileConfig(processes=processes)
        found = comparing.measured(specs, target, config, progress)
    _say_lacking(found.lacking)
    if show:
        found.show(stdout())
    return found


def _estimate(
    built: "dict[str, StackSpec]", title: str, lengths: list[int], plot: Path | None, show: bool
) -> "dict[str, Footprint]":
    from archloop.stack.footprint import footprint

    designs = {name: footprint(spec, lengths) for name, spec in built.items()}
    _draw(designs, title, plot)
    if not show:
        return designs
    console = stdout()
    console.print(_sizes(designs))
    for measure in _MEASURES:
        console.print(_by_context(designs, measure))
    return designs


def _draw(
    designs: "dict[str, Footprint]",
    title: str,
    plot: Path | None,
    measured: "Measured | None" = None,
) -> None:
    """The picture, if one is asked for."""
    if plot is not None:
        from archloop.report import designs as picture

        picture.write(designs, title, plot, measured)


def _scaled(name: str, budget: int, vocab_size: int) -> "StackSpec":
    from archloop.stack.scaling import at_budget

    try:
        return at_budget(_design(name), budget, vocab_size)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _design(name: str) -> "StackSpec":
    """What a model is; of a family's name, the smallest preset of that family."""
    from archloop.stack import cost, presets

    family = {} if name in presets.names() else presets.family(name)
    if not family:
        return find(name).spec
    smallest = min(family, key=lambda each: cost.num_params(family[each]))
    if len(family) > 1:
        stderr.print(f"{name}: {smallest}, the smallest of {', '.join(family)}", soft_wrap=True)
    return family[smallest]


def _write(built: "dict[str, StackSpec]", folder: Path) -> None:
    """A file for each design. A preset's name may hold dots, so only .json counts as an ending."""
    files: dict[str, str] = {}
    for name in built:
        file = f"{Path(name).name.removesuffix('.json')}.json"
        if file in files:
            raise UserError(f"--specs: {files[file]} and {name} would both be {file}; rename one")
        files[file] = name
    folder.mkdir(parents=True, exist_ok=True)
    for file, name in files.items():
        (folder / file).write_text(built[name].to_json() + "\n", encoding="utf-8")


def _sizes(designs: "dict[str, Footprint]") -> Table:
    table = Table("design", "width", "blocks", "params", "active", "mixers", box=None)
    for name, found in designs.items():
        layers = Counter(found.layout)
        mixers = " + ".join(f"{number} {mixer}" for mixer, number in sorted(layers.items()))
        counts = [f"{n / 1e6:,.1f}M" for n in (found.num_params, found.num_active_params)]
        table.add_row(name, str(found.d_model), str(len(found.layout)), *counts, mixers)
    return table


def _by_context(designs: "dict[str, Footprint]", measure: str) -> Table:
    title, unit = _MEASURES[measure]
    table = Table(title=title, box=None, title_justify="left")
    table.add_column("design", no_wrap=True)
    for context in next(iter(designs.values())).estimated:
        table.add_column(f"{context:,}", justify="right")
    for name, found in designs.items():
        values = [getattr(at, measure) / unit for at in found.estimated.values()]
        table.add_row(name, *(f"{value:,.{1 if value >= 100 else 2}f}" for value in values))
    return table
