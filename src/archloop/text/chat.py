"""Chat templates: Jinja text from a checkpoint, run in a sandbox on plain data only.

A template comes from whoever made the checkpoint, so it gets no Python objects (messages pass
through JSON), no attribute tricks (jinja2's immutable sandbox) and no files.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from archloop.errors import UserError

Message = Mapping[str, Any]
"""``{"role": "user", "content": "..."}``, and whatever else the template reads."""


class ChatTemplate:
    """A compiled chat template, or several by name.

    Args:
        source: Jinja text; of several, by names of which ``default`` and ``tool_use`` have a
            meaning.
        special_tokens: variables such as ``bos_token``.

    Raises:
        UserError: a text is no valid template.
    """

    def __init__(
        self, source: str | Mapping[str, str], special_tokens: Mapping[str, str] | None = None
    ) -> None:
        self.sources = {"default": source} if isinstance(source, str) else dict(source)
        self.special_tokens = dict(special_tokens or {})
        try:
            environment = _environment()
            self._templates = {n: environment.from_string(t) for n, t in self.sources.items()}
        except Exception as error:  # Nested too deeply, it is an error of Python's own parser.
            raise UserError(f"the chat template is not valid Jinja: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: in order.
            tools: JSON schemas of functions that the model may call.
            name: of the template; default: ``tool_use`` with tools, if there is one, else
                ``default``.
            add_generation_prompt: end with the opening of the assistant's turn.
            variables: whatever else the template reads.

        Raises:
            UserError: the template refuses the messages, fails on them or breaks out of its
                sandbox; or they are no plain data; there is no such template.
        """
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise UserError(f"no chat template {name!r}; allowed: {sorted(self._templates)}")
        try:
            given = json.dumps({**(variables or {}), "messages": list(messages), "tools": tools})
        except (TypeError, ValueError) as error:
            raise UserError(f"messages and tools must be plain JSON data: {error}") from error
        try:
            return self._templates[name].render(
                {**self.special_tokens, **json.loads(given)},
                add_generation_prompt=add_generation_prompt,
            )
        except SecurityError as error:
            raise UserError(f"the chat template tried to leave its sandbox: {error}") from error
        except Exception as error:  # A template can divide by zero, call itself forever, ...
            raise UserError(f"the chat template failed on these messages: {error}") from error


class _Generation(Extension):
    """``{% generation %}`` marks words to train on; here it only passes them on."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """With the settings, filters and functions that chat templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which no model is trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
