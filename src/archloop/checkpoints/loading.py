"""Loading: a decoder is built without memory, given it once, and filled tensor by tensor.

Weight files are memory-mapped, so what is read is page cache that the system can drop, not
memory of ours: the peak is the model and at most one tensor on its way to another dtype or device.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archloop.checkpoints import families, files, hub, names, tokens
from archloop.checkpoints.layouts.base import Layout
from archloop.checkpoints.pieces import Piece
from archloop.errors import UserError
from archloop.stack import cost, weights
from archloop.stack.cost import mixer_config
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from archloop.stack.tensors import leaves

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
"""Stored dtypes that are read; anything else is quantised or no weight at all."""


def load(
    path_or_hub_id: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    revision: str | None = None,
) -> Decoder:
    """A decoder from a checkpoint in our own layout, or in that of a family.

    Families are the plug-ins of kind ``layouts``, such as LFM2, LFM2-MoE and Llama.

    Args:
        path_or_hub_id: a folder, or a name such as ``LiquidAI/LFM2-350M``.
        dtype: of the decoder; default: as stored.
        device: where the decoder is built.
        revision: branch, tag or commit on the hub.

    Returns:
        The decoder in evaluation mode, with its `special_tokens`.

    Raises:
        UserError: whatever is wrong with the checkpoint, by name: a file that is missing,
            truncated, pickled or outside the folder; a tensor that is missing, unexpected or of
            a wrong shape or dtype; a configuration that is not understood; the hub unreachable.
    """
    folder = hub.resolve(path_or_hub_id, revision)
    decoder = _load(folder, dtype, device)
    decoder.special_tokens = tokens.read(folder)
    return decoder


def read_spec(path_or_hub_id: str | Path, *, revision: str | None = None) -> StackSpec:
    """The stack that a checkpoint's configuration describes; its weights are not looked at.

    Raises:
        UserError: as `load`, of the configuration.
    """
    return _described(hub.resolve(path_or_hub_id, revision))[0]


def _load(folder: Path, dtype: torch.dtype | None, device: torch.device | str) -> Decoder:
    return _fill(folder, *_described(folder), dtype, device)


def _described(folder: Path) -> tuple[StackSpec, tuple[Layout, dict[str, Any]] | None]:
    """A folder's stack, and its family's layout with the configuration, or None for our own."""
    spec_text = files.read_text(folder, weights.SPEC)
    if spec_text is not None:
        try:
            spec = StackSpec.from_json(spec_text)
            cost.check(spec)
        except ValueError as error:
            raise UserError(f"{folder / weights.SPEC}: {error}") from error
        return spec, None
    config = files.read_json(folder, files.CONFIG)
    if config is None:
        raise UserError(
            f"{folder} has neither {files.CONFIG} nor {weights.SPEC}: no checkpoint"
            + files.interrupted(folder)
        )
    try:
        layout = families.reading(config)
        spec = layout.read(config)
    except ValueError as error:
        raise UserError(f"{folder / files.CONFIG}: {error}") from error
    return spec, (layout, config)


def _fill(
    folder: Path,
    spec: StackSpec,
    family: tuple[Layout, dict[str, Any]] | None,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Decoder:
    with ExitStack() as stack:
        stored = StoredTensors(folder, stack)
        if family is None:
            decoder = _without_memory(spec, folder)
            pieces = _checked(stored, names.own(decoder))
        else:
            # Sizes that no machine could hold are found before any module has them.
            pieces = _pieces(stored, family[0], spec)
            decoder = _without_memory(spec, folder)
        if family is None and dtype is None:
            _take_dtypes(decoder, stored)
        else:
            decoder.to(dtype or _dtype(stored, *(family or (None, {}))))
        _materialise(decoder, device)
        targets = weights.tensors(decoder)
        with torch.no_grad():
            for name in targets.keys() - {piece.target for piece in pieces}:
                # LFM2's files have no selection bias for a router that does not use one; ours holds
                # zeros.
                targets[name].zero_()
            for piece in pieces:
                piece.load(stored.tensor(piece.name), targets[piece.target])
    return decoder.eval()


def _without_memory(spec: StackSpec, folder: Path) -> Decoder:
    try:
        with torch.device("meta"):
            return Decoder(spec)
    except RuntimeError as error:
        raise UserError(f"{folder} describes a model that cannot be built: {error}") from error


class StoredTensors:
    """The tensors of a folder's weight files, by name, memory-mapped.

    Attributes:
        shapes: by tensor name.
        dtypes: stored dtype codes, such as ``BF16``, by tensor name.

    Raises:
        UserError: a file is missing, truncated, malformed or disagrees with the index.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, weights.Stored] = {}
        for name, promised in files.shards(folder).items():
            file = weights.Stored(folder / name, stack)
            held = file.shapes.keys()
            if promised is not None and held != promised:
                odd = sorted(held ^ promised)[0]
                where = (
                    "index but not in the shard"
                    if odd in promised
                    else "shard but not in the index"
                )
                raise UserError(f"{folder / name}: tensor {odd!r} is in the {where}")
            self.shapes |= file.shapes
            self.dtypes |= file.dtypes
            self._files |= dict.fromkeys(held, file)

    def tensor(self, name: str) -> Tensor:
        """A view of the mapped file."""
        return self._files[name].tensor(name)


