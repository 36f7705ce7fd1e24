"""Every sequence mixer's speed, beside SDPA attention and flash-linear-attention's GLA layer.

    python benchmarks/mixers.py [--mixers mamba s5] [--lengths 1024 8192] [--tokens 65536]

For each mixer and length, at d_model 512: the first call in this process, forward, forward and
backward, prefill and decode at batch 1, peak memory of training; the time at the longest length
times four over that at the longest, same batch; and the largest error of outputs and gradients
against the same module in float64, which takes the plain PyTorch forms. Prints a table and one JSON
line.

On a GPU each mixer is first called in a process of its own with an empty kernel cache, several
processes at once: what a search pays on a new machine, and for its next new shape. fla's layer is
timed first, so that every row shows its ratio; its kernels tune themselves over all their
configurations, which takes minutes once (`TRITON_CACHE_AUTOTUNING=1` keeps what they found). On a
CPU the parallel algorithms are also timed against their loops.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from archloop import registry
from archloop.blocks.ops import delta_rule, linear_attention, selective_scan, ssd
from archloop.blocks.ops.scan import scan, scan_reference

D_MODEL = 512
PEER = "fla_gla"
COLUMNS = (
    "first_call_s",
    "forward_ms",
    "forward_backward_ms",
    "ratio_to_peer",
    "prefill_tok_per_s",
    "decode_tok_per_s",
    "peak_memory_gib",
)
FRESH_AT_ONCE = 6
"""Processes that make their first calls side by side."""
SLOW_S = 0.5
"""A run this long is timed once after its warm-up, and its growth shown at the shortest length."""


def main() -> None:
    options = _options()
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    tokens = options.tokens or (65_536 if on_gpu else 4_096)
    lengths = options.lengths or ([1_024, 8_192] if on_gpu else [1_024])
    names = options.mixers or registry.names("mixers")
    if options.first_call:
        print(json.dumps(first_call(options.first_call, lengths, tokens, device, dtype)))
        return
    results: dict[str, Any] = {"device": _device_name(), "tokens": tokens, "mixers": {}}
    print(f"{results['device']}, {dtype}, d_model {D_MODEL}, {tokens} tokens a pass")
    if on_gpu:
        results["fresh"] = fresh_first_calls(names)
    print(f"{'mixer':22}{'T':>7}" + "".join(f"{c:>21}" for c in COLUMNS), flush=True)
    for name in [*([PEER] if on_gpu and not options.mixers else []), *names]:
        results["mixers"][name] = rows = {}
        for length in lengths:
            rows[length] = _guarded(measure, name, length, max(1, tokens // length), device, dtype)
            _print_row(name, length, rows[length], results["mixers"].get(PEER, {}))
        if on_gpu and name != PEER:
            rows.update(_guarded(check, name, device))
            slow = rows[max(lengths)].get("forward_backward_ms", 0) > 1e3 * SLOW_S
            at = min(lengths) if slow else max(lengths)
            rows.update(_guarded(growth, name, at, device, dtype))
            print(f"{'':22}{ ({k: v for k, v in rows.items() if isinstance(k, str)}) }", flush=True)
    if not on_gpu:
        results["algorithms"] = algorithms()
    print(json.dumps(results))


def fresh_first_calls(names: list[str]) -> dict[str, Any]:
    """`first_call` of each mixer in a process of its own, with an empty cache of kernels."""

    def run(name: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "--first-call", name]
            environment = os.environ | {"TRITON_CACHE_DIR": cache}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1][:300]}
        return json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(FRESH_AT_ONCE) as pool:
        found = dict(zip(names, pool.map(run, names), strict=True))
    for name, row in found.items():
        print(f"{name:22} new process: {row}", flush=True)
    return found


def first_call(
    name: str, lengths: list[int], tokens: int, device: str, dtype: torch.dtype
) -> dict[str, float]:
    """Seconds of a first forward and backward pass, and of the first at an odd length after it."""
    layer = make(name).to(device, dtype)
    found = {}
    for label, length in (("first_call_s", max(lengths)), ("odd_length_s", min(lengths) - 24)):
        x_BTD = torch.randn(max(1, tokens // length), length, D_MODEL, device=device, dtype=dtype)
        (x_BTD.sum() + x_BTD[0] @ x_BTD[0].mT).sum().item()

        def train(x_BTD: Tensor = x_BTD) -> None:
            y_BTD = output(layer, x_BTD.requires_grad_())
            y_BTD.backward(torch.ones_like(y_BTD))

        found[label] = seconds(train)
    return found


def measure(
    name: str, length: int, batch: int, device: str, dtype: torch.dtype
) -> dict[str, float]:
    torch.manual_seed(0)
    layer = make(name).to(device, dtype)
    x_BTD = torch.randn(batch, length, D_MODEL, device=device, dtype=dtype, requires_grad=True)
    grad_BTD = torch.randn_like(x_BTD)

    def train() -> None:
        output(layer, x_BTD).backward(grad_BTD)

    def forward() -> None:
        with torch.no_grad():
            output(layer, x_BTD)

    row = {"first_call_s": seconds(train)}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row["forward_backward_ms"] = 1e3 * median_seconds(train)
    if device == "cuda":
        row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    row["forward_ms"] = 1e3 * median_seconds(forward)
    return row if name == PEER else row | inference(layer, x_BTD[:1].detach())


def inference(layer: nn.Module, x_1TD: Tensor) -> dict[str, float]:
    """Tokens per second at batch 1: all at once, then one by one."""
    length = x_1TD.shape[1]
    state = layer.init_state(1, 2 * length)

    def prefill() -> None:
        state.reset()
        layer(x_1TD, state)

    prefill_s = median_seconds(prefill)
    prefill()
    position_B = torch.full((1,), length, device=x_1TD.device)

    def decode() -> None:
        for t in range(16):
            layer.step(x_1TD[:, t], state, positions_B=position_B + t)

    decode_s = seconds(decode) if length < 64 else median_seconds(decode, repeats=3)
    return {"prefill_tok_per_s": length / prefill_s, "decode_tok_per_s": 16 / decode_s}


def check(name: str, device: str) -> dict[str, float]:
    """Largest error, relative to the largest value, of float32 against float64."""
    torch.manual_seed(1)
    layer = make(name).to(device)
    x_BTD = torch.randn(2, 300, D_MODEL, device=device)
    grad_BTD = torch.randn_like(x_BTD)
    fast, plain = (
        _outputs_and_gradients(module, x_BTD.to(dtype), grad_BTD.to(dtype))
        for module, dtype in (
            (copy.deepcopy(layer), torch.float32),
            (copy.deepcopy(layer).double(), torch.float64),
        )
    )
    errors = [
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-9))
        for a, b in zip(fast, plain, strict=True)
    ]
    return {"output_error": errors[0], "gradient_error": max(errors[1:])}


def growth(name: str, length: int, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Training time at four times the length, over that at the length; the same batch."""
    layer = make(name).to(device, dtype)
    times = []
    for steps in (length, 4 * length):
        x_BTD = torch.randn(4, steps, D_MODEL, device=device, dtype=dtype, requires_grad=True)

        def train(x_BTD: Tensor = x_BTD) -> None:
            y_BTD = output(layer, x_BTD)
            y_BTD.backward(torch.ones_like(y_BTD))

        if not times:
            train()
        times.append(median_seconds(train, repeats=3))
    return {"growth_4x": times[1] / times[0]}


