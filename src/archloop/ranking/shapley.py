"""Shapley values: how a worth that a set of players reaches together is shared between them.

A player's share is what it adds to those that came before it, averaged over all orders in which
they can come (Shapley 1953). All orders are taken where players are few; else a sample of them.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Player = TypeVar("Player", bound=Hashable)
Floats = NDArray[np.float64]

MOST_EXACT = 8
"""Players of whom all coalitions are asked."""
NUM_ORDERS = 400


def shapley(
    players: Sequence[Player], worth: Callable[[frozenset[Player]], Floats], seed: int = 0
) -> dict[Player, Floats]:
    """Each player's share.

    Args:
        players: all of them, each once.
        worth: of a coalition, as an array: one number for each draw of what is uncertain. Asked
            once a coalition.
        seed: of the orders that are drawn where there are many players.
    """
    known: dict[frozenset[Player], Floats] = {}

    def of(coalition: frozenset[Player]) -> Floats:
        if coalition not in known:
            known[coalition] = worth(coalition)
        return known[coalition]

    shares = {player: np.zeros_like(of(frozenset())) for player in players}
    if len(players) <= MOST_EXACT:
        for player in players:
            others = [other for other in players if other != player]
            for size in range(len(others) + 1):
                chance = 1 / (len(players) * math.comb(len(others), size))
                for before in itertools.combinations(others, size):
                    coalition = frozenset(before)
                    added = of(coalition | {player}) - of(coalition)
                    shares[player] = shares[player] + chance * added
        return shares
    rng = np.random.default_rng(seed)
    for _ in range(NUM_ORDERS):
        coalition = frozenset()
        for index in rng.permutation(len(players)):
            player = players[index]
            added = of(coalition | {player}) - of(coalition)
            shares[player] = shares[player] + added / NUM_ORDERS
            coalition |= {player}
    return shares
