"""What a model costs as the context grows, beside its all-attention twin, on one GPU in bf16.

    python benchmarks/claims.py > claims.txt                 LFM2-24B-A2B (needs a GPU of 80 GB)
    python benchmarks/claims.py --models lfm3-1.7b lfm3-1.7b-attention lfm2-1.2b --small lfm2-1.2b
    python benchmarks/claims.py --plot claims.json FIGURE    draw the figure of docs/claims.md

The first model is the one that is examined, the others stand beside it. Random weights: time and
memory do not depend on their values. Prints a table and one JSON line.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from archloop.runtimes.cuda.fused import FusedDecoder
from archloop.runtimes.cuda.half import Call
from archloop.stack import cost, presets
from archloop.stack.decoder import Decoder
from gpu_models import balance, random_decoder, random_ids, restart
from inference import ceilings, median_ms, times_ms

MODELS = ("lfm2-24b-a2b", "lfm2-24b-a2b-attention")
SMALL = "lfm2-2.6b"
CONTEXTS = tuple(1024 << n for n in range(8))
GB = 1e9

BITS = {"bf16": (16.0, 16.0), "int8, one scale a row": (8.0, 16.0), "Q4_0": (4.5, 16.0)}
"""Bits per weight of matrices (Q4_0: 32 four-bit weights share a 16-bit scale), and of the rest."""


def prefill_times(run, context):
    """Sorted milliseconds of some runs, fewer where one takes seconds."""
    if context > 32768:
        return times_ms(run, 1 if context > 65536 else 3, 1)
    return times_ms(run, 11 if context <= 8192 else 5, 3)


def measure_context(fused, context, steps=20):
    """Prefill and decode milliseconds, and state bytes, at one context and batch 1."""
    ids = random_ids(fused.decoder, 1, context)
    state = fused.init_state(1, context + 64)

    def prefill():
        restart(state)
        return fused.prefill(ids, state)

    times = prefill_times(prefill, context)
    found = {"context": context, "prefill_ms": times[len(times) // 2]}
    found["prefill_spread_ms"] = times[-1] - times[0]
    times = decode_times(fused, state, steps)
    found["decode_ms"] = times[len(times) // 2]
    found["decode_spread_ms"] = times[-1] - times[0]
    found["state_bytes"] = fused.decoder.init_state(1, context, device="meta").nbytes
    return found


def decode_times(fused, state, steps):
    """Sorted milliseconds of captured steps, each on another random token."""
    graph = fused.capture(state)
    times = []
    for token in random_ids(fused.decoder, steps, 1):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.ids_B.copy_(token)
        start.record()
        graph.step()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times[4:])


def measure_mixers(fused, contexts):
    """Milliseconds of one block's mixer and its norm over a prompt, by kind."""
    found = {}
    for kind in sorted(set(fused.decoder.spec.layout)):
        index = fused.decoder.spec.layout.index(kind)
        found[kind] = []
        for context in contexts:
            x_XD = torch.empty(context, fused.decoder.spec.d_model, device="cuda")
            x_XD = x_XD.normal_().to(torch.bfloat16)
            state = fused.init_state(1, context)
            half, call = fused.of_mixers[index], Call(state, 0, context)

            def run(x_XD=x_XD, call=call, half=half):
                fused.add(half, x_XD, call)

            found[kind].append({"context": context, "ms": median_ms(run, 5, 2)})
    return found


def measure_small(name):
    """The dense model that the 24B's active parameters invite comparison with."""
    decoder = random_decoder(name)
    fused = FusedDecoder(decoder)
    found = {"prefill 4096 ms": measure_context(fused, 4096)["prefill_ms"]}
    for batch in (1, 64):
        found[f"decode b{batch} ms"] = decode_at(fused, batch)
    return found


def decode_at(fused, batch, depth=512):
    """Milliseconds of a decode step for `batch` rows at a depth."""
    state = fused.init_state(batch, depth + 64)
    fused.prefill(random_ids(fused.decoder, batch, depth), state)
    graph = fused.capture(state)
    graph.ids_B.copy_(random_ids(fused.decoder, batch, 1)[:, 0])
    return median_ms(graph.step, 40, 5)


