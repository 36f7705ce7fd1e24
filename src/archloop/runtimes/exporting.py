"""From a decoder to an artifact: written, compared with eager PyTorch, and only then there.

1. the runtime writes its files;
2. eager PyTorch says which logits they must give (`runtimes.parity`);
3. the artifact is loaded and compared, here or, where the engine runs elsewhere only, later on
   its device (`Case` lies beside the files);
4. the manifest is written, with checksums, and the folder gets its name.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from archloop.errors import UserError
from archloop.runtimes import pieces
from archloop.runtimes.artifact import Manifest, checksums
from archloop.runtimes.base import Runtime
from archloop.runtimes.block_cache import BlockCache
from archloop.runtimes.random_weights import build_random
from archloop.scratch import Scratch
from archloop.stack import cost
from archloop.stack.spec import StackSpec

if TYPE_CHECKING:
    from archloop.runtimes.parity import Case
    from archloop.stack.decoder import Decoder

__all__ = ["build_random", "compose", "export", "export_random", "is_too_large", "stream"]

_log = logging.getLogger(__name__)
_DECIDED = "parity"
"""Folder of a second artifact, whose experts are decided; see `deciding.decided_experts`."""


def export(
    runtime: Runtime,
    decoder: "Decoder",
    directory: Path,
    quant: str,
    *,
    parity: bool = True,
    tokenizer: Path | None = None,
) -> Manifest:
    """Write an artifact and compare its logits with eager PyTorch's.

    Args:
        runtime: to write for.
        decoder: weights in float32 or whatever they were trained in.
        directory: absent or empty; the artifact appears there whole or not at all.
        quant: one of the runtime's.
        parity: compare; costs one load.
        tokenizer: folder of a checkpoint whose tokenizer goes into the engine's file, where the
            engine can have it there (`Runtime.add_tokenizer`).

    Raises:
        UserError: as `Runtime.check`, the stack is unsupported, the directory holds something, or
            the logits differ by more than `Runtime.parity_tolerance`; nothing is left behind.
    """
    _check(runtime, decoder.spec, quant)
    with _appearing(directory) as draft:
        weight_bytes = runtime.write(decoder, draft, quant)
        if tokenizer is not None and (reason := runtime.add_tokenizer(draft, tokenizer)):
            _log.warning("the engine's own file has no tokenizer: %s", reason)
        return _finished(runtime, decoder, draft, quant, weight_bytes, parity=parity)


def compose(
    runtime: Runtime,
    spec: StackSpec,
    directory: Path,
    quant: str,
    *,
    cache: BlockCache | None = None,
    parity: bool = True,
) -> Manifest:
    """As `export`, of random weights, from pieces that are lowered once for all stacks.

    Args:
        runtime: one that `lowers_pieces`.
        spec: a stack of pieces, not `pieces.inseparable`.
        directory: as in `export`.
        quant: likewise.
        cache: of lowered pieces; default: the user's.
        parity: compare with eager PyTorch.

    Raises:
        UserError: as `export`.
    """
    _check(runtime, spec, quant)
    cache = cache or BlockCache(runtime.name, runtime.written_by(), quant)

    def lower(piece: pieces.Piece, home: Path) -> dict[str, int]:
        return runtime.lower(pieces.build(piece), piece.part, home, quant)

    with _appearing(directory) as draft:
        found = [
            pieces.Lowered(placed, *cache.get(placed.piece, lower))
            for placed in pieces.pieces(spec)
        ]
        weight_bytes = runtime.join(found, draft, quant)
        decoder = pieces.assembled(spec)
        return _finished(runtime, decoder, draft, quant, weight_bytes, parity=parity, joined=found)


def export_random(
    runtime: Runtime,
    spec: StackSpec,
    seed: int,
    directory: Path,
    quant: str,
    *,
    whole: bool = False,
) -> Manifest:
    """An artifact with random weights, by the fastest way there is.

    Args:
        runtime: to write for.
        spec: of the stack.
        seed: of the weights, where it is lowered as a whole; a piece has a seed of its own.
        directory: as in `export`.
        quant: likewise.
        whole: lower the stack as a whole, pieces or not.

    Raises:
        UserError: as `export`.
    """
    if runtime.streams and is_too_large(spec):
        return stream(runtime, spec, directory, quant)
    if whole or not runtime.lowers_pieces or pieces.inseparable(spec) is not None:
        # A processor takes seconds for a billion random numbers, a card none.
        place = "cuda" if runtime.on_card and runtime.runs_here() else "cpu"
        return export(runtime, build_random(spec, seed, place), directory, quant)
    return compose(runtime, spec, directory, quant)


def stream(runtime: Runtime, spec: StackSpec, directory: Path, quant: str) -> Manifest:
    """An artifact with random weights of a stack that memory does not hold, not compared.

    Args:
        runtime: one that `streams`.
        spec: of the stack; its weights are those of its pieces.
        directory: as in `export`.
        quant: likewise.

    Raises:
        UserError: as `export`, or the stack is not made of pieces.
    """
    from archloop.runtimes.streamed import StreamedTensors

    _check(runtime, spec, quant)
    with _appearing(directory) as draft:
        weight_bytes = runtime.write_streamed(spec, StreamedTensors(spec), draft, quant)
        manifest = _manifest(runtime, spec, draft, quant, weight_bytes, is_composed=True)
        manifest.write(draft)
        return manifest


def is_too_large(spec: StackSpec) -> bool:
    """Whether half of this machine's memory does not hold a stack's decoder in float32.

    The other half is for the comparison, which has the rounded weights beside it.
    """
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * 4 * cost.num_params(spec) > memory_bytes


def _check(runtime: Runtime, spec: StackSpec, quant: str) -> None:
    """Refuse what the runtime cannot export."""
    runtime.check(quant)
    if reason := runtime.unsupported(spec):
        raise UserError(f"runtime {runtime.name} cannot run this stack: {reason}")


@contextmanager
def _appearing(directory: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name at the end, or leaves nothing behind."""
    # Absolute: the folder that "." means has a name.
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} holds something already; name another folder")
    draft = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    draft.mkdir(parents=True)
    try:
        yield draft
        if directory.exists():
            directory.rmdir()
        draft.rename(directory)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _finished(
    runtime: Runtime,
    decoder: "Decoder",
    directory: Path,
    quant: str,
    weight_bytes: dict[str, int],
    *,
    parity: bool,
    joined: Sequence[pieces.Lowered] = (),
) -> Manifest:
    """The manifest of files that are written, compared where that is asked for.

    Args:
        joined: the pieces that the files were put together of.
    """
    manifest = _manifest(runtime, decoder.spec, directory, quant, weight_bytes, bool(joined))
    if parity:
        manifest = _compared(runtime, decoder, directory, manifest, joined)
    manifest.write(directory)
    return manifest


