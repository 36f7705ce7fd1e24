"""What a stack takes at each context, by formula alone: the estimates of a comparison of designs.

Nothing here is measured. State is in bfloat16, recurrent state in float32; FLOPs are at batch 1,
one multiply-accumulate counting as two.
"""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from archloop.stack import cost
from archloop.stack.spec import StackSpec


class Estimate(BaseModel):
    """At one context.

    Attributes:
        state_bytes: of one sequence of so many tokens.
        prefill_flops: to take so many tokens in at once.
        decode_flops: of one step after so many tokens.
    """

    model_config = ConfigDict(frozen=True)

    state_bytes: int
    prefill_flops: int
    decode_flops: int


class Footprint(BaseModel):
    """Of one stack.

    Attributes:
        num_active_params: parameters that act on one token.
        layout: mixers by block.
        estimated: by context.
    """

    model_config = ConfigDict(frozen=True)

    d_model: int
    num_params: int
    num_active_params: int
    layout: list[str]
    estimated: dict[int, Estimate]


def footprint(spec: StackSpec, contexts: Iterable[int]) -> Footprint:
    """What a stack takes at each of some contexts, in tokens."""
    return Footprint(
        d_model=spec.d_model,
        num_params=cost.num_params(spec),
        num_active_params=cost.num_active_params(spec),
        layout=spec.layout,
        estimated={
            context: Estimate(
                state_bytes=cost.state_bytes(spec, context),
                prefill_flops=cost.prefill_flops(spec, context),
                decode_flops=cost.decode_flops(spec, context),
            )
            for context in contexts
        },
    )
