"""A space that is held to what formats can say proposes nothing else, and says when it cannot."""

from typing import Any

import pytest

from archloop.checkpoints import families
from archloop.runtimes.gguf import file as gguf_file
from archloop.search import plan
from archloop.search.recipe.recipe import Recipe, RecipeError
from archloop.space.specs import to_spec
from search.stand_in import recipe, settings

MIXERS = {"short_conv": {"kernel": [3, 5]}, "gqa": {"head_dim": 32}, "gla": {"head_dim": 32}}


def held(formats: list[str] | str, **changes: Any) -> Recipe:
    space = {**settings()["space"], "mixers": MIXERS, "scope": {}, "exportable_to": formats}
    return recipe(space={**space, **changes}, initial=[])


@pytest.mark.parametrize("name", ["random", "nsga2"])
def test_only_stacks_that_the_formats_can_say_are_proposed(name: str) -> None:
    resolved = plan.resolve(
        held(["gguf", "transformers"]).model_copy(
            update={"strategy": recipe(strategy={"name": name}).strategy}
        )
    )
    for number in range(1, 7):
        proposal = resolved.strategy.ask(number, 0, [])
        spec = to_spec(resolved.space, proposal.genome, "ship")
        assert "gla" not in spec.layout
        assert gguf_file.unsupported(spec) is None
        families.saying(spec)


def test_a_space_that_no_format_can_say_is_refused_with_the_field_in_the_way() -> None:
    mixers = {"gqa": {"head_dim": 32, "scale": 0.3}, "gla": {"head_dim": 32}}
    layout = {"layout": ["gqa", "gla", "gqa", "gla"]}
    changed = recipe(
        space={**held("transformers").space.model_dump(), "mixers": mixers},
        reference=layout,
        initial=[],
    )
    with pytest.raises(RecipeError, match=r"exportable_to=.*none of 60.*nearest is \w+: block"):
        plan.resolve(changed)


def test_what_is_tried_first_must_be_sayable_too() -> None:
    first = held("gguf").model_copy(update={"initial": (("gla", "gqa", "gla", "gqa"),)})
    with pytest.raises(RecipeError, match=r"initial\[0\] is not of space\.exportable_to: gguf"):
        plan.resolve(first)


def test_one_width_for_all_blocks_where_the_budget_is_uniform() -> None:
    budget = {
        "num_params": 600_000,
        "tolerance": 0.3,
        "free": "swiglu.expansion",
        "uniform": True,
    }
    channels = {"swiglu": {"expansion": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]}}
    mixers = {"short_conv": {"kernel": 3}, "gqa": {"head_dim": 32}}
    resolved = plan.resolve(
        held("transformers", budget=budget, channel_mixers=channels, mixers=mixers)
    )
    for number in range(1, 6):
        genome = resolved.strategy.ask(number, 0, []).genome
        spec = to_spec(resolved.space, genome, "ship")
        assert len({str(block.channel_mixer) for block in spec.blocks}) == 1
