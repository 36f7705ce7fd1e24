"""Chat templates: the same text as transformers, and nothing but text."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from archloop.errors import UserError
from archloop.text.chat import ChatTemplate

CHATML = """\
{{- bos_token -}}
{%- set system = "" -%}
{%- if messages[0]["role"] == "system" -%}
    {%- set system = messages[0]["content"] -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set system = system + ("\\n" if system else "") + "List of tools: <|tool_list_start|>[" -%}
    {%- set ns = namespace(listed="") -%}
    {%- for tool in tools -%}
        {%- set ns.listed = ns.listed + (tool | tojson) + ("" if loop.last else ", ") -%}
    {%- endfor -%}
    {%- set system = system + ns.listed + "]<|tool_list_end|>" -%}
{%- endif -%}
{%- if system -%}
    {{- "<|im_start|>system\\n" + system + "<|im_end|>\\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" -}}
    {%- if message["role"] == "tool" -%}
        {{- "<|tool_response_start|>" + message["content"] + "<|tool_response_end|>" -}}
    {%- elif message["role"] == "assistant" -%}
        {%- generation -%}
        {{- message["content"] -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- message["content"] -}}
    {%- endif -%}
    {{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""
"""ChatML with LFM2's tool tokens, written after its public description."""

TOOLS = [
    {"name": "get_status", "parameters": {"type": "object", "properties": {"id": {"a": "<é>"}}}},
    {"name": "stop"},
]
USER = {"role": "user", "content": 'What is <C> & "elegans"? é'}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "A nematode."}
TOOL = {"role": "tool", "content": '{"x": 1}'}


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize(
    "messages",
    [[USER], [SYSTEM, USER], [SYSTEM, USER, ASSISTANT, USER], [USER, ASSISTANT, TOOL]],
    ids=len,
)
def test_the_text_is_transformers(messages: Any, tools: Any, prompt: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<|startoftext|>": 0, "?": 1}, unk_token="?")),
        bos_token="<|startoftext|>",
    )
    theirs = tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=CHATML, tokenize=False, add_generation_prompt=prompt
    )
    template = ChatTemplate(CHATML, {"bos_token": "<|startoftext|>"})
    assert template.render(messages, tools=tools, add_generation_prompt=prompt) == theirs
    assert theirs.startswith("<|startoftext|><|im_start|>")


def test_known_text() -> None:
    template = ChatTemplate(CHATML, {"bos_token": "<|startoftext|>"})
    assert template.render([SYSTEM, USER, ASSISTANT]) == (
        "<|startoftext|><|im_start|>system\nBe brief.<|im_end|>\n"
        '<|im_start|>user\nWhat is <C> & "elegans"? é<|im_end|>\n'
        "<|im_start|>assistant\nA nematode.<|im_end|>\n"
    )


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ messages.__class__.__mro__ }}", "sandbox"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "sandbox"),
        ("{{ cycler.__init__.__globals__ }}", "sandbox"),
        ("{{ messages.append(1) }}", "sandbox"),
        ("{{ range(10**9) | list }}", "failed"),
        ("{{ raise_exception('only user turns') }}", "only user turns"),
        ("{% include 'secret' %}", "failed"),
        ("{{ messages[0].content + 1 }}", "failed"),
        ("{{ 1 / 0 }}", "failed.*division by zero"),
        ("{{ messages[0].content.index('?!') }}", "failed"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "failed.*recursion"),
    ],
)
def test_templates_cannot_leave_the_sandbox(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source).render([USER])


def test_messages_are_plain_data() -> None:
    with pytest.raises(ValueError, match="plain JSON data"):
        ChatTemplate("{{ messages }}").render([{"role": "user", "content": object()}])


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{" + "(" * 9000, "{% for a in b %}" * 60 + "{% endfor %}" * 60]
)
def test_a_broken_template_is_refused(source: str) -> None:
    with pytest.raises(UserError, match="not valid Jinja"):
        ChatTemplate(source)


def test_loop_controls_and_dates() -> None:
    source = "{% for m in messages %}{% break %}{% endfor %}{{ strftime_now('%Y') | length }}"
    assert ChatTemplate(source).render([USER]) == "4"
