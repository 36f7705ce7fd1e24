"""`archloop profile`: measure a model on a device."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from archloop.cli.command import AsJson, command, print_json, stderr, stdout
from archloop.cli.measuring import Say, target_of, watched, wrong_option
from archloop.cli.models import MODEL_HELP, Trial, find
from archloop.errors import UserError
from archloop.scratch import Scratch

_ENOUGH = 0.01
"""Share of the work, beyond starting the first process, after which the whole is foreseen."""


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
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="Seconds; what would take longer is not finished.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Keep raw samples in this folder.")] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Measure a preset or spec that was measured here before."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model's stack with random weights: TTFT, prefill, decode, peak memory.

    Times hang on the stack alone, so a checkpoint, a trial and an artifact count by their spec.
    The own figures of a preset or spec are measured once on a machine; a --reference each time.
    """
    from archloop.profiling import ProfileConfig, table

    target = target_of(device, runtime, quant, threads, _numbers("contexts", contexts))
    try:
        config = ProfileConfig(processes=processes)
    except ValidationError as error:
        raise wrong_option(error) from error
    named = find(model, trial)
    spec, other = named.spec, _reference(named.spec, reference, beside_itself)
    kept = None
    if named.source == "spec" and other is None and output is None:
        kept = _kept(spec, target, config)
    measured = None if kept is None or again else _recalled(kept)
    if measured is None:
        measured = _measured(spec, other, target, config, output or kept, time_limit)
    if as_json:
        print_json(measured.model_dump(mode="json"))
        return
    stdout().print(table(measured))
    if beside_itself:
        stdout().print(
            "one sample of the noise, without which every ratio would be 1: a difference as small "
            "as these says nothing, and a larger one is no proof"
        )


def _kept(spec: Any, target: Any, config: Any) -> Path:
    """Where the figures of a preset or spec are kept on this machine."""
    from archloop.profiling import remembered

    target.check()
    return remembered.folder(spec, target, config)


def _recalled(place: Path) -> Any:
    """Figures that were kept there, which is said; None if there are none."""
    from archloop.profiling import remembered

    found = remembered.recall(place)
    if found is None:
        return None
    stderr.print(
        f"measured on {found.when:%Y-%m-%d at %H:%M} and kept; --again measures it anew",
        markup=False,
    )
    return found.profile


def _measured(
    spec: Any, reference: Any, target: Any, config: Any, output: Path | None, limit_s: float | None
) -> Any:
    """Measure with the device to ourselves, and tell how far it is."""
    from archloop.devices.lease import held
    from archloop.profiling import profile as measure

    target.check()
    with (
        Scratch("profile") as scratch,
        watched(stderr) as progress,
        held(target.claims()),
    ):
        return measure(
            spec,
            target,
            config,
            reference=reference,
            directory=output or Path(scratch),
            progress=_limited(progress, limit_s, time.monotonic()),
        )


def _limited(progress: Say, limit_s: float | None, began: float) -> Say:
    """Progress that ends a measurement as soon as it is known to take longer than allowed.

    It is known soon after the first process has begun to measure, or when the time is over.
    """
    measuring: float | None = None

    def say(share: float, what: str) -> None:
        nonlocal measuring
        progress(share, what)
        now = time.monotonic()
        if measuring is None and what.startswith("process"):
            measuring = now
        if limit_s is None or share >= 1:
            return
        whole = now - began
        if measuring is not None and share >= _ENOUGH:
            # What passed before was the start of the first process, which says nothing of the rest.
            whole = measuring - began + (now - measuring) / share
        if whole > limit_s:
            raise UserError(
                f"--time-limit {limit_s:g}: this would take about {max(whole, limit_s + 1):.0f} s; "
                "give fewer --contexts or --processes, or more time"
            )

    return say


def _reference(spec: Any, reference: str | None, beside_itself: bool) -> Any:
    """The spec that is measured alongside; None for none."""
    if not beside_itself:
        return None if reference is None else find(reference).spec
    if reference is not None:
        raise UserError("--aa measures the model beside itself; leave --reference out")
    return spec


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--{option} {text!r} is no list of numbers like 1024,4096") from None