def footprint(name):
    """Gigabytes by precision, computed from shapes: weights, and with state at three contexts."""
    spec = presets.load(name)
    with torch.device("meta"):
        decoder = Decoder(spec)
    matrices = sum(p.numel() for p in decoder.parameters() if p.dim() > 1)
    rows = sum(p.numel() // p.shape[-1] for p in decoder.parameters() if p.dim() > 1)
    rest = cost.num_params(spec) - matrices
    found = {}
    for precision, (bits, rest_bits) in BITS.items():
        weights = (matrices * bits + rest * rest_bits) / 8
        if "row" in precision:
            weights += 2 * rows
        found[precision] = {"weights_gb": weights / GB} | {
            f"total_gb_at_{context}": (weights + cost.state_bytes(spec, context)) / GB
            for context in (4096, 32768, 131072)
        }
    return found


def exponent(points, key, start=0):
    """Slope of log(value) over log(context) by least squares."""
    pairs = [(math.log(p["context"]), math.log(p[key])) for p in points if p["context"] >= start]
    mean_x, mean_y = (sum(v) / len(pairs) for v in zip(*pairs, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in pairs)
    return over / sum((x - mean_x) ** 2 for x, _ in pairs)


def quadratic_share(points):
    """Share of the quadratic term at the longest context in ``ms = a + b T + c T^2``."""
    import numpy as np

    t = np.array([p["context"] for p in points], dtype=float)
    y = np.array([p["prefill_ms"] for p in points])
    basis = np.stack([np.ones_like(t), t, t**2], 1)
    # Relative residuals, so that short contexts count as much as long ones.
    fit, *_ = np.linalg.lstsq(basis / y[:, None], np.ones_like(y), rcond=None)
    return float(fit[2] * t[-1] ** 2 / (basis[-1] @ fit))


def fits(result):
    found = {}
    for name, entry in result["models"].items():
        points = entry["contexts"]
        found[name] = {
            "prefill exponent, all": exponent(points, "prefill_ms"),
            "prefill exponent, from 32K": exponent(points, "prefill_ms", 32768),
            "prefill quadratic share at the end": quadratic_share(points),
            "decode exponent, all": exponent(points, "decode_ms"),
            "decode exponent, from 32K": exponent(points, "decode_ms", 32768),
            "state exponent, all": exponent(points, "state_bytes"),
        }
    examined = next(iter(result["models"].values()))
    for kind, points in examined["mixers"].items():
        found[f"{kind} mixer alone"] = {
            "exponent, from 8K": exponent(points, "ms", 8192),
            "exponent, from 32K": exponent(points, "ms", 32768),
        }
    return found


def plot(result, target):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.8), constrained_layout=True)
    parts = (("prefill_ms", "prefill, ms"), ("decode_ms", "decode, ms per token"),
             ("state_bytes", "state, bytes"))  # fmt: skip
    for axis, (key, label) in zip(axes, parts, strict=True):
        for (name, entry), marker in zip(result["models"].items(), "os^v", strict=False):
            points = entry["contexts"]
            slope = exponent(points, key, 32768)
            axis.plot(
                [p["context"] for p in points], [p[key] for p in points], marker=marker,
                label=f"{name} (slope {slope:.2f} from 32K)",
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="context, tokens", ylabel=label)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    examined = next(iter(result["models"]))
    figure.suptitle(f"{examined} as the context grows, {result['device']}, bf16, batch 1")
    figure.savefig(target)


def show(result):
    models = result["models"]
    print(f"\n{'context':>8}" + "".join(f"{name[-22:]:>42}" for name in models))
    print(f"{'':8}" + f"{'prefill ms':>16}{'decode ms':>12}{'state MB':>14}" * len(models))
    for row in zip(*(entry["contexts"] for entry in models.values()), strict=True):
        print(f"{row[0]['context']:8}" + "".join(
            f"{p['prefill_ms']:16.1f}{p['decode_ms']:12.3f}{p['state_bytes'] / 1e6:14.1f}"
            for p in row
        ))  # fmt: skip
    for name, values in result["fits"].items():
        print(name, {k: round(v, 3) for k, v in values.items()})
    for name, value in result["footprint"].items():
        print(name, {k: round(v, 2) for k, v in value.items()})
    print("batch", result["batch"])


def examine(name, is_first):
    """Every context of a model; of the first also its mixers alone and steps of batches."""
    decoder = random_decoder(name)
    fused = FusedDecoder(decoder)
    entry = {"weights_bytes": torch.cuda.memory_allocated(), "balance": balance(fused)}
    if is_first:
        entry["mixers"] = measure_mixers(fused, CONTEXTS)
        entry["batch"] = {f"decode b{n} ms": decode_at(fused, n) for n in (1, 4, 16, 64)}
    entry["contexts"] = []
    for context in CONTEXTS:
        torch.cuda.empty_cache()
        entry["contexts"].append(measure_context(fused, context))
        print(name, entry["contexts"][-1], flush=True)
    entry["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--small", default=SMALL, help="whose steps stand beside the first's")
    parser.add_argument("--plot", nargs=2, metavar=("JSON", "FIGURE"))
    args = parser.parse_args()
    if args.plot:
        plot(json.loads(Path(args.plot[0]).read_text(encoding="utf-8")), args.plot[1])
        return
    read, matmul = ceilings()
    result = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "read_tb_per_s": read / 1e12, "matmul_tflop_per_s": matmul / 1e12,
        "models": {}, "footprint": footprint(args.models[0]),
        "batch": {args.small: measure_small(args.small)},
    }  # fmt: skip
    for index, name in enumerate(args.models):
        result["models"][name] = examine(name, index == 0)
        torch.cuda.empty_cache()
    result["batch"][args.models[0]] = result["models"][args.models[0]].pop("batch")
    result["fits"] = fits(result)
    show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    with torch.no_grad():
        main()
