"""`archloop.profile`: a measurement in one call, for scripts and notebooks.

    >>> archloop.profile("lfm2-350m", contexts=[1024], runtime="torch_eager")  # doctest: +SKIP

The device is held meanwhile, as by the command, so that nothing else of archloop measures on it.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from archloop.devices.lease import held
from archloop.errors import UserError, invalid
from archloop.profiling import protocol
from archloop.profiling.config import ProfileConfig
from archloop.profiling.protocol import Progress
from archloop.profiling.record import Profile
from archloop.profiling.target import Target
from archloop.scratch import Scratch
from archloop.stack import presets
from archloop.stack.spec import StackSpec


def profile(
    model: StackSpec | str | Path,
    target: Target | None = None,
    config: ProfileConfig | None = None,
    *,
    contexts: Sequence[int] | None = None,
    runtime: str | None = None,
    device: str | Mapping[str, Any] | None = None,
    quant: str | None = None,
    threads: int | None = None,
    processes: int | None = None,
    reference: StackSpec | str | Path | None = None,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measure a stack with random weights.

    Args:
        model: a spec, the file of one, or a preset's name.
        target: what to measure on; else made of the next five, with a target's defaults.
        config: how to measure; else the defaults, with `processes`.
        contexts: prompt lengths, in tokens.
        runtime: plug-in's name.
        device: plug-in's name, or a mapping of it (``name``) and its settings.
        quant: one of the runtime's quantisations.
        threads: of the engine.
        processes: fresh ones, each one sample.
        reference: measured beside it, for ratios; the model itself for the noise floor.
        directory: keeps the raw samples; nothing is kept without.
        progress: called with the share done and what is being done.

    Raises:
        UserError: a name, setting or file is wrong, or the target lacks something.
        WorkerError: the runtime cannot run the stack, or a process died; it says how.
    """
    where = {"contexts": contexts, "runtime": runtime, "device": device}
    target = _made(Target, target, {**where, "quant": quant, "threads": threads})
    config = _made(ProfileConfig, config, {"processes": processes})
    spec, other = _spec(model), None if reference is None else _spec(reference)
    target.check()
    with ExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(Scratch("profile"))
        stack.enter_context(held(target.claims()))
        return protocol.profile(
            spec,
            target,
            config,
            reference=other,
            directory=Path(directory),
            progress=progress,
        )


def _made(record_type: Any, whole: Any, parts: Mapping[str, Any]) -> Any:
    """Settings as a whole, or made of parts.

    Raises:
        UserError: both are given, or a part is wrong.
    """
    parts = {key: value for key, value in parts.items() if value is not None}
    if whole is not None and parts:
        raise UserError(f"give {record_type.__name__} or {', '.join(parts)}, not both")
    if whole is not None:
        return whole
    try:
        return record_type.model_validate(parts)
    except ValidationError as error:
        raise invalid(error, list(record_type.model_fields), "profile") from error


def _spec(model: StackSpec | str | Path) -> StackSpec:
    if isinstance(model, StackSpec):
        return model
    path = Path(model)
    if path.suffix != ".json":
        return presets.load(str(model))
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a spec, a preset's name or a spec file")
    return StackSpec.from_json(path.read_bytes())
