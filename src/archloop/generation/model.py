"""A checkpoint as its user meets it: decoder, tokenizer, chat template and generation defaults."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from archloop.checkpoints import files, hub, tokens
from archloop.checkpoints.loading import load
from archloop.errors import UserError
from archloop.generation import protocol
from archloop.generation.defaults import read as read_defaults
from archloop.generation.generation import Generation
from archloop.generation.sampling import Sampling
from archloop.generation.transcript import Transcript
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from archloop.text.chat import ChatTemplate, Message
from archloop.text.decoding import TextDecoder
from archloop.text.streaming import TextStream

_log = logging.getLogger(__name__)
_MAX_TEMPLATE_BYTES = 1 << 20
MORE_TEMPLATES = "additional_chat_templates"
"""Folder of a checkpoint's chat templates beside the default one, each named by its file."""


@dataclass(frozen=True)
class Model:
    """What `load_model` found.

    Attributes:
        decoder: in evaluation mode.
        tokenizer: None when the checkpoint has no ``tokenizer.json``.
        chat_template: None when it has none.
        sampling: the checkpoint's own defaults; greedy when it states none.
        stop_ids: its end-of-sequence tokens.
        stop_strings: texts that end a reply, by its own defaults.
    """

    decoder: Decoder
    tokenizer: Tokenizer | None = None
    chat_template: ChatTemplate | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of plain text, with the tokens that the tokenizer puts around it or without.

        Raises:
            UserError: the checkpoint has no tokenizer.
        """
        return list(self._tokenizer().encode(text, add_special_tokens=special_tokens).ids)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        after: Sequence[int] = (),
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn.

        Args:
            messages: in order.
            tools: JSON schemas of functions that the model may call.
            add_generation_prompt: end with the opening of the assistant's turn.
            after: tokens of this conversation so far. Where its text begins with theirs, they are
                kept as they are: a reply may be cut into other tokens than its text would be.
            template: which one, where the checkpoint has several; default: ``tool_use`` with
                tools, if there is one, else ``default``.
            variables: whatever else the template reads, such as ``enable_thinking``.

        Raises:
            UserError: the checkpoint has no tokenizer or no chat template.
        """
        if self.chat_template is None:
            raise UserError("this checkpoint has no chat template; give plain text instead")
        text = self.chat_template.render(
            messages,
            tools=tools,
            name=template,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )
        known = self.decode(after, special_tokens=True)
        kept = list(after) if text.startswith(known) else []
        # The template has written the special tokens itself.
        rest = text[len(known) :] if kept else text
        return kept + self.encode(rest, special_tokens=False)

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """Text of token ids, with or without special tokens.

        Raises:
            UserError: the checkpoint has no tokenizer.
        """
        return self._text.decode(ids, special_tokens=special_tokens)

    @cached_property
    def _text(self) -> TextDecoder:
        return TextDecoder(self._tokenizer())

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError("this checkpoint has no tokenizer.json; work with token ids")
        return self.tokenizer


def load_model(
    path_or_hub_id: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    revision: str | None = None,
) -> Model:
    """A decoder with what its checkpoint says about text. Arguments and errors as `load`."""
    folder = hub.resolve(path_or_hub_id, revision)
    return with_text(load(folder, dtype, device), folder)


def without_weights(spec: StackSpec, folder: str | Path) -> Model:
    """What a folder says about text, for weights that an engine holds: give `stream` that engine.

    Args:
        spec: of the weights.
        folder: that has the tokenizer.

    Raises:
        UserError: a file of the tokenizer, the template or the defaults is malformed.
    """
    with torch.device("meta"):
        decoder = Decoder(spec)
    decoder.special_tokens = tokens.read(Path(folder))
    return with_text(decoder.eval(), Path(folder))


def with_text(decoder: Decoder, folder: Path) -> Model:
    """A decoder with what a folder says about text.

    Raises:
        UserError: a file of the tokenizer, the template or the defaults is malformed.
    """
    defaults = read_defaults(folder)
    assert decoder.special_tokens is not None
    return Model(
        decoder,
        tokens.load_tokenizer(folder),
        _load_template(folder),
        defaults.sampling,
        decoder.special_tokens.eos,
        defaults.stop_strings,
    )


