"""Saving: Hugging Face layout that stock transformers loads, or our own for any stack."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from archloop.checkpoints import files, lfm2, names
from archloop.checkpoints import tokens as special_tokens
from archloop.checkpoints.names import ExpertLayout, Piece
from archloop.stack.decoder import Decoder
from archloop.text.special_tokens import SpecialTokens


def save(
    decoder: Decoder,
    path: str | Path,
    layout: Literal["huggingface", "archloop"] = "huggingface",
    max_shard_bytes: int = 5 << 30,
    *,
    experts: ExpertLayout = "separate",
    tokens: SpecialTokens | None = None,
) -> None:
    """Write a checkpoint's folder; on an error what was there before is there again.

    Args:
        decoder: what to save, in its own dtype; compiled or wrapped for data parallelism too.
        path: a new or empty folder, or that of a checkpoint, whose weights and configuration are
            replaced; whatever else it holds stays.
        layout: ``huggingface`` for the LFM2 family, ``archloop`` (``spec.json``) for any stack.
        max_shard_bytes: weight files are at most this large, or one tensor.
        experts: with ``huggingface``, a tensor per expert as on the hub, or all in one.
        tokens: written to ``config.json`` and ``generation_config.json``; default: those that the
            decoder was loaded with, else those that the files in `path` name, else none.

    Raises:
        UserError: the stack is not of the LFM2 family, `path` holds something else, or a token is
            not in the vocabulary.
    """
    decoder = names.unwrapped(decoder)
    targets = names.stored(decoder)
    for name, tensor in targets.items():
        if not names.is_float(tensor.dtype) or tensor.is_meta:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; cannot be saved")
    if tokens is not None:
        special_tokens.check(tokens, decoder.spec.vocab_size)
    tokens = tokens or decoder.special_tokens or special_tokens.read(Path(path))
    if layout == "archloop":
        pieces, texts = names.own(decoder), {files.SPEC: decoder.spec.to_json()}
    else:
        config = lfm2.from_spec(decoder.spec) | special_tokens.settings(tokens)
        config["dtype"] = str(decoder.embedding.weight.dtype).removeprefix("torch.")
        pieces = list(names.lfm2(decoder.spec, experts))
        texts = {files.CONFIG: json.dumps(config, indent=2, sort_keys=True)}
    generation = files.read_json(Path(path), special_tokens.GENERATION) or {}
    if generation or tokens != SpecialTokens():
        generation |= special_tokens.settings(tokens)
        texts[special_tokens.GENERATION] = json.dumps(generation, indent=2, sort_keys=True)
    with files.replacing(Path(path)) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text + "\n", encoding="utf-8")
        _write(folder, pieces, targets, max_shard_bytes)


def _write(
    folder: Path, pieces: list[Piece], targets: Mapping[str, Tensor], max_shard_bytes: int
) -> None:
    groups = list(_groups(pieces, targets, max_shard_bytes))
    weight_map: dict[str, str] = {}
    total = 0
    for number, group in enumerate(groups, 1):
        name = files.WEIGHTS
        if len(groups) > 1:
            name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {p.name: p.view(targets[p.target].detach()).cpu().contiguous() for p in group}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(groups) > 1:
        index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / files.INDEX).write_text(text + "\n", encoding="utf-8")


def _groups(
    pieces: list[Piece], targets: Mapping[str, Tensor], max_bytes: int
) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    held = 0
    for piece in pieces:
        size = torch.Size(piece.shape).numel() * targets[piece.target].element_size()
        if group and held + size > max_bytes:
            yield group
            group, held = [], 0
        group.append(piece)
        held += size
    if group:
        yield group
