# ruff: noqa: B023 -- every lambda runs before the loop variables that it reads change
"""Each inference kernel alone, over its block sizes, against memory and matrix rates.

    python benchmarks/gpu_kernels.py [gemv moe attention dense rows]

Prints a table and one JSON line; the block sizes that `blocks/ops/gpu` uses come from here.
Inputs are random; weights are rotated so that none is read from a cache.
"""

import itertools
import json
import sys

import torch
import triton
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from archloop.runtimes.cuda.kernels import attention, experts, gemv, gemv_experts, rows
from archloop.runtimes.cuda.kernels.plans import Plan

D, F_DENSE, F_EXPERT, E, K, V, N, M, H = 2048, 8192, 1536, 64, 4, 65536, 32, 8, 64
DTYPE = torch.bfloat16
GEMV_WEIGHTS = {
    "conv 6144x2048": 3 * D * D, "qkv 3072x2048": 3072 * D, "out 2048x2048": D * D,
    "gate_up 16384x2048": 2 * F_DENSE * D, "down 2048x8192": F_DENSE * D,
    "head 65536x2048": V * D, "router 64x2048": E * D,
    "experts_up": K * 2 * F_EXPERT * D, "experts_down": K * F_EXPERT * D,
}  # fmt: skip
RESULTS: list[dict[str, object]] = []


def randn(*shape, scale=1.0):
    return torch.empty(*shape, device="cuda", dtype=DTYPE).normal_(0, scale)