def _pieces(stored: StoredTensors, layout: Layout, spec: StackSpec) -> list[Piece]:
    """The pieces of a family's layout, all there and as they must be."""
    pieces = layout.pieces(spec, layout.variant(stored.shapes))
    head, embedding = layout.head, layout.embedding
    unbuilt = {name for name in stored.shapes if name.startswith(layout.unbuilt)}
    if not spec.tie_embeddings or head not in stored.shapes:
        return _checked(stored, pieces, unbuilt)
    if embedding in stored.shapes:
        checked = _checked(stored, pieces, {head} | unbuilt)
        _check_tied_head(stored, head, embedding)
        return checked
    # A matrix that is embedding and head at once is stored once, and writers differ in which of the
    # two names they keep.
    renamed = (replace(p, name=head) if p.name == embedding else p for p in pieces)
    return _checked(stored, renamed, unbuilt)


def _checked(
    stored: StoredTensors, pieces: Iterable[Piece], extra: Iterable[str] = ()
) -> list[Piece]:
    """The pieces, once each is stored in its shape and nothing but them and `extra` is.

    The first that is not ends it: a few bytes of configuration can ask for millions.
    """
    checked: list[Piece] = []
    for piece in pieces:
        name, shape = piece.name, stored.shapes.get(piece.name)
        if shape is None:
            raise UserError(f"{stored.folder}: tensor {name!r} is missing")
        if shape != piece.shape:
            raise UserError(
                f"{stored.folder}: tensor {name!r} has shape {list(shape)}; the configuration asks "
                f"for {list(piece.shape)}"
            )
        if stored.dtypes[name] not in DTYPES:
            raise UserError(
                f"{stored.folder}: tensor {name!r} has dtype {stored.dtypes[name]}; "
                f"readable: {', '.join(DTYPES)}"
            )
        checked.append(piece)
    unexpected = sorted(stored.shapes.keys() - {piece.name for piece in checked} - set(extra))
    if unexpected:
        more = f" (and {len(unexpected) - 1} more)" if len(unexpected) > 1 else ""
        raise UserError(
            f"{stored.folder}: tensor {unexpected[0]!r} is not part of the model that the "
            f"configuration describes{more}"
        )
    return checked


def _check_tied_head(stored: StoredTensors, head: str, embedding: str) -> None:
    """A head stored beside a tied embedding must be that embedding."""
    same = (
        stored.shapes[head] == stored.shapes[embedding]
        and stored.dtypes[head] == stored.dtypes[embedding]
        and torch.equal(stored.tensor(head), stored.tensor(embedding))
    )
    if not same:
        raise UserError(
            f"{stored.folder}: {head!r} differs from {embedding!r}, but the configuration says "
            "that they are tied (tie_word_embeddings)"
        )


def _dtype(stored: StoredTensors, layout: Layout | None, config: dict[str, Any]) -> torch.dtype:
    """The one dtype of all weights, which the configuration may state but not contradict."""
    kept = layout.keeps_float32 if layout is not None else ()
    unbuilt = layout.unbuilt if layout is not None else ()
    codes = {
        code
        for name, code in stored.dtypes.items()
        if not name.endswith(kept) and not name.startswith(unbuilt)
    }
    said = config.get("dtype") or config.get("torch_dtype")
    found = sorted(str(DTYPES[code]).removeprefix("torch.") for code in codes)
    if len(found) != 1 or said not in (None, found[0]):
        raise UserError(
            f"{stored.folder}: weights are stored as {' and '.join(found)}, the configuration "
            f"says {said}; choose with dtype="
        )
    (code,) = codes
    return DTYPES[code]


def _take_dtypes(decoder: Decoder, stored: StoredTensors) -> None:
    """Give each meta tensor the dtype that our own layout stored it in."""
    for name, tensor, owner, attribute, _ in leaves(decoder):
        if name in stored.dtypes and DTYPES[stored.dtypes[name]] != tensor.dtype:
            cast = torch.empty_like(tensor, dtype=DTYPES[stored.dtypes[name]])
            if isinstance(tensor, nn.Parameter):
                setattr(owner, attribute, nn.Parameter(cast, tensor.requires_grad))
            else:
                setattr(owner, attribute, cast)


def _materialise(decoder: Decoder, device: torch.device | str) -> None:
    """Allocate a decoder built on the meta device, once, and set what no checkpoint holds.

    Buffers that are not saved are constants of a sequence mixer, recomputed by building that mixer
    alone, or running counts of a channel mixer, which start at zero.
    """
    decoder.to_empty(device=device)
    with torch.no_grad():
        for index, block in enumerate(decoder.spec.blocks):
            built: Any = decoder.blocks[index]
            for slot, mixer in enumerate(block.mixers):
                if mixer.weights_from is None and _unsaved(built.mixers[slot]):
                    consumer = mixer.state_from is not None
                    fresh = mixer_config(mixer).build(
                        decoder.spec.d_model, index, decoder.spec.num_blocks, consumer=consumer
                    )
                    values = _unsaved(fresh)
                    for name, buffer in _unsaved(built.mixers[slot]).items():
                        buffer.copy_(values[name])
            if built.channel_mixer is not None:
                for buffer in _unsaved(built.channel_mixer).values():
                    buffer.zero_()


def _unsaved(module: nn.Module) -> dict[str, Tensor]:
    return {leaf.name: leaf.tensor for leaf in leaves(module) if not leaf.is_saved}
