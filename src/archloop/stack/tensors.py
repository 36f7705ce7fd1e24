"""One walk over the tensors of a module, for everything that copies, stores or reads them."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

COMPILED = "_orig_mod"
"""Where `torch.compile` keeps the module that it was given."""


class Leaf(NamedTuple):
    """A parameter or buffer.

    Attributes:
        name: dotted, as it is without compiling.
        tensor: itself, not a copy.
        owner: the module that has it as attribute `attribute`.
        is_saved: False for buffers that no checkpoint holds: constants that are computed again, and
            running counts.
    """

    name: str
    tensor: Tensor
    owner: nn.Module
    attribute: str
    is_saved: bool


def leaves(module: nn.Module) -> Iterator[Leaf]:
    """Every parameter and buffer once; a shared one under its first name."""
    seen: set[int] = set()
    for prefix, owner in module.named_modules():
        for attribute, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name = f"{prefix}.{attribute}".lstrip(".").replace(f"{COMPILED}.", "")
            saved = attribute not in owner._non_persistent_buffers_set
            yield Leaf(name, tensor, owner, attribute, saved)
