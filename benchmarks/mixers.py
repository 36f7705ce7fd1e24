"""Every sequence mixer's speed, beside the same layer of other packages and SDPA attention (`gqa`).

    python benchmarks/mixers.py [--mixers mamba s5] [--lengths 1024 8192] [--tokens 65536]
    OMP_NUM_THREADS=1 python benchmarks/mixers.py     # on a CPU

For each layer and length, at d_model 512: parameters, the first forward and training pass, forward,
forward and backward, prefill and decode at batch 1, peak memory. Each mixer's row is followed by
its peer's (`layer_peers.py`), with the peer's time over ours; a peer that is missing, refuses, runs
out of memory or of time leaves the reason. Prints a table and one JSON line.

A row is stopped after `--limit` seconds. On a CPU it has a process of its own, and memory is what
that holds; on a GPU it is the allocator's, of training.

On a GPU fla's GLA layer is timed first, so that each row shows its time over that layer's too; its
kernels tune themselves over all their configurations, without limit, which takes minutes once
(`TRITON_CACHE_AUTOTUNING=1` keeps what they found). Each mixer is first called in a process of its
own with an empty kernel cache, several processes at once, then so with its kernels compiled ahead,
as a training does: what a new machine costs, and the next new shape. Below a mixer stand its
largest error of outputs and gradients against the same module in float64, which takes the plain
PyTorch forms. At the end comes the growth of its time: four times the longest length over the
longest, same batch.
"""

import argparse
import copy
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import figures
import layer_peers as peers
from archloop import registry
from archloop.blocks.ops import triton_kernels
from figures import Figures, PeakMemory
from timing import median_seconds, seconds

D_MODEL = 512
COLUMNS = {
    "params_m": "params M",
    "first_call_s": "first call s",
    "forward_ms": "forward ms",
    "forward_over_ours": "over ours",
    "forward_backward_ms": "fwd+bwd ms",
    "forward_backward_over_ours": "over ours",
    "forward_backward_over_fla_gla": "over fla GLA",
    "prefill_tok_per_s": "prefill tok/s",
    "decode_tok_per_s": "decode tok/s",
    "peak_memory_gib": "peak GiB",
    "stopped": "remark",
}
REPEATS = 25
"""Of a forward and of a training pass, within a second."""
FRESH_AT_ONCE = 6
"""Processes that make their first calls side by side."""
SLOW_S = 0.5
"""The growth of a layer that trains longer than this is shown at the shortest length."""
PARTS = ["first-calls", "rows", "growth"]

Rows = dict[str, dict[Any, dict[str, Any]]]


