"""How lowered pieces round in their products, kept beside each when it is lowered.

Telling which constants of an artifact are which parameters of a decoder takes seconds, and the
pieces of a stack hold the same integers wherever they stand.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from archloop.runtimes.pieces import Lowered, Placed
from archloop.runtimes.rounding import Product, Products, Rounding
from archloop.stack import weights

FILE = "products.safetensors"
_HOW = "how"


def keep(products: Products, home: Path) -> None:
    """Write a piece's products into its folder."""
    how = {name: [each.inputs is not None, each.in_lookups] for name, each in products.items()}
    rounded = {name: each.weight for name, each in products.items()}
    weights.write(rounded, home / FILE, {_HOW: json.dumps(how)})


def joined(pieces: Sequence[Lowered], inputs: Rounding) -> dict[str, Product]:
    """The products of a stack of pieces, by the names of its decoder's parameters.

    Args:
        pieces: in order.
        inputs: what the engine makes of the other factor, where it rounds that.
    """
    known: dict[Path, dict[str, Product]] = {}
    found: dict[str, Product] = {}
    for placed, home, _ in pieces:
        if home not in known:
            known[home] = _read(home, inputs)
        for name, product in known[home].items():
            whole = _in_stack(name, placed)
            before = found.get(whole, product)
            # An embedding that is the head too is looked up in one piece, multiplied by in another.
            found[whole] = Product(
                product.weight,
                product.inputs or before.inputs,
                product.in_lookups or before.in_lookups,
            )
    return found


def _read(home: Path, inputs: Rounding) -> dict[str, Product]:
    with ExitStack() as stack:
        stored = weights.Stored(home / FILE, stack)
        return {
            name: Product(stored.tensor(name), inputs if rounds else None, looked_up)
            for name, (rounds, looked_up) in json.loads(stored.header[_HOW]).items()
        }


def _in_stack(name: str, placed: Placed) -> str:
    """A parameter's name in the stack; one that blocks share is its first block's."""
    own = "blocks.0."
    return f"blocks.{placed.weights}.{name.removeprefix(own)}" if name.startswith(own) else name
