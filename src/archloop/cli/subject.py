"""A named model, opened to be asked: its weights in PyTorch, or an artifact by its engine."""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from archloop.cli.command import stderr
from archloop.cli.models import Named, open_artifact
from archloop.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from archloop.evals.verbs import Model
    from archloop.stack.decoder import Decoder

MAX_CONTEXT = 8192
"""Tokens that an artifact is given room for."""


def open_subject(model: Named, device: str, batch_size: int) -> "tuple[Model, str]":
    """A model under evaluation, and what tells it from others: its weights, and how it is asked.

    Args:
        model: that the command line names.
        device: in PyTorch's words; an artifact's engine has its own.
        batch_size: most rows at a time; an artifact takes one.

    Raises:
        UserError: it has no weights here, no tokenizer, or its engine does not run here.
    """
    from archloop.training.loop import use_device

    place = use_device(device)
    if model.source == "artifact":
        return _artifact(model)
    if model.source == "spec":
        return _random(model, place, batch_size)
    from archloop.evals.codecs import TokenizerCodec
    from archloop.evals.decoder_model import DecoderModel

    loaded = model.text_model(device=place)
    if loaded.tokenizer is None:
        raise UserError(f"{model.label} has no tokenizer.json, so it cannot be asked in text")
    if model.is_proxy():
        stderr.print(f"{model.label}: its trained proxy is asked", markup=False)
    codec = TokenizerCodec(loaded.tokenizer)
    start = codec.start() or loaded.stop_ids[: model.is_proxy()]
    subject = DecoderModel(
        loaded.decoder, codec, start=start, stop_ids=loaded.stop_ids, batch_size=batch_size
    )
    in_text = _text_digest(loaded.tokenizer, start, loaded.stop_ids)
    return subject, f"weights:{_fingerprint(loaded.decoder)}:{in_text}"


def _random(model: Named, place: object, batch_size: int) -> "tuple[Model, str]":
    import torch

    from archloop.evals.codecs import ByteCodec
    from archloop.evals.decoder_model import DecoderModel
    from archloop.stack.decoder import Decoder

    spec = model.spec
    if spec.vocab_size <= ByteCodec.NUM_IDS:
        raise UserError(
            f"{model.label} has vocab_size={spec.vocab_size}, no room for bytes and a beginning; "
            f"give at least {ByteCodec.NUM_IDS + 1}"
        )
    stderr.print(f"{model.label} has random weights, and bytes for tokens", markup=False)
    torch.manual_seed(0)
    assert isinstance(place, torch.device)
    decoder = Decoder(spec).eval().to(place)
    subject = DecoderModel(decoder, ByteCodec(), start=(256,), batch_size=batch_size)
    return subject, f"random:{spec.digest}"


def _artifact(model: Named) -> "tuple[Model, str]":
    from archloop.evals.artifact_model import ArtifactModel
    from archloop.evals.codecs import TokenizerCodec
    from archloop.generation.model import without_weights

    assert model.folder is not None
    text = without_weights(model.spec, model.folder)
    if text.tokenizer is None:
        raise UserError(
            f"{model.label} has no tokenizer.json, so it cannot be asked in text; export a "
            "checkpoint that has one"
        )
    codec = TokenizerCodec(text.tokenizer)
    session, manifest = open_artifact(model.folder, MAX_CONTEXT)
    subject = ArtifactModel(
        session,
        model.spec.vocab_size,
        codec,
        start=codec.start(),
        stop_ids=text.stop_ids,
    )
    said = hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
    in_text = _text_digest(text.tokenizer, subject.start, text.stop_ids)
    return subject, f"artifact:{said[:32]}:{in_text}"


def _text_digest(tokenizer: "Tokenizer", start: Sequence[int], stop_ids: Sequence[int]) -> str:
    """A hash of how text becomes tokens and back: corrected, it makes another model's answers."""
    parts = [tokenizer.to_str(), list(start), list(stop_ids)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _fingerprint(decoder: "Decoder") -> str:
    """A hash of the weights' bytes, so that a folder that was written anew is another model."""
    import torch

    hasher = hashlib.sha256()
    for name, weight in sorted(decoder.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()[:32]
