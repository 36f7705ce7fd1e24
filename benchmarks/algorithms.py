"""The parallel algorithms of the recurrent mixers against their sequential loops, on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/algorithms.py

Forward, and forward with backward, at T 1,024, each pair in turns. Prints a table and a JSON line.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import delta_rule, linear_attention, selective_scan, ssd
from archloop.blocks.ops.scan import naive_scan, scan
from timing import in_turns

B, T, N, H, F_SCAN, F_SELECT = 2, 1_024, 4, 64, 2_048, 256
"""Batch, time, heads, head width; channels of the diagonal and of the selective scan."""

Call = Callable[[], Tensor]
Pair = tuple[list[Tensor], Call, Call]


def main() -> None:
    torch.manual_seed(0)
    found = {}
    for name, (leaves, fast, loop) in (scans() | matrix_states()).items():
        with torch.no_grad():
            forward = in_turns(fast, loop)
        training = in_turns(_training(fast, leaves), _training(loop, leaves))
        found[name] = row = {
            f"{label}_{what}_ms": 1e3 * value
            for what, pair in (("forward", forward), ("training", training))
            for label, value in zip(("fast", "loop"), pair, strict=True)
        }
        print(f"{name:22}" + "".join(f"{k:>24}{v:9.1f}" for k, v in row.items()), flush=True)
    print(json.dumps({"algorithms": found, "threads": torch.get_num_threads()}))


def scans() -> dict[str, Pair]:
    """Recurrences without matrix states: leaves, parallel form, loop."""
    flat = [torch.rand(B, T, F_SCAN), torch.randn(B, T, F_SCAN)]
    x, dt = torch.randn(B, T, F_SELECT), torch.rand(B, T, F_SELECT)
    select = [x, dt, -torch.rand(F_SELECT, 16), torch.randn(B, T, 16), torch.randn(B, T, 16)]
    return {
        "diagonal scan": (flat, lambda: scan(*flat), lambda: naive_scan(*flat)),
        "selective scan": (
            select,
            lambda: selective_scan.selective_scan(*select)[0],
            lambda: selective_scan.naive_selective_scan(*select)[0],
        ),
    }


def matrix_states() -> dict[str, Pair]:
    """Linear attention and the delta rule, with a decay per head and per key channel."""
    q, k, v = (torch.randn(B, N, T, H) for _ in range(3))
    per_key = -F.softplus(torch.randn(B, N, T, H)) / 16
    unit, beta = F.normalize(k, dim=-1), torch.rand(B, N, T)
    leaves = [q, k, v, per_key]

    def chunked(module: Any, gate: Tensor) -> Call:
        return lambda: module.read(q, k, v, gate, module.states(k, v, gate, None)[0])

    def delta(gate: Tensor) -> Pair:
        return (
            leaves,
            lambda: delta_rule_chunked(q, unit, v, beta, gate),
            lambda: delta_rule.naive(q, unit, v, beta, gate, None)[0],
        )

    per_head = per_key[..., 0]
    return {
        "SSD": (leaves, chunked(ssd, per_head), lambda: ssd.naive(q, k, v, per_head, None)[0]),
        "delta rule": delta(per_key[..., :1]),
        "delta rule, vector": delta(per_key),
        "GLA": (
            leaves,
            chunked(linear_attention, per_key),
            lambda: linear_attention.naive(q, k, v, per_key, None)[0],
        ),
    }


def delta_rule_chunked(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
    corrected, before, _ = delta_rule.corrected(k, v, beta, g, None)
    return delta_rule.read(q, k, corrected, g, before)


def _training(run: Call, leaves: list[Tensor]) -> Callable[[], None]:
    def train() -> None:
        for leaf in leaves:
            leaf.requires_grad_().grad = None
        run().sum().backward()

    return train


if __name__ == "__main__":
    main()