def median_ms(run, repeats=10):
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[repeats // 2]


def graphed_ms(calls):
    """Milliseconds per call of a graph that makes all calls once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return median_ms(graph.replay) / len(calls)


def note(kind, shape, setting, ms, gb=None, tflop=None):
    RESULTS.append(
        {"kind": kind, "shape": shape, "setting": setting, "ms": ms}
        | ({"gb_per_s": gb / ms * 1e3} if gb else {})
        | ({"tflop_per_s": tflop / ms * 1e3} if tflop else {})
    )


def attempt(kind, shape, setting, run, gb=None, tflop=None, graph=True):
    try:
        ms = graphed_ms(run if isinstance(run, list) else [run]) if graph else median_ms(run)
        note(kind, shape, setting, ms, gb, tflop)
    except Exception as error:
        RESULTS.append(
            {"kind": kind, "shape": shape, "setting": setting, "error": repr(error)[:200]}
        )


def bench_gemv():
    pool = randn(512 << 20, scale=0.02)
    norm, x, big = (randn(D), 1e-5), randn(D), randn(F_DENSE)
    conv_weight, past = randn(D, 3), randn(2, D)
    bias = torch.zeros(E, device="cuda")

    def slices(*shape):
        size = torch.Size(shape).numel()
        count = min(32, pool.numel() // size)
        return [pool[i * size : (i + 1) * size].view(shape) for i in range(count)]

    def outs(width):
        return torch.empty(width, device="cuda", dtype=DTYPE)

    gate_up = randn(E, 2 * F_EXPERT, D, scale=0.02)
    down = randn(E, D, F_EXPERT, scale=0.02)
    picks = [randn(E) for _ in range(32)]
    hidden = randn(K, F_EXPERT)
    y = {n: outs(n) for n in (D, 3072, F_DENSE, V, E)}
    cases = {
        "conv 6144x2048": lambda **o: [
            lambda w=w: gemv.conv(x, norm, w, conv_weight, past, y[D], **o)
            for w in slices(3 * D, D)
        ],
        "qkv 3072x2048": lambda **o: [
            lambda w=w: gemv.linear(x, w, y[3072], norm=norm, **o) for w in slices(3072, D)
        ],
        "out 2048x2048": lambda **o: [
            lambda w=w: gemv.linear(x, w, y[D], residual=True, **o) for w in slices(D, D)
        ],
        "gate_up 16384x2048": lambda **o: [
            lambda w=w: gemv.gate_up(x, norm, w, y[F_DENSE], **o) for w in slices(2 * F_DENSE, D)
        ],
        "down 2048x8192": lambda **o: [
            lambda w=w: gemv.linear(big, w, y[D], residual=True, **o) for w in slices(D, F_DENSE)
        ],
        "head 65536x2048": lambda **o: [
            lambda w=w: gemv.linear(x, w, y[V], norm=norm, **o) for w in slices(V, D)
        ],
        "router 64x2048": lambda **o: [
            lambda w=w: gemv.linear(x, w, y[E], norm=norm, **o) for w in slices(E, D)
        ],
        "experts_up": lambda **o: [
            lambda p=p: gemv_experts.experts_up(x, norm, p, bias, gate_up, hidden, **o)
            for p in picks
            for p in picks
        ],
        "experts_down": lambda **o: [
            lambda p=p: gemv_experts.experts_down(
                hidden, p, bias, down, y[D], normalize=True, routed_scale=1.0, **o
            )
            for p in picks
        ],
    }
    small, large = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)], [(8, 4), (4, 8), (8, 8), (16, 8)]
    settings = [*small, (2, 4), (4, 4), *large]
    for name, make in cases.items():
        of_experts = name.startswith("experts")
        for (block, warps), pdl in itertools.product(settings, (True, False)):
            if not pdl and (block, warps) != (4, 4):
                continue
            for resident in (None,) if of_experts or not pdl else (None, 2, 4, 6):
                plan = Plan(block, warps, resident, early=resident is not None)
                how = {"block": block, "warps": warps} if of_experts else {"plan": plan}
                setting = f"block {block} warps {warps} resident {resident} pdl {int(pdl)}"
                calls = make(**how, pdl=pdl)
                attempt("gemv", name, setting, calls, gb=GEMV_WEIGHTS[name] * 2e-9)
    for name, w in (
        ("gate_up 16384x2048", slices(2 * F_DENSE, D)),
        ("out 2048x2048", slices(D, D)),
    ):
        calls = [lambda w=w: F.linear(x[None], w) for w in w]
        attempt("gemv", name, "cuBLAS", calls, gb=GEMV_WEIGHTS[name] * 2e-9)


T = experts.Tiling
SMALL = [
    T(16, 64, 128, 4, 3, swap=True), T(16, 64, 128, 4, 4, swap=True),
    T(16, 128, 128, 8, 3, swap=True), T(16, 64, 128, 4, 3, swap=True, tma=False),
]  # fmt: skip
MIDDLE = [
    T(128, 128, 64, 8, 3), T(128, 128, 64, 8, 3, swap=True), T(64, 128, 64, 8, 4, swap=True),
    T(64, 128, 64, 4, 3), T(128, 64, 128, 8, 3), T(128, 64, 64, 4, 4), T(128, 128, 64, 8, 4),
]  # fmt: skip
LARGE = [
    T(128, 128, 64, 8, 3), T(128, 128, 64, 8, 4), T(128, 128, 64, 8, 4, swap=True),
    T(128, 256, 64, 8, 3), T(128, 256, 64, 8, 4), T(128, 128, 32, 8, 5), T(128, 128, 32, 8, 6),
    T(128, 256, 32, 8, 5), T(64, 128, 64, 4, 3), T(64, 256, 64, 8, 4),
    T(64, 128, 64, 8, 4, swap=True),
    T(256, 128, 64, 8, 3, swap=True),
]  # fmt: skip


def bench_moe():
    gate_up, down = randn(E, 2 * F_EXPERT, D, scale=0.02), randn(E, D, F_EXPERT, scale=0.02)
    bias = torch.zeros(E, device="cuda")
    for num_tokens, tilings in ((64, SMALL), (1024, MIDDLE), (4096, LARGE), (32768, LARGE)):
        x, logits = randn(num_tokens, D), randn(num_tokens, E)
        counts = torch.zeros(E, dtype=torch.int32, device="cuda")

        def route(x=x, logits=logits, counts=counts):
            counts.zero_()
            return experts.route(logits, bias, counts, K, normalize=True, routed_scale=1.0)

        weights, bins = route()
        distinct = int((counts > 0).sum())
        pairs = num_tokens * K
        attempt("moe", f"route {num_tokens}", "", route)
        hidden = experts.gate_up(x, gate_up, bins, counts, K, tilings[0])
        for tiling in tilings:
            setting = repr(tiling).removeprefix("Tiling")
            attempt(
                "moe", f"up {num_tokens}", setting,
                lambda t=tiling: experts.gate_up(x, gate_up, bins, counts, K, t),
                gb=distinct * 2 * F_EXPERT * D * 2e-9, tflop=pairs * 4 * F_EXPERT * D * 1e-12,
            )  # fmt: skip
            attempt(
                "moe", f"down {num_tokens}", setting,
                lambda t=tiling: experts.down(hidden, down, weights, bins, counts, t),
                gb=distinct * F_EXPERT * D * 2e-9, tflop=pairs * 2 * F_EXPERT * D * 1e-12,
            )  # fmt: skip
        ends = counts.cumsum(0).to(torch.int32)
        sorted_x = randn(pairs, D)
        attempt(
            "moe", f"up {num_tokens}", "torch._grouped_mm",
            lambda: torch._grouped_mm(sorted_x, gate_up.transpose(1, 2), offs=ends),
            gb=distinct * 2 * F_EXPERT * D * 2e-9, tflop=pairs * 4 * F_EXPERT * D * 1e-12,
        )  # fmt: skip
        attempt(
            "moe", f"down {num_tokens}", "torch._grouped_mm",
            lambda: torch._grouped_mm(hidden, down.transpose(1, 2), offs=ends),
            gb=distinct * F_EXPERT * D * 2e-9, tflop=pairs * 2 * F_EXPERT * D * 1e-12,
        )  # fmt: skip
        y = randn(num_tokens, K, D)
        attempt(
            "moe", f"join {num_tokens}", "", lambda: experts.join(x, y, x[0], 1e-5),
            gb=num_tokens * (K + 3) * D * 2e-9,
        )  # fmt: skip


def bench_attention():
    tables = attention.rope_tables(32768, H, 1e6, torch.device("cuda"))
    norms = (randn(H), randn(H), 1e-5)
    for batch, depth, slots in (
        (1, 512, 1024),
        (1, 32000, 32768),
        (64, 512, 1024),
        (1024, 640, 768),
    ):
        caches = [(randn(batch, M, slots, H), randn(batch, M, slots, H)) for _ in range(2)]
        lengths = torch.full((batch,), depth, device="cuda")
        qkv = randn(batch, (N + 2 * M) * H)
        default = attention.num_parts(batch, M, slots)
        for (block, warps, stages), parts in itertools.product(
            ((64, 4, 3), (64, 2, 3), (128, 4, 3), (32, 2, 3), (64, 4, 4), (128, 8, 2)),
            sorted({default, min(32, 2 * default), max(1, default // 2)}),
        ):
            calls = [
                lambda c=c, b=block, w=warps, s=stages, p=parts: attention.step(
                    qkv, norms, tables, *c, lengths, H**-0.5, block=b, warps=w, stages=s, parts=p
                )
                for c in caches
            ]
            attempt(
                "attention", f"B{batch} at {depth}", f"block {block} warps {warps} stages {stages} "
                f"parts {parts}", calls, gb=batch * depth * M * H * 4e-9,
            )  # fmt: skip
        del caches
    for batch, time in ((1, 4096), (1, 32768), (64, 512)):
        q, k, v = (randn(batch, time, n, H).transpose(1, 2) for n in (N, M, M))
        tflop = batch * 4 * N * H * time * (time + 1) / 2 * 1e-12
        wide_k, wide_v = (t.repeat_interleave(N // M, 1) for t in (k, v))
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            for name, key, value in (("gqa", k, v), ("expanded", wide_k, wide_v)):

                def run(b=backend, key=key, value=value):
                    with sdpa_kernel(b):
                        return F.scaled_dot_product_attention(
                            q, key, value, is_causal=True, enable_gqa=key.shape[1] != N
                        )

                attempt(
                    "attention", f"prompt {batch}x{time}", f"{backend.name} {name}", run,
                    tflop=tflop, graph=False,
                )  # fmt: skip


def bench_dense():
    for num_tokens in (64, 1024, 4096, 32768):
        for out_width, width in ((6144, D), (D, D), (2 * F_DENSE, D), (D, F_DENSE)):
            w, x, y = randn(out_width, width, scale=0.02), randn(num_tokens, width), None
            y = randn(num_tokens, out_width)
            shape, tflop = (
                f"{num_tokens}x{width}x{out_width}",
                2e-12 * num_tokens * width * out_width,
            )
            gb = out_width * width * 2e-9
            attempt("dense", shape, "linear", lambda: F.linear(x, w), gb, tflop)
            attempt("dense", shape, "addmm_", lambda: y.addmm_(x, w.T), gb, tflop)


def bench_rows():
    for num_tokens in (64, 1024, 32768):
        x, wide = randn(num_tokens, D), randn(num_tokens, 3 * D)
        conv_weight = randn(D, 3)
        past, pasts = randn(1, 2, D), randn(num_tokens, 2, D)
        mb = num_tokens * D * 2e-9
        attempt("rows", f"norm {num_tokens}", "", lambda: rows.norm(x, x[0], 1e-5), gb=2 * mb)
        attempt(
            "rows", f"conv {num_tokens}", "", lambda: rows.conv(wide[None], conv_weight, past),
            gb=4 * mb,
        )  # fmt: skip
        attempt(
            "rows", f"conv_step {num_tokens}", "",
            lambda: rows.conv_step(wide, conv_weight, pasts), gb=8 * mb,
        )  # fmt: skip
        gates = randn(num_tokens, 2 * F_DENSE)
        attempt("rows", f"silu_mul {num_tokens}", "", lambda: rows.silu_mul(gates), gb=12 * mb)
        qkv = randn(1, num_tokens, (N + 2 * M) * H)
        k, v = randn(1, M, num_tokens, H), randn(1, M, num_tokens, H)
        tables = attention.rope_tables(num_tokens, H, 1e6, torch.device("cuda"))
        lengths, norms = (
            torch.zeros(1, dtype=torch.int64, device="cuda"),
            (randn(H), randn(H), 1e-5),
        )
        attempt(
            "rows", f"rope store {num_tokens}", "",
            lambda: attention.store(qkv, norms, tables, k, v, lengths), gb=3 * mb,
        )  # fmt: skip
        if num_tokens <= 1024:
            logits = randn(num_tokens, V)
            ids, counts = (torch.zeros(num_tokens, dtype=torch.int64, device="cuda") for _ in "ab")
            attempt(
                "rows", f"greedy {num_tokens}", "",
                lambda: rows.choose_greedily(logits, ids, counts), gb=num_tokens * V * 2e-9,
            )  # fmt: skip


def main():
    kinds = sys.argv[1:] or ["gemv", "moe", "attention", "dense", "rows"]
    print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)
    for kind in kinds:
        globals()[f"bench_{kind}"]()
        torch.cuda.empty_cache()
    for r in RESULTS:
        if "error" in r:
            print(r["kind"], r["shape"], r["setting"], r["error"])
            continue
        rate = " ".join(
            f"{r[key]:8.0f} {unit}"
            for key, unit in (("gb_per_s", "GB/s"), ("tflop_per_s", "TFLOP/s"))
            if key in r
        )
        print(f"{r['kind']:9} {r['shape']:20} {r['ms'] * 1e3:10.1f} us {rate}  {r['setting']}")
    print(json.dumps(RESULTS))


if __name__ == "__main__":
    with torch.no_grad():
        main()