def _manifest(
    runtime: Runtime,
    spec: StackSpec,
    directory: Path,
    quant: str,
    weight_bytes: dict[str, int],
    is_composed: bool,
) -> Manifest:
    """What files that are written are; nothing is said of a comparison."""
    return Manifest(
        spec=spec,
        runtime=runtime.name,
        version=runtime.version(),
        quant=quant,
        precision=runtime.precision(quant),
        weight_bytes=weight_bytes,
        files=checksums(directory),
        composed=is_composed,
    )


def _compared(
    runtime: Runtime,
    decoder: "Decoder",
    directory: Path,
    manifest: Manifest,
    joined: Sequence[pieces.Lowered],
) -> Manifest:
    """The manifest with error and bound; or with the files that a device compares by."""
    import torch

    from archloop.runtimes.deciding import decided_experts
    from archloop.runtimes.parity import make_case, session_rows, settled

    # Pieces have their experts' biases already: they are compared as they are.
    deciding = nullcontext(False) if manifest.composed else decided_experts(decoder)
    with deciding as is_changed, Scratch("export") as folder:
        home, runs_here = directory, runtime.runs_here()
        if is_changed:
            home = (Path(folder) if runs_here else directory) / _DECIDED
            home.mkdir(exist_ok=True)
            runtime.write(decoder, home, manifest.quant)
        dtype = runtime.reference_dtype(manifest.quant)
        quant = manifest.quant
        if joined:
            products = runtime.joined_products(joined, decoder, home, quant)
        else:
            products = runtime.products(decoder, home, quant)
        tolerance = runtime.parity_tolerance[manifest.quant]
        case = make_case(decoder, dtype, tolerance, products, runtime.attention())
        if not runs_here:
            if is_changed:
                case = case.model_copy(update={"artifact": _DECIDED})
            case.write(directory)
            return manifest.model_copy(update={"files": checksums(directory)})
        session = runtime.load(home, manifest, torch.get_num_threads(), case.num_tokens)
        with closing(session):
            rows = session_rows(session, case.parts, case.steps)
        is_exact = dtype == "float32" and not products
        error = settled(case, rows, decoder) if is_exact else case.error(rows)
    return agreed(manifest, case, error, decoder)


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
