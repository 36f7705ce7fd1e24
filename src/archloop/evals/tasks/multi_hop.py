"""Multi-hop reasoning: the answer is several statements away, in an order that does not help.

`kin` follows a chain of mothers, `boxes` follows swaps of what boxes hold, `assign` follows
variables that take each other's values (RULER's variable tracking, arXiv 2404.06654, as a choice),
`order` finds the tallest of several who are compared in pairs, `coin` counts how often a coin was
turned over, and `brackets` closes what was opened (a Dyck language).
"""

from collections.abc import Callable
from string import ascii_uppercase
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from archloop.evals.base import Split
from archloop.evals.questions import drawn
from archloop.evals.text_tasks import Choice, ChoiceTask
from archloop.evals.words import NAMES, THINGS

Variant = Literal["kin", "boxes", "assign", "order", "coin", "brackets"]
NUM_CHAINS = 4
"""Of variables, whose values are the choices."""


class MultiHop(ChoiceTask):
    """Chains of statements."""

    version = 3
    category = "reasoning"

    class Config(BaseModel):
        """Which statements, and how many the answer is away."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        variant: Variant = "kin"
        num_hops: int = Field(default=2, ge=1, le=6)

        @model_validator(mode="after")
        def _check_letters(self) -> Self:
            most = len(ascii_uppercase) // NUM_CHAINS - 1
            if self.variant == "assign" and self.num_hops > most:
                raise ValueError(
                    f"num_hops={self.num_hops}: variant assign has letters enough for {most}; "
                    "give fewer"
                )
            return self

    config: Config

    @property
    def chance(self) -> float:
        """One of four, or of two sides of a coin."""
        return 0.5 if self.config.variant == "coin" else 0.25

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        variants: dict[Variant, Callable[[np.random.Generator], Choice]] = {
            "kin": self._kin,
            "boxes": self._boxes,
            "assign": self._assign,
            "order": self._order,
            "coin": self._coin,
            "brackets": self._brackets,
        }
        return drawn(variants[self.config.variant], split, seed, num_examples)

    def _kin(self, rng: np.random.Generator) -> Choice:
        hops = self.config.num_hops
        # With one chain the answer would be the only name whose mother is not told. With two there
        # are two such names, the ends of the chains. Both are among the choices, and so are their
        # daughters: which of them is right is told by the name that is asked about alone.
        names = [str(name) for name in rng.permutation(NAMES)[: 2 * (hops + 1)]]
        chains = (names[: hops + 1], names[hops + 1 :])
        said = [
            f"The mother of {chain[i]} is {chain[i + 1]}." for chain in chains for i in range(hops)
        ]
        context = " ".join(said[i] for i in rng.permutation(len(said)))
        asked = "the mother of " * hops + chains[0][0]
        (*_, before, right), (*_, before_end, end) = chains
        return _choice(rng, f"{context} So {asked} is", right, [end, before, before_end])

    def _boxes(self, rng: np.random.Generator) -> Choice:
        held = [str(thing) for thing in rng.permutation(THINGS)[:4]]
        said = [f"Box {i + 1} holds the {thing}." for i, thing in enumerate(held)]
        for _ in range(self.config.num_hops):
            one, other = (int(i) for i in rng.permutation(4)[:2])
            held[one], held[other] = held[other], held[one]
            said.append(f"Boxes {one + 1} and {other + 1} swap what they hold.")
        asked = int(rng.integers(4))
        others = [thing for i, thing in enumerate(held) if i != asked]
        context = " ".join(said) + f" Box {asked + 1} now holds the"
        return _choice(rng, context, held[asked], others)

    def _assign(self, rng: np.random.Generator) -> Choice:
        hops = self.config.num_hops
        letters = [str(x) for x in rng.permutation(list(ascii_uppercase))]
        values = [str(n) for n in rng.permutation(90)[:NUM_CHAINS] + 10]
        said = []
        for chain, value in enumerate(values):
            names = letters[chain * (hops + 1) : (chain + 1) * (hops + 1)]
            said.append(f"{names[0]} = {value};")
            said += [f"{names[i + 1]} = {names[i]};" for i in range(hops)]
        # Statements stay in order within a chain, and chains are woven into each other.
        order = np.argsort(
            np.arange(len(said)) % (hops + 1) + rng.random(len(said)) * 0.99, kind="stable"
        )
        context = " ".join(said[i] for i in order) + f" {letters[hops]} ="
        return _choice(rng, context, values[0], values[1:])

    def _order(self, rng: np.random.Generator) -> Choice:
        names = [str(name) for name in rng.permutation(NAMES)[: max(4, self.config.num_hops + 1)]]
        said = [f"{names[i]} is taller than {names[i + 1]}." for i in range(len(names) - 1)]
        context = " ".join(said[i] for i in rng.permutation(len(said)))
        others = [str(name) for name in rng.permutation(names[1:])]
        return _choice(rng, f"{context} The tallest of them is", names[0], others)

    def _coin(self, rng: np.random.Generator) -> Choice:
        names = [str(name) for name in rng.permutation(NAMES)[: self.config.num_hops + 4]]
        turns = rng.random(len(names)) < 0.5
        said = [
            f"{name} turns it over." if turn else f"{name} leaves it as it lies."
            for name, turn in zip(names, turns, strict=True)
        ]
        context = f"A coin shows heads. {' '.join(said)} Now the coin shows"
        return Choice(context, (" heads.", " tails."), int(turns.sum()) % 2)

    def _brackets(self, rng: np.random.Generator) -> Choice:
        pairs = ("()", "[]", "{}", "<>")
        text = ""
        is_open: list[str] = []
        for _ in range(8 + 4 * self.config.num_hops):
            if is_open and rng.random() < 0.45:
                text += f" {is_open.pop()[1]}"
            else:
                is_open.append(pairs[rng.integers(4)])
                text += f" {is_open[-1][0]}"
        if not is_open:
            is_open.append(pairs[rng.integers(4)])
            text += f" {is_open[-1][0]}"
        right = is_open[-1][1]
        others = [pair[1] for pair in pairs if pair[1] != right]
        return _choice(rng, f"Close the brackets in order:{text}", right, others, end="")


def _choice(
    rng: np.random.Generator, context: str, right: str, others: list[str], end: str = "."
) -> Choice:
    """Four choices, the right one at any place."""
    chosen = [right, *others[:3]]
    order = rng.permutation(4)
    choices = tuple(f" {chosen[i]}{end}" for i in order)
    return Choice(context, choices, int(np.flatnonzero(order == 0)[0]))
