"""From a recipe's section to a space that some genome meets."""

import numpy as np

from archloop.errors import UserError
from archloop.space.budget import OutOfReachError
from archloop.space.config import SpaceConfig
from archloop.space.space import Space
from archloop.space.variation import sample


def open_space(config: SpaceConfig) -> Space:
    """A space whose rules and budget can be met.

    Raises:
        UserError: as `Space.from_config`, or no genome keeps the rules; names key, value and
            remedy.
    """
    space = Space.from_config(config)
    if config.budget is None:
        return space
    try:
        sample(space, np.random.default_rng(0))
    except OutOfReachError as error:
        raise UserError(
            f"space.budget.num_params={config.budget.num_params:,}: no spec meets it "
            f"({error}); change the number, the widths or the values of {config.budget.free}"
        ) from error
    return space
