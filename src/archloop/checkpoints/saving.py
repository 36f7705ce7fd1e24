"""Saving: a family's layout that stock transformers loads, or our own for any stack."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archloop.checkpoints import families, files, names
from archloop.checkpoints import tokens as special_tokens
from archloop.checkpoints.layouts.base import Layout, UnsayableError
from archloop.checkpoints.pieces import Piece, gather
from archloop.errors import UserError, suggest
from archloop.stack import weights
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from archloop.text.special_tokens import SpecialTokens


def save(
    decoder: Decoder,
    path: str | Path,
    layout: str = "huggingface",
    max_shard_bytes: int = 5 << 30,
    *,
    variant: str | None = None,
    tokens: SpecialTokens | None = None,
) -> None:
    """Write a checkpoint's folder; on an error what was there before is there again.

    Args:
        decoder: what to save, in its own dtype; compiled or wrapped for data parallelism too.
        path: a new or empty folder, or that of a checkpoint, whose weights and configuration are
            replaced; whatever else it holds stays.
        layout: ``archloop`` (``spec.json``) takes any stack; a family's name, such as ``lfm2``,
            those of that family; ``huggingface`` the first family that can say the stack.
        max_shard_bytes: weight files are at most this large, or one tensor.
        variant: one of the family's ways to cut tensors, such as ``fused`` experts of LFM2-MoE.
        tokens: written to ``config.json`` and ``generation_config.json``; default: those that the
            decoder was loaded with, else those that the files in `path` name, else none.

    Raises:
        UserError: the stack is not of the family, `path` holds something else, or a token is
            not in the vocabulary.
    """
    decoder = names.unwrapped(decoder)
    targets = weights.tensors(decoder)
    for name, tensor in targets.items():
        if not names.is_float(tensor.dtype) or tensor.is_meta:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; cannot be saved")
    if tokens is not None:
        special_tokens.check(tokens, decoder.spec.vocab_size)
    tokens = tokens or decoder.special_tokens or special_tokens.read(Path(path))
    if layout == "archloop":
        pieces, texts = names.own(decoder), {weights.SPEC: decoder.spec.to_json()}
    else:
        family, config = _family(decoder.spec, layout)
        config |= special_tokens.settings(tokens)
        config["dtype"] = decoder.precision
        pieces = list(family.pieces(decoder.spec, _variant(family, variant)))
        texts = {files.CONFIG: json.dumps(config, indent=2, sort_keys=True)}
    generation = files.read_json(Path(path), special_tokens.GENERATION) or {}
    if generation or tokens != SpecialTokens():
        generation |= special_tokens.settings(tokens)
        texts[special_tokens.GENERATION] = json.dumps(generation, indent=2, sort_keys=True)
    with files.replacing(Path(path)) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text + "\n", encoding="utf-8")
        _write(folder, pieces, targets, max_shard_bytes)


def _family(spec: StackSpec, layout: str) -> tuple[Layout, dict[str, Any]]:
    try:
        if layout == "huggingface":
            return families.saying(spec)
        family = families.layout(layout)
        return family, family.write(spec)
    except UnsayableError as error:
        named = layout != "huggingface"
        what = f"this stack is not of the {layout} family: {error}" if named else str(error)
        raise UserError(f"{what}; save it with layout='archloop'") from error


def _variant(family: Layout, name: str | None) -> str:
    if name is None:
        return family.variants[0]
    if name not in family.variants:
        raise UserError(f"variant={name!r}: {suggest(name, list(family.variants))}")
    return name


def _write(
    folder: Path, pieces: list[Piece], targets: dict[str, Tensor], max_shard_bytes: int
) -> None:
    shards = list(_shards(pieces, targets, max_shard_bytes))
    weight_map: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        file = weights.WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: gather(parts, targets) for name, parts in shard.items()}
        weights.write(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / files.INDEX).write_text(text + "\n", encoding="utf-8")


def _shards(
    pieces: list[Piece], targets: Mapping[str, Tensor], max_bytes: int
) -> Iterator[dict[str, list[Piece]]]:
    """Pieces by the tensor that they are parts of, and tensors by the file that they fit into."""
    parts: dict[str, list[Piece]] = {}
    for piece in pieces:
        parts.setdefault(piece.name, []).append(piece)
    shard: dict[str, list[Piece]] = {}
    held = 0
    for name, of_tensor in parts.items():
        first = of_tensor[0]
        size = torch.Size(first.shape).numel() * targets[first.target].element_size()
        if shard and held + size > max_bytes:
            yield shard
            shard, held = {}, 0
        shard[name] = of_tensor
        held += size
    if shard:
        yield shard
