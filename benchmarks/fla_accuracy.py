"""How right flash-linear-attention's GLA and KDA kernels are, and ours, against float64.

    python benchmarks/fla_accuracy.py gla|kda [--place 0.5]

Its autotuner may pick any of a kernel's configurations: `--place` says which one runs, from the
first (0) to the last (1). Prints the largest error of outputs, final state and gradients, relative
to the norm, and of what; one line for each precision, decay and shape.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources

from archloop.blocks.ops import delta_rule, linear_attention

DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.zeros_like,
    "mild": lambda x: F.logsigmoid(x) / 16,
    "plain": F.logsigmoid,
    "to 40": lambda x: 10 * F.logsigmoid(x),
    "resets": lambda x: torch.where(x > 1.9, -1e5, F.logsigmoid(x) / 16),
    "thousands": lambda x: 4000 * F.logsigmoid(x - 2),
}
USUAL = (2, 4, 300, 64, 128)
SHAPES = {
    "mild": [USUAL, (1, 4, 1, 64, 128), (1, 4, 4097, 64, 128), (2, 4, 300, 64, 64)],
    "plain": [USUAL, (2, 2, 130, 24, 40), (2, 4, 300, 128, 128)],
}
"""Batch, heads, tokens, key and value widths; of other decays the usual one."""
NAMES = ["outputs", "final", "dq", "dk", "dv", "dg", "dinitial", "dbeta"]

Pass = Callable[..., tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", choices=["gla", "kda"])
    parser.add_argument("--place", type=float, default=0.0)
    options = parser.parse_args()
    fix_configurations(options.place)
    theirs: Pass = fla_gla if options.kernels == "gla" else fla_kda
    ours: Pass = own_gla if options.kernels == "gla" else own_kda
    for dtype in (torch.bfloat16, torch.float32):
        for decay in DECAYS:
            for shape in SHAPES.get(decay, [USUAL]):
                inputs = leaves(shape, decay, dtype, options.kernels == "kda")
                exact = results(ours, [x.double() for x in inputs])
                for label, run in (("fla", theirs), ("own", ours)):
                    try:
                        error = worst(results(run, inputs), exact)
                    except OutOfResources as reason:  # this configuration does not fit the card
                        error = str(reason)
                    print(f"{label} {dtype} {decay:9} {shape} {error}", flush=True)


def fix_configurations(place: float) -> None:
    """One configuration of each kernel, so that nothing is tuned."""
    prune = Autotuner.prune_configs

    def one(self, arguments):
        left = list(prune(self, arguments))
        return [left[int(place * (len(left) - 1))]]

    Autotuner.prune_configs = one


def leaves(shape: tuple[int, ...], decay: str, dtype: torch.dtype, delta: bool) -> list[Tensor]:
    torch.manual_seed(0)
    batch, heads, time, keys, values = shape

    def by_token(*widths: int) -> Tensor:
        return torch.randn(batch, time, heads, *widths, device="cuda").transpose(1, 2)

    q, k = by_token(keys), by_token(keys)
    if delta:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    g = DECAYS[decay](by_token(keys))
    initial = torch.randn(batch, heads, keys, values, device="cuda")
    parts = [q.to(dtype), k.to(dtype), by_token(values).to(dtype), g, initial]
    return [*parts, by_token().sigmoid().to(dtype)] if delta else parts


def results(run: Pass, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, final state and gradients."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = run(*inputs)
    torch.manual_seed(1)
    weights = [torch.randn(y.shape, device=y.device) for y in outputs]
    # Weights of outputs are what the precision under test can hold, for the exact results too.
    weights[0] = weights[0].bfloat16()
    gradients = torch.autograd.grad(
        outputs, inputs, [w.to(y.dtype) for w, y in zip(weights, outputs, strict=True)]
    )
    return [*(y.detach() for y in outputs), *gradients]


def worst(found: list[Tensor], exact: list[Tensor]) -> str:
    errors = {}
    for name, a, b in zip(NAMES, found, exact, strict=False):
        scale = b.norm().clamp(min=1e-6 * b.numel() ** 0.5)
        errors[name] = float(((a.double() - b).norm() / scale).nan_to_num(float("inf")))
    name = max(errors, key=errors.__getitem__)
    return f"{errors[name]:.1e} ({name})"


def fla_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    from fla.ops.gla import chunk_gla

    parts = (x.transpose(1, 2) for x in (q, k, v, g))
    o, final = chunk_gla(*parts, scale=1.0, initial_state=initial, output_final_state=True)
    return o.transpose(1, 2), final


def fla_kda(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    from fla.ops.kda import chunk_kda

    parts = (x.transpose(1, 2) for x in (q, k, v, g, beta))
    o, final = chunk_kda(*parts, scale=1.0, initial_state=initial, output_final_state=True)
    return o.transpose(1, 2), final


def own_gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    before, final = linear_attention.states(k, v, g, initial)
    return linear_attention.read(q, k, v, g, before), final


def own_kda(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    corrected, before, final = delta_rule.corrected(k, v, beta, g, initial)
    return delta_rule.read(q, k, corrected, g, before), final


if __name__ == "__main__":
    main()
