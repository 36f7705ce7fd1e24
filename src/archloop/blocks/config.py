"""Configs: the hyper-parameters of a mixer as frozen data that knows its genes and its costs.

Search reads, varies and counts configs; a module is built only to be trained or measured.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict

from archloop.blocks.state import Held
from archloop.errors import UserError


@dataclass(frozen=True)
class Gene:
    """Marks a config field as searchable: ``kernel: Annotated[int, Gene((3, 5, 7))] = 3``.

    Attributes:
        values: usual ones, which messages name; a recipe lists its own.
    """

    values: tuple[Any, ...]


class Config(BaseModel):
    """Hyper-parameters of a mixer: frozen data that knows its genes and its costs.

    Sizes follow from `d_model`, which is not part of the config, so that one config builds at
    every width. FLOPs count one multiply-accumulate as two, at batch 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    owner: ClassVar[Any]
    through_sizes: ClassVar[frozenset[str]] = frozenset()
    """Fields that act on the module through its `sizes` alone, such as a ratio to the width."""
    unshared: ClassVar[frozenset[str]] = frozenset()
    """Parts, by their names in `param_terms`, that stay a block's own where it has the weights of
    another: submodules of the same names."""

    @classmethod
    def genes(cls) -> dict[str, Gene]:
        """The searchable fields, by name."""
        found = {}
        for name, field in cls.model_fields.items():
            for mark in field.metadata:
                if isinstance(mark, Gene):
                    found[name] = mark
        return found

    @abstractmethod
    def sizes(self, d_model: int) -> Mapping[str, object]:
        """The sizes that follow from a width, for building the module and counting its costs.

        A config answers with a `TypedDict` of its own, so that a wrong name is found by the types.

        Raises:
            UserError: the config cannot be built at this width; names field, value and remedy.
        """

    def signature(self, d_model: int) -> tuple[tuple[str, Any], ...]:
        """What tells modules of a width apart: two configs coincide if their signatures are equal.

        Sizes, and every setting that acts in another way too: an expansion of 2.0 and of 2.01 may
        round to one width, a kernel of 3 and of 5 never.

        Raises:
            UserError: as `sizes`.
        """
        settings = self.model_dump(exclude=set(self.through_sizes))
        return tuple(sorted({**settings, **self.sizes(d_model)}.items()))

    def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
        """Parameters of each part of the module, by the part's name; buffers are no parameters.

        Args:
            d_model: model width.
            consumer: the module takes its features from an earlier block (`state_from`).
        """
        return {}

    def num_params(self, d_model: int, *, consumer: bool = False) -> int:
        """Parameters of the module. Arguments as `param_terms`, of which it is the sum."""
        return sum(self.param_terms(d_model, consumer=consumer).values())

    def num_unshared_params(self, d_model: int) -> int:
        """Parameters that remain where a block has the weights of another."""
        terms = self.param_terms(d_model)
        return sum(terms[name] for name in self.unshared if name in terms)

    @abstractmethod
    def flop_terms(
        self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
    ) -> dict[str, int]:
        """FLOPs of each part of a prefill: a matrix's under its name, others' under theirs.

        Args:
            d_model: model width.
            num_tokens: processed at once.
            context: tokens that are in the state before them.
            consumer: as in `param_terms`.
        """

    def step_flop_terms(
        self, d_model: int, context: int, *, consumer: bool = False
    ) -> dict[str, int]:
        """FLOPs of each part of a decode step; default: those of a prefill of one token."""
        return self.flop_terms(d_model, 1, context, consumer=consumer)

    def prefill_flops(
        self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
    ) -> int:
        """FLOPs of a prefill. Arguments as `flop_terms`, of which it is the sum."""
        return sum(self.flop_terms(d_model, num_tokens, context, consumer=consumer).values())

    def decode_flops(self, d_model: int, context: int, *, consumer: bool = False) -> int:
        """FLOPs of one decode step after `context` tokens are in the state."""
        return sum(self.step_flop_terms(d_model, context, consumer=consumer).values())

    def check(self, d_model: int, *, consumer: bool = False) -> None:
        """Refuse what `build` could not make.

        Raises:
            UserError: as `sizes`, or the mixer cannot be a consumer.
        """
        self.sizes(d_model)
        if consumer and not getattr(self.owner, "shareable", False):
            raise UserError(
                f"state_from: {self.owner.__name__} does not share its features; allowed: None"
            )

    def at_width(self, d_model: int, new: int) -> Self:
        """What is to width `new` what this is to `d_model`: numbers of heads follow the width.

        Widths of heads, kernels, windows and states stay. As it stands, of a mixer whose settings
        are all ratios to the width.
        """
        return self

    def build(
        self, d_model: int, block_index: int = 0, num_blocks: int = 1, *, consumer: bool = False
    ) -> Any:
        """Make the module.

        Raises:
            UserError: as `check`.
            ValueError: no such width or block.
        """
        if d_model < 1:
            raise ValueError(f"d_model={d_model} must be at least 1")
        if not 0 <= block_index < num_blocks:
            raise ValueError(
                f"block_index={block_index} is no block of num_blocks={num_blocks}; "
                f"allowed: 0 to {num_blocks - 1}"
            )
        self.check(d_model, consumer=consumer)
        return self.owner(
            self, d_model, block_index=block_index, num_blocks=num_blocks, consumer=consumer
        )


def matrix_flops(
    params: Mapping[str, int], names: Iterable[str], num_tokens: int
) -> dict[str, int]:
    """FLOPs of the products with matrices that each token meets once.

    Args:
        params: parameters by part (`Config.param_terms`).
        names: of the matrices among them; those that are not there count for nothing.
        num_tokens: that meet them.
    """
    return {name: 2 * params[name] * num_tokens for name in names if name in params}


class MixerConfig(Config):
    """Config of a sequence mixer, which besides parameters and FLOPs has a state."""

    @abstractmethod
    def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
        """The tensors of state, by name, of a sequence with room for `context` tokens."""

    def input_width(self, d_model: int) -> int:
        """Width of what the mixer reads; the model's, but for mixers that read the embedding too.

        Twice as wide, its input is the residual stream and behind it the token's embedding.
        """
        return d_model

    def reach(self, d_model: int) -> int | None:
        """How many tokens back an output may depend on; None, the default: all of them."""
        return None

    def is_global(self, d_model: int) -> bool:
        """Whether every earlier token can be read exactly: the state has a slot for each."""
        return any(held.retention == "cache" for held in self.state_layout(d_model, 1).values())

    def state_bytes(self, d_model: int, context: int, dtype: torch.dtype) -> int:
        """Bytes of state for one sequence of `context` tokens; equals `State.nbytes`."""
        return sum(
            math.prod(tensor.shape) * tensor.dtype(dtype).itemsize
            for tensor in self.state_layout(d_model, context).values()
        )


class ChannelConfig(Config):
    """Config of a channel mixer: costs do not depend on the context."""

    def num_active_params(self, d_model: int) -> int:
        """Parameters that act on one token."""
        return self.num_params(d_model)

    def widened(self, d_model: int, factor: float, more: int = 0) -> Self:
        """Hidden widths times `factor` and `more` units wider; as it stands if there are none."""
        return self

    def with_experts(self, most: int) -> Self:
        """At most so many experts, the same share of which acts; as it stands if it has none."""
        return self
