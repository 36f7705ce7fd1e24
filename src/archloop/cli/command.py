"""What every verb of the command line shares: the app, exit statuses, one-line errors, JSON.

A verb is a function under ``@command()`` in a file of its own. Listings and results take
``--json``: one object or list on stdout, everything else on stderr. Exit status 0 done, 1 failed, 2
the user's input. Heavy modules are imported inside the verbs, so that ``--help`` answers at once.
"""

import inspect
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import archloop
from archloop import registry
from archloop.errors import UserError

_UsageError: Any = typer.BadParameter.__base__


class Commands(TyperGroup):
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
    cls=Commands,
    help=(archloop.__doc__ or "").partition("\n")[0],
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)


def stdout() -> Console:
    """Standard output, where words stand as they are.

    As mark-up they would lose what looks like a tag, so that `archloop[onnx]` is `archloop`.
    """
    return Console(highlight=False, markup=False, emoji=False)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"archloop {archloop.__version__}\n")
        raise typer.Exit


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")]


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """What the command takes before a verb."""


_LIBRARIES = (
    "torchao",
    "torch.onnx._internal.exporter._registration",
    "torch.utils._pytree",
)
"""Loggers of libraries that warn, as they are imported, of what no user of a command can mend."""


class _Terminated(KeyboardInterrupt):
    """Told to end by SIGTERM: as clean an end as by ^C."""


def main() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _terminate)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    # PyTorch's own exporter calls what PyTorch deprecates.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
    warnings.formatwarning = _warned
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may write, and a table may hold, what the terminal's encoding cannot say.
        sys.stdout.reconfigure(errors="replace")
    app()


_format = warnings.formatwarning
_OWN = str(Path(archloop.__file__).parent)


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning of archloop's as one line that says what; where it was raised helps no user."""
    if filename.startswith(_OWN):
        return f"archloop: {message}\n"
    return _format(message, category, filename, lineno, line)


def _terminate(*_: object) -> None:
    raise _Terminated


def command(
    *, group: typer.Typer = app, resumes: bool = False, takes_plugins: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a verb, whose expected failures end in one line and the right exit status.

    Args:
        group: what the verb belongs to.
        resumes: when it was stopped, the same command goes on where it was.
        takes_plugins: give it the option ``--plugins``, a folder of plug-ins to look in.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            with _ends_in_one_line(resumes):
                if folder := kwargs.pop(_PLUGINS, None):
                    _add_plugins(folder)
                function(*args, **kwargs)

        if takes_plugins:
            _add_option(run, function)
        return group.command()(run)

    return register


_PLUGINS = "plugins_folder"


def _add_plugins(folder: Path) -> None:
    """Look in a folder of plug-ins too, or in that of a study's recipe."""
    from archloop.cli.own_plugins import add_plugins_of
    from archloop.store.folder import StudyFolder

    study = StudyFolder(folder)
    if not study.has_card():
        registry.add_folder(folder)
    elif not add_plugins_of(study):
        raise UserError(f"--plugins {folder}: this study has no plug-ins, or they are gone")


def _add_option(run: Any, function: Callable[..., None]) -> None:
    """Say in the signature, which the app reads, that the verb takes ``--plugins`` too."""
    annotation = Annotated[
        Path | None,
        typer.Option("--plugins", help="Folder of plug-ins, <kind>/<name>.py, or a study's."),
    ]
    signature = inspect.signature(function, eval_str=True)
    option = inspect.Parameter(
        _PLUGINS, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])
    run.__annotations__ = {**function.__annotations__, _PLUGINS: annotation}


@contextmanager
def _ends_in_one_line(resumes: bool) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        _fail(error, 2)
    except KeyboardInterrupt as interrupt:
        stderr.print("stopped" + "; the same command goes on from here" * resumes)
        terminated = isinstance(interrupt, _Terminated)
        number = signal.SIGTERM if terminated else signal.SIGINT
        raise typer.Exit(128 + number) from None
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except Exception as error:
        if not _is_expected(error):
            raise
        _fail(error, 1)


def _fail(error: Exception, status: int) -> None:
    without_words = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    text = str(error) or without_words
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    _print_error(f"archloop: {' '.join(text.split())}")
    raise typer.Exit(status) from None


def _print_error(text: str) -> None:
    stderr.print(text, markup=False, soft_wrap=True)


def _is_expected(error: Exception) -> bool:
    """Whether an error is a result and no bug, so that a message is enough."""
    # Loaded only once there is an error.
    from archloop.search.errors import StudyError
    from archloop.workers.deaths import WorkerError, cause_of

    # Memory that ran out has many types: of a card it is PyTorch's own, and of the machine PyTorch
    # raises a RuntimeError that only its words tell from a bug.
    return isinstance(error, (StudyError, WorkerError, OSError)) or cause_of(error) == "memory"


def print_json(value: Any) -> None:
    """Print one value on stdout."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
