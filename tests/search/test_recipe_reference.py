"""The page on recipes, which is made of the models, is complete."""

from typing import Any

from pydantic import BaseModel

from archloop.search.recipe import reference
from archloop.search.recipe.recipe import parse
from search.stand_in import settings


def test_the_page_has_a_line_for_every_key() -> None:
    page = reference.markdown()
    for path, keys in dict(reference.keys()).items():
        assert (f"## `{path}:`" if path else "## Top level") in page
        for key in keys:
            assert f"| `{key.path.rpartition('.')[2]}` | {key.meaning[:20]}" in page


def test_every_key_of_a_written_out_recipe_has_a_meaning() -> None:
    sections = dict(reference.keys())
    known = {key.path: key for keys in sections.values() for key in keys}
    assert all(key.meaning for key in known.values())
    assert known["space.budget.tolerance"].default == "0.01"
    assert known["budgets[].metric"].takes.startswith("`ttft_ms` or ")
    written = parse(settings(), "test.yaml").plain()
    missing = [path for path in paths(written) if path not in known]
    # Names of mixers, targets and anchors are the user's own, genes those of the plug-ins.
    own = ("space.mixers.", "space.channel_mixers.", "space.scope.", "strategy.settings.")
    assert [path for path in missing if not path.startswith(own)] == []


def paths(value: Any, path: str = "") -> list[str]:
    found = []
    for key, inner in value.items():
        where = f"{path}.{key}" if path else key
        if path == "targets":
            where = "targets.<name>"
        else:
            found.append(where)
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            found += paths(inner[0], f"{where}[]")
        elif isinstance(inner, dict):
            found += paths(inner, where)
    return found


def test_a_field_that_nobody_explains_is_seen() -> None:
    class Bare(BaseModel):
        """A section.

        Attributes:
            told: what it is.
        """

        told: int = 1
        untold: int = 2

    assert reference.attributes(Bare) == {"told": "what it is."}
    ((_, keys),) = reference.keys(Bare)
    assert [key.meaning for key in keys] == ["what it is.", ""]
