"""From a decoder to an artifact: written, compared with eager PyTorch, and only then there.

1. the runtime writes its files;
2. eager PyTorch says which logits they must give (`runtimes.parity`);
3. the artifact is loaded and compared, here or, where the engine runs elsewhere only, later on
   its device (`Case` lies beside the files);
4. the manifest is written, with checksums, and the folder gets its name.
"""

import secrets
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from archloop.errors import UserError
from archloop.runtimes.artifact import Manifest, checksums
from archloop.runtimes.base import Runtime
from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    from archloop.runtimes.parity import Case
    from archloop.stack.decoder import Decoder

_DECIDED = "parity"
"""Folder of a second artifact, whose experts are decided; see `parity.decided_experts`."""


def export(
    runtime: Runtime, decoder: "Decoder", directory: Path, quant: str, *, parity: bool = True
) -> Manifest:
    """Write an artifact and compare its logits with eager PyTorch's.

    Args:
        runtime: to write for.
        decoder: weights in float32 or whatever they were trained in.
        directory: absent or empty; the artifact appears there whole or not at all.
        quant: one of the runtime's.
        parity: compare; costs one load.

    Raises:
        UserError: as `Runtime.check`, the stack is unsupported, the directory holds something, or
            the logits differ by more than `Runtime.parity_tolerance`; nothing is left behind.
    """
    runtime.check(quant)
    if reason := runtime.unsupported(decoder.spec):
        raise UserError(f"runtime {runtime.name} cannot run this stack: {reason}")
    # Absolute: the folder that "." means has a name.
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} holds something already; name another folder")
    draft = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    draft.mkdir(parents=True)
    try:
        manifest = _written(runtime, decoder, draft, quant, parity=parity)
        if directory.exists():
            directory.rmdir()
        draft.rename(directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return manifest


def build_random(spec: StackSpec, seed: int, device: str = "cpu") -> "Decoder":
    """A decoder in evaluation mode with the random weights of a seed, which profiling needs.

    The global random state is left as it was.

    Args:
        spec: of the decoder.
        seed: of the weights.
        device: that draws them, each kind its own; the decoder is on the CPU.

    Raises:
        ValueError: the spec cannot be built.
    """
    import torch

    from archloop.stack.decoder import Decoder

    cards = [] if device == "cpu" else [torch.cuda.current_device()]
    with torch.random.fork_rng(devices=cards), torch.device(device):
        torch.manual_seed(seed)
        decoder = Decoder(spec).cpu()
    return decoder.eval().requires_grad_(False)


def _written(
    runtime: Runtime, decoder: "Decoder", directory: Path, quant: str, *, parity: bool
) -> Manifest:
    """Everything of an artifact, in an empty folder."""
    weight_bytes = runtime.write(decoder, directory, quant)
    manifest = Manifest(
        spec=decoder.spec,
        runtime=runtime.name,
        version=runtime.version(),
        quant=quant,
        precision=runtime.precision(quant),
        weight_bytes=weight_bytes,
        files=checksums(directory),
    )
    if parity:
        manifest = _compared(runtime, decoder, directory, manifest)
    manifest.write(directory)
    return manifest


def _compared(
    runtime: Runtime, decoder: "Decoder", directory: Path, manifest: Manifest
) -> Manifest:
    """The manifest with error and bound; or with the files that a device compares by."""
    import torch

    from archloop.runtimes.parity import decided_experts, make_case, session_rows

    with decided_experts(decoder) as is_changed, TemporaryDirectory() as folder:
        case = make_case(
            decoder,
            runtime.reference_dtype(manifest.quant),
            runtime.parity_tolerance[manifest.quant],
        )
        if not runtime.runs_here():
            if is_changed:
                case = case.model_copy(update={"artifact": _DECIDED})
                (directory / _DECIDED).mkdir(exist_ok=True)
                runtime.write(decoder, directory / _DECIDED, manifest.quant)
            case.write(directory)
            return manifest.model_copy(update={"files": checksums(directory)})
        home = directory
        if is_changed:
            home = Path(folder)
            runtime.write(decoder, home, manifest.quant)
        session = runtime.load(home, manifest, torch.get_num_threads(), case.num_tokens)
        rows = session_rows(session, case.parts, case.steps)
        session.close()
    return agreed(manifest, case, case.error(rows), decoder)


def agreed(
    manifest: Manifest, case: "Case", error: float, decoder: "Decoder | None" = None
) -> Manifest:
    """The manifest of an artifact that was compared.

    Args:
        manifest: without the comparison.
        case: that it was compared by.
        error: of the artifact's logits.
        decoder: to look for the cause in, where there is one.

    Raises:
        UserError: the error is above the bound.
    """
    if error <= case.bound:
        return manifest.model_copy(update={"parity_error": error, "parity_bound": case.bound})
    if decoder is not None and not case.is_finite and (part := _not_finite(decoder)):
        raise UserError(
            f"{part} gives numbers that are not finite, in eager PyTorch too: "
            "that part is at fault, whatever runtime is chosen"
        )
    raise UserError(
        f"runtime {manifest.runtime} ({manifest.quant}): logits differ from eager PyTorch's by "
        f"{error:.3g} standard deviations, more than {case.bound:.3g}; the export is wrong "
        "for this stack, so choose another runtime or quantisation"
    )


def _not_finite(decoder: "Decoder") -> str | None:
    """The part of a decoder that gives numbers which are not finite, by itself, on a prompt."""
    import torch

    from archloop.runtimes.parity import PROMPT_TOKENS
    from archloop.stack.finite import first_not_finite

    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(decoder.spec.vocab_size, (1, PROMPT_TOKENS), generator=generator)
    return first_not_finite(decoder, ids_BT)