def algorithms() -> dict[str, dict[str, float]]:
    """Parallel forms against their sequential loops, forward and forward with backward."""
    torch.manual_seed(0)
    flat = {"a": torch.rand(2, 1024, 2048), "b": torch.randn(2, 1024, 2048)}
    heads = [torch.randn(2, 4, 1024, 64) for _ in range(3)]
    per_key = -torch.nn.functional.softplus(torch.randn(2, 4, 1024, 64)) / 16
    unit = torch.nn.functional.normalize(heads[1], dim=-1)
    beta = torch.rand(2, 4, 1024)
    x, dt = torch.randn(2, 1024, 256), torch.rand(2, 1024, 256)
    select = [x, dt, -torch.rand(256, 16), torch.randn(2, 1024, 16), torch.randn(2, 1024, 16)]

    def chunked(module: Any, gate: Tensor) -> Callable[[], Tensor]:
        q, k, v = heads
        return lambda: module.read(q, k, v, gate, module.states(k, v, gate, None)[0])

    def delta(gate: Tensor) -> tuple[list[Tensor], Callable[[], Tensor], Callable[[], Tensor]]:
        q, _, v = heads
        return (
            [*heads, per_key],
            lambda: delta_rule_chunked(q, unit, v, beta, gate),
            lambda: delta_rule.recurrent(q, unit, v, beta, gate, None)[0],
        )

    pairs: dict[str, tuple[list[Tensor], Callable[[], Tensor], Callable[[], Tensor]]] = {
        "diagonal scan": (
            list(flat.values()),
            lambda: scan(**{f"{k}_BTF": v for k, v in flat.items()}),
            lambda: scan_reference(*flat.values()),
        ),
        "selective scan": (
            select,
            lambda: selective_scan.selective_scan(*select)[0],
            lambda: selective_scan.selective_scan_reference(*select)[0],
        ),
        "SSD": (
            [*heads, per_key],
            chunked(ssd, per_key[..., 0]),
            lambda: ssd.recurrent(*heads, per_key[..., 0], None)[0],
        ),
        "delta rule": delta(per_key[..., :1]),
        "delta rule, vector": delta(per_key),
        "GLA": (
            [*heads, per_key],
            chunked(linear_attention, per_key),
            lambda: linear_attention.recurrent(*heads, per_key, None)[0],
        ),
    }
    found = {}
    for name, (leaves, fast, loop) in pairs.items():
        with torch.no_grad():
            forward = in_turns(fast, loop)
        training = in_turns(_training(fast, leaves), _training(loop, leaves))
        row = {
            f"{label}_{what}_ms": 1e3 * value
            for what, pair in (("forward", forward), ("training", training))
            for label, value in zip(("fast", "loop"), pair, strict=True)
        }
        found[name] = row
        print(f"{name:22}" + "".join(f"{k:>24}{v:9.1f}" for k, v in row.items()), flush=True)
    return found