def stream(
    model: Model,
    prompt: str | Sequence[Message] | Sequence[int],
    sampling: Sampling | None = None,
    *,
    max_new_tokens: int = 256,
    stop_strings: Sequence[str] = (),
    chunk_size: int | None = None,
    transcript: Transcript | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    special_tokens: bool = False,
    engine: protocol.Model | None = None,
) -> Iterator[str]:
    """The reply to a prompt, in pieces of whole characters as they come.

    Args:
        model: with a tokenizer.
        prompt: plain text, chat messages, or token ids.
        sampling: default: the checkpoint's own.
        max_new_tokens: the reply ends here at the latest, or with the longest context that the
            model is made for, or its engine opened for.
        stop_strings: the reply ends before the first of these, or of the checkpoint's own.
        chunk_size: tokens per prefill pass.
        transcript: a conversation so far, of one row. Chat messages are the whole conversation,
            of which only what is new is read; text and ids are what is new.
        tools, template, variables: with chat messages, as in `Model.encode_chat`.
        special_tokens: also emit special tokens, such as those around LFM2's tool calls.
        engine: what runs the model's weights; default: its decoder itself.

    Raises:
        UserError: no tokenizer, no chat template, a prompt beyond that longest context, or not
            enough room in the transcript.
    """
    before = transcript.ids[0] if transcript is not None else []
    chat = {"tools": tools, "template": template, "variables": variables}
    ids, whole = _prompt_ids(model, prompt, chat, before)
    if transcript is None:
        max_new_tokens = _within_context(model.decoder.spec, engine, len(ids), max_new_tokens)
        # The last new token is not read, so it needs no room.
        transcript = Transcript(engine or model.decoder, max(1, len(ids) + max_new_tokens - 1))
    given = [stop_strings] if isinstance(stop_strings, str) else stop_strings
    decode = partial(model.decode, special_tokens=special_tokens)
    # The reply in a chat is decoded as a text of its own; any other reply continues the prompt's
    # last word, which its decoding therefore has to know.
    text = TextStream(decode, [*model.stop_strings, *given], () if whole else [*before, *ids])
    with transcript.unless_refused():
        if whole:
            transcript.replace([ids])
        else:
            transcript.extend([ids])
        generation = Generation(
            transcript,
            max_new_tokens,
            model.sampling if sampling is None else sampling,
            stop_ids=model.stop_ids,
            chunk_size=chunk_size,
        )
    yield from _pieces(generation, text)


def _pieces(generation: Generation, text: TextStream) -> Iterator[str]:
    """The text of a turn of one row as it comes; the turn ends where the text is to stop."""
    try:
        for (token,) in generation:
            if token is not None and generation.ended[0] != "stop_id":
                if piece := text.push([token]):
                    yield piece
                if text.stopped:
                    generation.end(0)
    finally:
        generation.close()  # Also where a reader has left before the end.
    if rest := text.flush():
        yield rest


def _prompt_ids(
    model: Model,
    prompt: str | Sequence[Message] | Sequence[int],
    chat: Mapping[str, Any],
    before: list[int],
) -> tuple[list[int], bool]:
    """Token ids, and whether they are the whole conversation."""
    if isinstance(prompt, str):
        # A token that marks the beginning of a text stands before the first prompt only, not before
        # what continues it.
        given_ids = model.encode(prompt, special_tokens=not before)
        _warn_of_two_beginnings(model, given_ids)
        return given_ids, False
    given: list[Any] = list(prompt)
    if given and isinstance(given[0], int):
        return given, False
    return model.encode_chat(given, after=before, **chat), True


def _warn_of_two_beginnings(model: Model, ids: list[int]) -> None:
    """Say that a prompt begins with the token that the tokenizer puts before every text."""
    begin = model.decoder.special_tokens.bos if model.decoder.special_tokens else None
    if begin is not None and ids[:2] == [begin, begin]:
        _log.warning(
            "the prompt begins with token %d twice, once written out and once as the tokenizer "
            "adds it; few models were trained so, leave it out of the prompt",
            begin,
        )


def _within_context(
    spec: StackSpec, engine: protocol.Model | None, num_ids: int, max_new_tokens: int
) -> int:
    """New tokens that the longest context leaves room for; the last one is not read."""
    limits = []
    if spec.max_context is not None:
        limits.append((spec.max_context, "the model is made for"))
    if isinstance(engine, protocol.Bounded):
        limits.append((engine.max_context, "its engine is opened for"))
    if not limits:
        return max_new_tokens
    longest, why = min(limits)
    if num_ids > longest:
        raise UserError(f"the prompt has {num_ids} tokens and {why} {longest}; shorten it")
    return min(max_new_tokens, longest - num_ids + 1)


def _load_template(folder: Path) -> ChatTemplate | None:
    """From ``chat_template.jinja``, else from ``tokenizer_config.json``, as transformers does.

    Named templates lie in ``additional_chat_templates``, or all in a list.
    """
    settings = files.read_json(folder, "tokenizer_config.json") or {}
    source = files.read_text(folder, "chat_template.jinja", _MAX_TEMPLATE_BYTES)
    named: dict[str, Any] = {}
    if source is not None:
        for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
            name = f"{MORE_TEMPLATES}/{path.name}"
            named[path.stem] = files.read_text(folder, name, _MAX_TEMPLATE_BYTES)
        named["default"] = source
    elif isinstance(listed := settings.get("chat_template"), list):
        entries = [entry for entry in listed if isinstance(entry, dict)]
        named = {str(entry.get("name")): entry.get("template") for entry in entries}
    elif listed is not None:
        named = {"default": listed}
    for name, text in named.items():
        if not isinstance(text, str) or len(text) > _MAX_TEMPLATE_BYTES:
            raise UserError(f"{folder}: chat template {name!r} must be text of at most 1 MiB")
    return ChatTemplate(named, tokens.texts(folder)) if named else None
