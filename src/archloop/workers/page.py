"""The part of `docs/wire.md` that the message types themselves say.

``python -m archloop.workers.page docs/wire.md`` writes it anew between its two marks; a test holds
the page against the types.
"""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from archloop.files import write_atomic
from archloop.workers import wire
from archloop.workers.messages import VERSION, Failure, Message

BEGIN, END = "<!-- generated from the types: begin -->", "<!-- generated from the types: end -->"


def messages() -> str:
    """All commands with their answers, as Markdown."""
    parts = [f"Version {VERSION}."]
    for message in wire.COMMANDS:
        name = message.model_fields["command"].default
        parts.append(f"### `{name}`\n\n{_about(message)}\n\n{_table(message)}")
        answer = message.answer_type()
        fields = _table(answer) if answer.model_fields else "No fields: `{}`."
        parts.append(f"**Answer.** {_about(answer)}\n\n{fields}")
    parts.append(f"### `Memory`\n\n{_about(wire.Memory)}\n\n{_table(wire.Memory)}")
    parts.append(f"### Errors\n\n{_about(Failure)}\n\n{_table(Failure)}")
    return "\n\n".join(parts)


def updated(page: str) -> str:
    """A page with the generated part as it must be.

    Raises:
        ValueError: the page lacks a mark.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{messages()}\n\n{END}{after}"


def _about(message: type[Message]) -> str:
    """The class's words, without its list of fields."""
    return " ".join(_docstring(message).partition("Attributes:")[0].split())


def _table(message: type[Message]) -> str:
    meanings, schema = _meanings(message), message.model_json_schema()
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for name, field in message.model_fields.items():
        if name == "command":
            continue
        what = _type(schema["properties"][name], schema.get("$defs", {}))
        need = "" if field.is_required() else f"; default {_default(field.get_default())}"
        lines.append(f"| `{name}` | {what}{need} | {meanings.get(name, '')} |")
    return "\n".join(lines) if len(lines) > 2 else "No fields."


def _meanings(message: type[Message]) -> dict[str, str]:
    """What the docstring says of each field."""
    found: dict[str, str] = {}
    name = ""
    for line in _docstring(message).partition("Attributes:\n")[2].splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            name, _, text = line.strip().partition(": ")
            found[name] = text
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _docstring(message: type[Message]) -> str:
    return inspect.cleandoc(message.__doc__ or "")


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "anyOf" in schema:
        return " or ".join(_type(each, definitions) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}), definitions)}"
    bounds = [f">= {schema['minimum']}"] if "minimum" in schema else []
    bounds += [f"> {schema['exclusiveMinimum']:g}"] if "exclusiveMinimum" in schema else []
    return " ".join([str(schema.get("type", "any")), *bounds])


def _default(value: object) -> str:
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_atomic(place, updated(place.read_text()).encode())
