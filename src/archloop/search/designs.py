"""A study of given designs at one budget: measured beside the first, trained, told apart or not.

Nothing is searched. Each design is a candidate without a genome; all rules of a study hold, among
them that quality ranks nothing where trainings are not reliable enough.
"""

from collections.abc import Callable, Mapping

from archloop.search import plan
from archloop.search.recipe.recipe import Recipe
from archloop.stack.spec import StackSpec


def of_designs(
    recipe: Recipe,
    name: str,
    designs: Mapping[str, StackSpec],
    proxied: Callable[[str, int], StackSpec],
    trainings: int,
) -> Recipe:
    """The recipe of that study: text, tasks, trainings and targets as in the one that is given.

    Args:
        recipe: whose space and budgets play no part.
        name: of the study.
        designs: by name, as they are measured; the first is the reference.
        proxied: what is trained of a design, for its name and a vocabulary.
        trainings: of each design, from different seeds.

    Raises:
        RecipeError: it cannot be run so.
        UserError: a design has no such proxy.
    """
    vocab_size = plan.resolve(recipe).vocab_size
    specs = [
        {
            "name": each,
            "spec": spec.model_dump(mode="json"),
            "proxy": proxied(each, vocab_size).model_dump(mode="json"),
        }
        for each, spec in designs.items()
    ]
    return recipe.varied(
        name=name,
        reference={"spec": specs[0]["spec"]},
        specs=specs,
        initial=[],
        num_trials=len(specs),
        seeds=trainings,
        budgets=[],
        replicates=0,
        max_hours=None,
        until_still=None,
        strategy={"name": "random"},
    )
