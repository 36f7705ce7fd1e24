"""Saving: Hugging Face layout that stock transformers loads, or our own for any stack."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from archloop.checkpoints import files, lfm2, names
from archloop.checkpoints.names import ExpertLayout, Piece
from archloop.stack.decoder import Decoder

LFM2_TOKENS: Mapping[str, int | list[int]] = {
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
"""Special tokens of the LFM2 tokenizer."""


def save(
    decoder: Decoder,
    path: str | Path,
    layout: Literal["huggingface", "archloop"] = "huggingface",
    max_shard_bytes: int = 5 << 30,
    *,
    experts: ExpertLayout = "separate",
    tokens: Mapping[str, int | list[int]] = LFM2_TOKENS,
) -> None:
    """Write a checkpoint folder, all or nothing.

    Args:
        decoder: what to save, in its own dtype.
        path: a new folder, or that of a checkpoint to replace (its tokenizer files stay).
        layout: ``huggingface`` for the LFM2 family, ``archloop`` (``spec.json``) for any stack.
        max_shard_bytes: weight files are at most this large, or one tensor.
        experts: with ``huggingface``, a tensor per expert as on the hub, or all in one.
        tokens: ids of special tokens for ``config.json``.

    Raises:
        UserError: the stack is not of the LFM2 family, or `path` holds something else.
    """
    targets = names.stored(decoder)
    for name, tensor in targets.items():
        if not names.is_float(tensor.dtype) or tensor.is_meta:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; cannot be saved")
    if layout == "archloop":
        pieces, texts = names.own(decoder), {files.SPEC: decoder.spec.to_json()}
    else:
        config = lfm2.from_spec(decoder.spec)
        config |= {key: tokens[key] for key in tokens if _fits(tokens[key], decoder)}
        config["dtype"] = str(decoder.embedding.weight.dtype).removeprefix("torch.")
        pieces = list(names.lfm2(decoder.spec, experts))
        texts = {files.CONFIG: json.dumps(config, indent=2, sort_keys=True)}
    with files.replacing(Path(path)) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text + "\n", encoding="utf-8")
        _write(folder, pieces, targets, max_shard_bytes)


def _fits(token: int | list[int], decoder: Decoder) -> bool:
    ids = token if isinstance(token, list) else [token]
    return max(ids) < decoder.spec.vocab_size


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
