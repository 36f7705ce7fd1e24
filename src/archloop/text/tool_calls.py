"""Calls of tools in a model's reply, read as data: nothing in a reply is ever executed.

LFM2 writes calls as Python, between two special tokens, any number of them in one list:

    <|tool_call_start|>[get_weather(city="Paris", days=[1, 2])]<|tool_call_end|>

LFM2.5 does so too, or writes JSON where its system prompt asks for it, an object or a list of
``{"name": ..., "arguments": {...}}``. Where special tokens were left out of a text, a reply that is
nothing but such a list is taken for calls if every name in it is a known tool's. What a model
thinks before ``</think>`` is no call.
"""

import ast
import json
import math
import re
from collections.abc import Collection
from typing import Any, NamedTuple

START, END = "<|tool_call_start|>", "<|tool_call_end|>"
LONGEST = 1 << 20
"""Characters of a reply that are looked at: Python's parser takes memory many times its input."""
_THOUGHT = re.compile(r"^.*?</think>", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None}
"""JSON's words, which models write in Python too."""


class ToolCallError(ValueError):
    """A model's reply has a call that cannot be read."""


class ToolCall(NamedTuple):
    """A tool's name and its arguments, which are plain JSON data."""

    name: str
    arguments: dict[str, Any]


class Reply(NamedTuple):
    """What a model says beside its calls, and these in order."""

    content: str
    calls: tuple[ToolCall, ...]


def parse(text: str, tools: Collection[str] = ()) -> Reply:
    """The calls in a reply.

    Args:
        text: of the reply, with special tokens or without.
        tools: names of known tools, by which a call without special tokens is told from text.

    Raises:
        ToolCallError: what stands between the special tokens is no call, one of them is missing,
            or the reply is too long.
    """
    if len(text) > LONGEST:
        raise ToolCallError(f"a reply of {len(text)} characters; at most {LONGEST} are read")
    thought = _THOUGHT.match(text)
    before, said = (thought.group(), text[thought.end() :]) if thought else ("", text)
    if START not in said and END not in said:
        return _bare(text, said, tools)
    content, calls = [before], []
    for index, part in enumerate(said.split(START)):
        inside, end, after = part.partition(END)
        if bool(end) != (index > 0) or END in after:
            raise ToolCallError(f"{START} and {END} do not come in pairs")
        content.append(after if end else inside)
        calls += _calls(inside) if end else []
    return Reply("".join(content).strip(), tuple(calls))


def _bare(text: str, said: str, tools: Collection[str]) -> Reply:
    """A reply without special tokens: calls of known tools alone, or text."""
    try:
        calls = _calls(said)
    except ToolCallError:
        return Reply(text, ())
    known = calls and all(call.name in tools for call in calls)
    return Reply(text[: len(text) - len(said)].strip(), tuple(calls)) if known else Reply(text, ())


def _calls(text: str) -> list[ToolCall]:
    """Of one list, or of one call alone, in JSON or as Python."""
    text = text.strip()
    try:
        found = _loaded(text)
    except (ValueError, RecursionError):
        return _python(text)
    return [_from_json(call) for call in (found if isinstance(found, list) else [found])]


def _loaded(text: str) -> Any:
    """A value of JSON, whose numbers are all finite, so that it can be written back.

    Raises:
        ValueError: it is none.
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _from_json(call: Any) -> ToolCall:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ToolCallError(f"a call must be an object with a name, not {_short(call)}")
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        # Some templates show arguments as JSON inside a string.
        try:
            arguments = _loaded(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise ToolCallError(f"arguments of {call['name']} must be an object")
    return ToolCall(call["name"], arguments)


def _python(text: str) -> list[ToolCall]:
    """Calls written as Python, taken apart by its parser."""
    try:
        body = ast.parse(text, mode="eval").body
        nodes = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        return [_from_python(node) for node in nodes]
    except ToolCallError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolCallError(f"no call of a tool: {_short(text)}") from error


def _from_python(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call):
        raise ToolCallError(f"no call of a tool: {_short(ast.unparse(node))}")
    name = ast.unparse(node.func)
    if not all(part.isidentifier() for part in name.split(".")):
        raise ToolCallError(f"no name of a tool: {_short(name)}")
    if node.args:
        raise ToolCallError(f"{name} is called with arguments that have no names")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ToolCallError(f"{name}: each argument must have a name of its own")
        arguments[keyword.arg] = _value(keyword.value)
    return ToolCall(name, arguments)


def _value(node: ast.expr) -> Any:
    """A literal that JSON has too."""
    match node:
        case ast.Constant(value=float() as number) if not math.isfinite(number):
            pass  # too large to be written back
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float()) as positive):
            return -_value(positive)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
    raise ToolCallError(f"no plain value: {_short(ast.unparse(node))}")


def _finite(word: str) -> float:
    """A number, but not NaN and the infinities: Python's reader of JSON takes these words, which
    JSON does not have, and makes an infinity of what is too large.
    """
    if not math.isfinite(number := float(word)):
        raise ValueError(f"{word} is no finite number")
    return number


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ToolCallError("keys of an object must be text")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")