class Setting(NamedTuple):
    """Where and on how much every layer is timed."""

    device: str
    dtype: torch.dtype
    tokens: int
    limit_s: float

    def batch(self, length: int) -> int:
        return max(1, self.tokens // length)

    def where(self) -> dict[str, Any]:
        return {"device": self.device, "dtype": self.dtype}


def main() -> None:
    options = _options()
    on_gpu = torch.cuda.is_available()
    place = ("cuda", torch.bfloat16, 65_536) if on_gpu else ("cpu", torch.float32, 8_192)
    setting = Setting(*place[:2], options.tokens or place[2], options.limit)
    names = options.mixers or registry.names("mixers")
    if options.first_call:
        print(json.dumps(first_call(options.first_call, options.lengths, setting, options.ahead)))
        return
    rows: Rows = {}
    results: dict[str, Any] = {"device": _device_name(), "tokens": setting.tokens, "layers": rows}
    threads = "" if on_gpu else f", {torch.get_num_threads()} threads"
    print(f"{_device_name()}{threads}, {setting.dtype}, d_model {D_MODEL}, {setting.tokens} tokens")
    # Rows on a CPU are forked from a process that has imported these already.
    multiprocessing.set_forkserver_preload(["archloop.blocks.base", "transformers.modeling_utils"])
    if not on_gpu:  # where its peer does not run
        del COLUMNS["forward_backward_over_fla_gla"]
    parts = options.parts if on_gpu else ["rows"]
    try:
        if "first-calls" in parts:
            results["first_calls"] = first_calls(names)
        if "rows" in parts:
            fill(rows, names, setting, options)
        if "growth" in parts:
            results["growth"] = growths(names, options.lengths, setting)
    finally:  # what there is, if it is stopped
        print(json.dumps(results))


def fill(rows: Rows, names: list[str], setting: Setting, options: argparse.Namespace) -> None:
    """Measure every layer at every length."""
    print_cells(["layer", "T", *COLUMNS.values()], options.markdown)
    if options.markdown:
        print_cells(["---"] * (2 + len(COLUMNS)), True)
    on_gpu = setting.device == "cuda"
    if on_gpu and not options.mixers:
        for length in options.lengths:
            measured(rows, *peers.PEERS["gla"], length, setting)
    for name in names:
        for length in options.lengths:
            compare(rows, name, length, setting, options)
        if on_gpu:
            rows[name]["check"] = figures.here(check, name, setting)
            print(f"{'':22}{rows[name]['check']}", flush=True)


def compare(
    rows: Rows, name: str, length: int, setting: Setting, options: argparse.Namespace
) -> None:
    """Time a mixer, then its peers, and print their rows."""
    ours = measured(rows, name, partial(make, name), length, setting)
    reference = rows.get(peers.GLA, {}).get(length, {})
    ours |= _ratios(ours, reference, "fla_gla", ["forward_backward"])
    _print_row(f"`{name}`" if options.markdown else name, length, ours, options.markdown)
    others = [peers.PEERS[name]] if name in peers.PEERS else []
    others += peers.SLOW_TO_TUNE.get(name, []) if options.fla else []
    for label, build in others:
        if label in peers.TUNED and setting.device == "cpu":
            continue
        row = measured(rows, label, build, length, setting)
        row |= _ratios(row, ours, "ours", ["forward", "forward_backward"])
        _print_row(f"- {label}", length, row, options.markdown)


def measured(
    rows: Rows, label: str, build: Callable[[int], nn.Module], length: int, setting: Setting
) -> dict[str, Any]:
    """The row of a layer; timed once, however often it is asked for."""
    known = rows.setdefault(label, {})
    if length not in known:
        arguments = (measure, build, length, setting)
        if setting.device == "cpu":
            known[length] = figures.in_own_process(*arguments, limit_s=setting.limit_s)
        else:
            limit_s = 0.0 if label in peers.TUNED else setting.limit_s
            known[length] = figures.here(*arguments, limit_s=limit_s)
    return known[length]


def measure(build: Callable[[int], nn.Module], length: int, setting: Setting) -> Figures:
    """Training comes last, since it is what a slow layer does not finish."""
    torch.manual_seed(0)
    memory = PeakMemory()
    where = setting.where()
    layer = build(D_MODEL).to(**where)
    yield "params_m", peers.num_params(layer) / 1e6
    x_BTD = torch.randn(setting.batch(length), length, D_MODEL, **where, requires_grad=True)
    grad_BTD = torch.randn_like(x_BTD)

    def forward() -> None:
        with torch.no_grad():
            _sound(output(layer, x_BTD), x_BTD)

    def train() -> None:
        output(layer, x_BTD).backward(grad_BTD)

    on_gpu = setting.device == "cuda"
    if on_gpu and not isinstance(layer, peers.Peer):
        compile_ahead(layer, x_BTD)  # first calls are timed in processes of their own
    first_s = seconds(forward)
    yield "forward_ms", 1e3 * median_seconds(forward, REPEATS, warm=True)
    if getattr(layer, "decodes", True):
        yield from inference(layer, x_BTD[:1].detach())
    first_s += seconds(train)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        yield "first_call_s", first_s
    yield "forward_backward_ms", 1e3 * median_seconds(train, REPEATS, warm=True)
    if on_gpu:
        yield "peak_memory_gib", torch.cuda.max_memory_allocated() / 2**30
    elif (peak := memory.gib()) is not None:
        yield "peak_memory_gib", peak


def inference(layer: Any, x_1TD: Tensor) -> Figures:
    """Tokens per second at batch 1: all at once, then one by one."""
    length = x_1TD.shape[1]
    state = layer.init_state(1, 2 * length)

    def prefill() -> None:
        state.reset()
        layer(x_1TD, state)

    yield "prefill_tok_per_s", length / median_seconds(prefill)
    position_B = torch.full((1,), length, device=x_1TD.device)

    def decode() -> None:
        for t in range(16):
            layer.step(x_1TD[:, t], state, positions_B=position_B + t)

    yield "decode_tok_per_s", 16 / median_seconds(decode, repeats=3)


def compile_ahead(layer: nn.Module, x_BTD: Tensor) -> None:
    """The kernels of a training pass, of this layer alone."""

    def train() -> None:
        y_BTD = output(copy.deepcopy(layer), x_BTD.detach().requires_grad_())
        y_BTD.backward(torch.ones_like(y_BTD))

    triton_kernels.compile_ahead(train)


def first_calls(names: list[str]) -> dict[str, Any]:
    """`first_call` of each mixer in processes of its own, each with an empty cache of kernels.

    Once with kernels compiled as they come, once ahead; several processes at once.
    """

    def run(name: str, *options: str) -> Any:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "--first-call", name, *options]
            environment = os.environ | {"TRITON_CACHE_DIR": cache}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1][:300]}
        return json.loads(done.stdout.splitlines()[-1])

    found = {}
    with ThreadPoolExecutor(FRESH_AT_ONCE) as pool:
        plain = list(pool.map(run, names))
        ahead = pool.map(lambda name: run(name, "--ahead"), names)
        for name, *rows in zip(names, plain, ahead, strict=True):
            found[name] = dict(zip(("plain", "ahead"), rows, strict=True))
            print(f"{name:22} first calls: {found[name]}", flush=True)
    return found