def delta_rule_chunked(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
    corrected, before, _ = delta_rule.corrected(k, v, beta, g, None)
    return delta_rule.read(q, k, corrected, g, before)


def make(name: str) -> nn.Module:
    if name == PEER:
        from fla.layers import GatedLinearAttention

        return GatedLinearAttention(hidden_size=D_MODEL, num_heads=4)
    return registry.get("mixers", name).Config().build(D_MODEL)


def output(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    return layer(x_BTD)[0]


def seconds(run: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], Any], repeats: int = 7) -> float:
    """After one warm-up; a slow run is timed once."""
    if seconds(run) > SLOW_S and (again := seconds(run)) > SLOW_S:
        return again
    return sorted(seconds(run) for _ in range(repeats))[repeats // 2]


def in_turns(*runs: Callable[[], Any], rounds: int = 7) -> list[float]:
    """Median seconds of each; in turns, since how memory comes from the system differs by call."""
    times = [[seconds(run) for run in runs] for _ in range(rounds + 2)][2:]
    return [sorted(column)[rounds // 2] for column in zip(*times, strict=True)]


def _training(run: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], None]:
    def train() -> None:
        for leaf in leaves:
            leaf.requires_grad_().grad = None
        run().sum().backward()

    return train


def _outputs_and_gradients(layer: nn.Module, x_BTD: Tensor, grad_BTD: Tensor) -> list[Tensor]:
    x_BTD = x_BTD.detach().requires_grad_()
    y_BTD = output(layer, x_BTD)
    leaves = [x_BTD, *layer.parameters()]
    gradients = torch.autograd.grad(y_BTD, leaves, grad_BTD, allow_unused=True)
    return [y_BTD.detach(), *(g for g in gradients if g is not None)]


def _guarded(run: Callable[..., dict[str, float]], *args: Any) -> dict[str, Any]:
    try:
        return run(*args)
    except Exception as error:
        traceback.print_exc()
        return {f"{run.__name__}_error": f"{type(error).__name__}: {error}"[:300]}


def _print_row(name: str, length: int, row: dict[str, Any], peer: dict[int, Any]) -> None:
    if "measure_error" in row:
        print(f"{name:22}{length:>7}  {row['measure_error']}", flush=True)
        return
    if "forward_backward_ms" in peer.get(length, {}):
        row["ratio_to_peer"] = row["forward_backward_ms"] / peer[length]["forward_backward_ms"]
    cells = "".join(f"{row[c]:>21,.3g}" if c in row else f"{'-':>21}" for c in COLUMNS)
    print(f"{name:22}{length:>7}{cells}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixers", nargs="*", help="default: all")
    parser.add_argument("--lengths", nargs="*", type=int)
    parser.add_argument("--first-call", help="time this mixer's first call, and nothing else")
    parser.add_argument("--tokens", type=int, help="tokens a training pass")
    return parser.parse_args()


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
