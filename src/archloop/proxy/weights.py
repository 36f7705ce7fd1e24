"""A trained proxy kept: a checkpoint in float16 with the tokenizer of its text, to be asked later.

It is a checkpoint like any other, so whatever takes a checkpoint's folder takes a kept proxy.
"""

import copy
import json
from pathlib import Path

import torch

from archloop.checkpoints.saving import save
from archloop.files import write_atomic
from archloop.proxy.mixture import ProxyData
from archloop.stack.decoder import Decoder
from archloop.text.special_tokens import SpecialTokens
from archloop.text.tokenizers import END_OF_TEXT, Tokenizer


def keep(decoder: Decoder, data: ProxyData, folder: Path) -> None:
    """Write a proxy's weights, in place of those of an earlier rung.

    Args:
        decoder: trained; it stays as it is.
        data: that it was trained on.
        folder: of the checkpoint.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    half = copy.deepcopy(decoder).to(torch.float16)
    tokenizer = data.tokenizer
    tokens = SpecialTokens() if tokenizer is None else SpecialTokens(eos=(tokenizer.end_of_text,))
    save(half, folder, "archloop", tokens=tokens)
    if tokenizer is not None:
        add_tokenizer(tokenizer, folder)


def add_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Lay a tokenizer beside a checkpoint, in the files that transformers reads.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    write_atomic(folder / "tokenizer.json", tokenizer.to_json().encode())
    write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=1).encode())