def first_call(name: str, lengths: list[int], setting: Setting, ahead: bool) -> dict[str, float]:
    """Seconds of a first forward and backward pass, and of the first at an odd length after it."""
    where = setting.where()
    layer = make(name).to(**where)
    found = {}
    for label, length in (("first_call_s", max(lengths)), ("odd_length_s", min(lengths) - 24)):
        x_BTD = torch.randn(setting.batch(length), length, D_MODEL, **where, requires_grad=True)
        # PyTorch's own first time, its backward pass included, is not the mixer's.
        product_BTD = x_BTD @ torch.eye(D_MODEL, **where)
        product_BTD.backward(torch.ones_like(product_BTD))

        def train(x_BTD: Tensor = x_BTD) -> None:
            if ahead:
                compile_ahead(layer, x_BTD)
            y_BTD = output(layer, x_BTD)
            y_BTD.backward(torch.ones_like(y_BTD))

        found[label] = seconds(train)
    return found


def check(name: str, setting: Setting) -> Figures:
    """Largest error, relative to the largest value, of float32 against float64."""
    torch.manual_seed(1)
    where = setting.where() | {"dtype": torch.float32}
    layer = make(name).to(**where)
    x_BTD = torch.randn(2, 300, D_MODEL, **where)
    compile_ahead(layer, x_BTD)
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
    yield "output_error", errors[0]
    yield "gradient_error", max(errors[1:])


def growths(names: list[str], lengths: list[int], setting: Setting) -> dict[str, dict[str, Any]]:
    """`growth` of each mixer."""
    found = {}
    for name in names:
        found[name] = figures.here(growth, name, lengths, setting)
        print(f"{name:22} growth: {found[name]}", flush=True)
    return found


def growth(name: str, lengths: list[int], setting: Setting) -> Figures:
    """Training time at four times the longest length over that at the longest, same batch.

    Of a slow layer at the shortest.
    """
    where = setting.where()
    layer = make(name).to(**where)

    def training_s(length: int, steps: int) -> float:
        x_BTD = torch.randn(setting.batch(length), steps, D_MODEL, **where, requires_grad=True)

        def train() -> None:
            y_BTD = output(layer, x_BTD)
            y_BTD.backward(torch.ones_like(y_BTD))

        compile_ahead(layer, x_BTD)
        return median_seconds(train, repeats=5)

    for length in (max(lengths), min(lengths)):
        once_s = training_s(length, length)
        if once_s <= SLOW_S:
            break
    yield "from_length", length
    yield "growth_4x", training_s(length, 4 * length) / once_s


def make(name: str, d_model: int = D_MODEL) -> nn.Module:
    layer: nn.Module = registry.get("mixers", name).Config().build(d_model)
    return layer


def output(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    y_BTD: Tensor = layer(x_BTD)[0]
    return y_BTD


def _sound(y_BTD: Tensor, x_BTD: Tensor) -> None:
    if y_BTD.shape != x_BTD.shape or not y_BTD.sum().isfinite():
        raise RuntimeError(f"computes {tuple(y_BTD.shape)}, or something not finite")


def _outputs_and_gradients(layer: nn.Module, x_BTD: Tensor, grad_BTD: Tensor) -> list[Tensor]:
    x_BTD = x_BTD.detach().requires_grad_()
    y_BTD = output(layer, x_BTD)
    leaves = [x_BTD, *layer.parameters()]
    gradients = torch.autograd.grad(y_BTD, leaves, grad_BTD, allow_unused=True)
    return [y_BTD.detach(), *(g for g in gradients if g is not None)]


def _ratios(
    row: dict[str, Any], other: dict[str, Any], name: str, times: list[str]
) -> dict[str, float]:
    pairs = {time: (row.get(f"{time}_ms"), other.get(f"{time}_ms")) for time in times}
    return {f"{time}_over_{name}": a / b for time, (a, b) in pairs.items() if a and b}


def _print_row(label: str, length: int, row: dict[str, Any], markdown: bool) -> None:
    missing = "" if markdown else "-"
    cells = [cell(row[key]) if key in row else missing for key in COLUMNS if key != "stopped"]
    print_cells([label, f"{length:,}", *cells, row.get("stopped", "")], markdown)


def cell(value: float) -> str:
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


def print_cells(cells: list[str], markdown: bool) -> None:
    if markdown:
        print("| " + " | ".join(cells) + " |", flush=True)
        return
    *fixed, last = cells
    print(f"{fixed[0]:32}" + "".join(f"{cell:>14}" for cell in fixed[1:]) + f"  {last}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixers", nargs="*", help="default: all")
    parser.add_argument("--lengths", nargs="*", type=int, default=[1_024, 8_192])
    parser.add_argument("--tokens", type=int, help="tokens a training pass")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a row may take")
    parser.add_argument(
        "--fla", action="store_true", help="rows on fla's kernels that tune for minutes"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="on a GPU")
    parser.add_argument("--first-call", help="time this mixer's first call, and nothing else")
    parser.add_argument("--ahead", action="store_true", help="its kernels compiled ahead")
    return parser.parse_args()


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    main()
