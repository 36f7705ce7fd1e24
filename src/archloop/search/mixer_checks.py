"""Every mixer that a study may train is checked once, before anything is measured or trained.

A mixer that reads later tokens when it is trained, and cannot when it decodes, would win any search
on a score that nobody can have. Such a mixer is refused by name here (`blocks.checks`).
"""

from collections.abc import Iterator
from typing import Any

from archloop import registry
from archloop.blocks import checks
from archloop.space.families import Family
from archloop.space.space import Space
from archloop.stack import cost
from archloop.stack.spec import StackSpec


def check_mixers(space: Space, reference: StackSpec) -> None:
    """Check each family of a space, and the reference's mixers, at the width that is trained.

    Args:
        space: its families are checked at the proxy's width.
        reference: the reference preset's proxy spec; it may have mixers that the space has not.

    Raises:
        ContractError: names the mixer, its settings and what it breaks.
    """
    for name in space.mixers + space.channel_mixers:
        for config in _configs(space.families[name]):
            checks.check(config, space.config.proxy.d_model)
    for _, _, mixer in cost.mixers(reference):
        checks.check(cost.mixer_config(mixer), reference.d_model)
    for block in reference.blocks:
        if block.channel_mixer is not None:
            checks.check(cost.channel_config(block.channel_mixer), reference.d_model)


def _configs(family: Family) -> Iterator[Any]:
    """The first value of each gene and, of a plug-in, every other value of one gene at a time.

    The library's own mixers are tested with every value of every gene before a release.
    """
    first = {gene: values[0] for gene, values in family.genes.items()}
    yield family.config(first, "proxy")
    if family.name not in registry.shipped(family.section):
        for gene, values in family.genes.items():
            yield from (family.config({**first, gene: v}, "proxy") for v in values[1:])
