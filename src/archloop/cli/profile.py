"""`archloop profile`: measure a model on a device."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from archloop.cli.command import AsJson, command, print_json, stderr
from archloop.cli.models import MODEL_HELP, Trial, find
from archloop.errors import UserError, reason, shown


@command()
def profile(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    contexts: Annotated[str, typer.Option(help="Prompt lengths, by commas.")] = "4096,32768",
    trial: Trial = None,
    reference: Annotated[str | None, typer.Option(help="Measured alongside, for ratios.")] = None,
    beside_itself: Annotated[
        bool, typer.Option("--aa", help="Measure it beside itself: one sample of the noise.")
    ] = False,
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
    """Measure a model's stack with random weights: TTFT, prefill, decode, peak memory.

    Times hang on the stack alone, so a checkpoint, a trial and an artifact count by their spec.
    """
    from archloop.profiling import ProfileConfig, Target, table

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
        raise _wrong_option(error) from error
    spec = find(model, trial).spec
    other = _reference(spec, reference, beside_itself)
    measured = _measured(spec, other, target, config, output)
    if as_json:
        print_json(measured.model_dump(mode="json"))
        return
    Console().print(table(measured))
    if beside_itself:
        Console(highlight=False).print(
            "one sample of the noise, without which every ratio would be 1: a difference as small "
            "as these says nothing, and a larger one is no proof"
        )


def _measured(spec: Any, reference: Any, target: Any, config: Any, output: Path | None) -> Any:
    """Measure with the device to ourselves, and tell how far it is."""
    from archloop.devices.lease import held
    from archloop.profiling import profile as measure

    with (
        tempfile.TemporaryDirectory() as scratch,
        Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar,
    ):
        target.check()
        task = bar.add_task("waiting until the device is free", total=1.0)
        with held(target.claims()):
            return measure(
                spec,
                target,
                config,
                reference=reference,
                directory=output or Path(scratch),
                progress=lambda share, what: bar.update(task, completed=share, description=what),
            )


def _reference(spec: Any, reference: str | None, beside_itself: bool) -> Any:
    """The spec that is measured alongside; None for none."""
    if not beside_itself:
        return None if reference is None else find(reference).spec
    if reference is not None:
        raise UserError("--aa measures the model beside itself; leave --reference out")
    return spec


def _wrong_option(error: ValidationError) -> UserError:
    """The first option that has a value which it does not take."""
    first = error.errors(include_url=False)[0]
    return UserError(f"--{first['loc'][0]} {shown(first['input'])}: {reason(first)}")


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
