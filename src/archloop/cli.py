"""The command line: one verb each for search, profile, report, eval, generate, presets, plugins.

Listings and results take ``--json``: one object or list on stdout, everything else on stderr. Exit
status 0 done, 1 failed, 2 the user's input. Heavy modules are imported inside the commands, so
that ``--help`` answers at once.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

import archloop
from archloop import registry

if TYPE_CHECKING:
    from archloop.stack.spec import StackSpec

app = typer.Typer(
    help=archloop.__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
stderr = Console(stderr=True, highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")]


def main() -> None:
    """Run the command line and exit."""
    app()


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command whose expected failures end in one line and the right exit status."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            _fail(error, 2)
        except KeyboardInterrupt:
            stderr.print("stopped; the same command goes on from here")
            raise typer.Exit(130) from None
        except (RuntimeError, OSError) as error:
            if type(error) is RuntimeError:
                raise
            _fail(error, 1)

    return app.command()(run)


def _fail(error: Exception, status: int) -> None:
    stderr.print(f"archloop: {error}", markup=False, soft_wrap=True)
    raise typer.Exit(status) from None


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def load_spec(name: str) -> "StackSpec":
    """A preset by name, or a spec from a ``.json`` file.

    Raises:
        ValueError: neither exists, or the file is not a valid spec.
    """
    from archloop.stack import presets
    from archloop.stack.spec import StackSpec

    path = Path(name)
    if path.suffix != ".json":
        return presets.load(name)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a preset's name or a spec file")
    return StackSpec.from_json(path.read_bytes())


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
) -> None:
    """Create or resume the study of a recipe, and write its report."""
    from archloop.report import html
    from archloop.report.live import display
    from archloop.report.outcome import print_outcome
    from archloop.search.recipe import load
    from archloop.search.study import Study

    study = Study(load(recipe), runs)
    with display(stderr) as progress:
        study.run(progress)
    record = study.read()
    page = html.write(record, study.directory / "report.html")
    print_outcome(record, page, Console(highlight=False))


@_command
def report(
    study: Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")],
    as_json: AsJson = False,
) -> None:
    """Write a study's report.html anew, or print its content as JSON."""
    from archloop.report import html
    from archloop.report.outcome import print_outcome
    from archloop.report.summary import summarize
    from archloop.search.store import read

    record = read(study)
    if as_json:
        _print_json(summarize(record))
        return
    print_outcome(record, html.write(record, study / "report.html"), Console(highlight=False))
