"""LFM2-1.2B and 24B-A2B on one GPU in bf16: ours, transformers, and the floors of the card.

    python benchmarks/inference.py [--models lfm2-1.2b lfm2-24b-a2b] [--no-peer] [--no-serving]

Other dense presets whose family transformers has, such as lfm3-1.7b, are measured likewise.
Random weights; decode at depth 512. Every fast path is compared with the plain one on fresh random
inputs first, and its speed is printed only if it passed. Prints a table and one JSON line. Floors
take the two ceilings measured first: bytes that a step must read at the read bandwidth, or FLOPs at
the matrix rate, attention counted at that same rate, which no attention kernel reaches. For dense
models, decode at batch 1 is also timed compiled: transformers with its static cache, and our plain
decoder's step in a CUDA graph.
"""

import argparse
import json
import time

import torch

from archloop.runtimes.cuda.fused import FusedDecoder
from archloop.runtimes.cuda.prompts import PromptGraphs
from archloop.stack import cost
from gpu_models import balance, peer_of, random_decoder, random_ids, restart
from parity import (
    compare_prefill_blocks,
    compare_step_blocks,
    compare_with_peer,
    rms,
    summary,
    worst,
)

DEPTH = 512
BLOCK_LIMIT = 2e-2
"""Largest difference that a block's fast form may show, over the block's largest value."""

REQUIRED = {
    ("lfm2-1.2b", "decode b1 ms"): (1.2, 1.05),
    ("lfm2-1.2b", "prefill 4096 ms"): (17, 15),
    ("lfm2-1.2b", "prefill 32768 ms"): (195, 175),
    ("lfm2-24b-a2b", "decode b1 ms"): (2.6, 2.2),
    ("lfm2-24b-a2b", "decode b64 ms"): (21, 19),
    ("lfm2-24b-a2b", "prefill 4096 ms"): (55, 45),
    ("lfm2-24b-a2b", "prefill 32768 ms"): (430, 370),
    ("lfm2-24b-a2b", "serve decode tok/s"): (30000, 36000),
    ("lfm2-24b-a2b", "serve end to end tok/s"): (18000, 22000),
}


def median_ms(run, repeats, warm=1):
    return times_ms(run, repeats, warm)[repeats // 2]


def times_ms(run, repeats, warm=1):
    """Milliseconds of each timed run, sorted."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)


def ceilings():
    """Read bandwidth in bytes/s and bf16 matrix rate in FLOP/s of this card, on random data."""
    if not torch.cuda.is_available():
        raise SystemExit("this measures an NVIDIA GPU, and PyTorch finds none here")
    x = torch.randn(1 << 30, dtype=torch.bfloat16, device="cuda")
    read = 2 * x.numel() / median_ms(x.sum, 10, 3) * 1e3
    del x
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return read, 2 * 8192**3 / median_ms(lambda: a @ b, 20, 3) * 1e3


def floors(spec, read, matmul, distinct):
    """Least time of each figure, from the bytes and FLOPs that it cannot avoid."""

    def weights_read(batch):
        total = cost.num_active_params(spec) if batch == 1 else cost.num_params(spec)
        if batch > 1 and distinct:
            moes = [b for b in spec.blocks if b.channel_mixer.name == "moe"]
            config = moes[0].channel_mixer.config
            width = int(config["expansion"] * spec.d_model)
            unused = config["num_experts"] - distinct
            total -= len(moes) * unused * 3 * spec.d_model * width
        return 2 * total + batch * cost.state_bytes(spec, DEPTH, torch.bfloat16)

    found = {f"decode b{b} ms": weights_read(b) / read * 1e3 for b in (1, 64)}
    for num_tokens in (4096, 32768):
        compute = cost.prefill_flops(spec, num_tokens) / matmul
        floor = 1e3 * max(compute, weights_read(64) / read)
        found[f"prefill {num_tokens} ms"] = found[f"prefill {num_tokens} captured ms"] = floor
    steps = range(512, 768)
    decode = sum(
        (2 * cost.num_params(spec) + 1024 * cost.state_bytes(spec, depth, torch.bfloat16)) / read
        for depth in steps
    )
    found["serve decode tok/s"] = 1024 * len(steps) / decode
    prompts = 1024 * cost.prefill_flops(spec, 512) / matmul
    found["serve end to end tok/s"] = 1024 * len(steps) / (decode + prompts)
    return found


def check(fused, report):
    """Compare with the plain path everything that is timed below; raise if a block is off.

    Sizes are those that are timed, since each takes block sizes, so kernels, of its own.
    """
    decoder = fused.decoder
    for batch, time_ in ((2, 600), (1, 4096), (1, 32768)):
        blocks = compare_prefill_blocks(fused, random_ids(decoder, batch, time_))
        report[f"prefill {batch}x{time_} blocks"] = summary(blocks)
    ids = random_ids(decoder, 2, 600)
    plain, mine = decoder.init_state(2, 640), fused.init_state(2, 640)
    ref, out = decoder.prefill(ids, plain), fused.prefill(ids, mine)
    report["prefill logits"] = {"rms": rms(out, ref), "max": worst(out, ref)}
    sizes = [(1, DEPTH), (64, DEPTH)] + ([(1024, 48)] if fused.moes else [])
    for batch, depth in sizes:
        ids = random_ids(decoder, batch, depth)
        state = fused.init_state(batch, depth + 8)
        fused.prefill(ids, state)
        blocks = compare_step_blocks(fused, ids[:, 0], state)
        report[f"step b{batch} blocks"] = summary(blocks)
        graph, plain = fused.capture(state), state.snapshot()
        errors = []
        for t in range(4):
            ref = decoder.step(ids[:, t], plain)
            out = graph.step(ids[:, t])
            errors.append({"rms": rms(out, ref), "max": worst(out, ref)})
        report[f"step b{batch} logits"] = errors
        del graph, state, plain
    for where, found in report.items():
        if where.endswith("blocks"):
            for kind, error in found.items():
                assert error["max"] <= BLOCK_LIMIT, f"{where}, {kind}: {error}"


def measure_ours(fused, serving):
    """Medians of the fused paths, by name; captured prompts are what `archloop profile` times."""
    found = {}
    for num_tokens in (4096, 32768):
        ids = random_ids(fused.decoder, 1, num_tokens)
        state = fused.init_state(1, num_tokens)

        def prefill(ids=ids, state=state):
            restart(state)
            return fused.prefill(ids, state)

        found[f"prefill {num_tokens} ms"] = median_ms(prefill, 5, 2)
        prompts = PromptGraphs(fused, state)

        def captured(ids=ids, state=state, prompts=prompts):
            restart(state)
            return prompts.prefill(ids)

        found[f"prefill {num_tokens} captured ms"] = median_ms(captured, 5, 2)
        del prompts
    for batch in (1, 64):
        found |= measure_decode(fused, batch, DEPTH)
    if serving:
        found |= serve(fused)
    return found


def measure_decode(fused, batch, depth):
    """Median and 95th percentile of captured steps from a depth, on fresh random tokens."""
    state = fused.init_state(batch, depth + 64)
    fused.prefill(random_ids(fused.decoder, batch, depth), state)
    graph = fused.capture(state)
    distinct, times = [], []
    for token in random_ids(fused.decoder, 60, batch):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.ids_B.copy_(token)
        start.record()
        graph.step()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
        if batch > 1 and fused.moes:
            distinct.append(float((fused.counts_LE > 0).sum(1).float().mean()))
    times = sorted(times[10:])
    found = {
        f"decode b{batch} ms": times[len(times) // 2],
        f"decode b{batch} p95 ms": times[int(len(times) * 0.95)],
    }
    if distinct:
        found[f"distinct experts b{batch}"] = sum(distinct) / len(distinct)
    return found


def serve(fused, batch=1024, prompt=512, new=256):
    """Prompts in, greedy tokens out, as a server at a steady batch would."""
    state = fused.init_state(batch, prompt + new)
    ids = random_ids(fused.decoder, batch, prompt)
    graph = fused.capture(state)
    fused.prefill(ids[:64], fused.init_state(64, prompt))
    torch.cuda.synchronize()
    begin = time.perf_counter()
    logits = fused.prefill(ids, state)
    graph.ids_B.copy_(logits.argmax(-1))
    torch.cuda.synchronize()
    middle = time.perf_counter()
    # The prompt's logits gave the first new token; each step gives one more.
    for _ in range(new - 1):
        graph.step()
    torch.cuda.synchronize()
    end = time.perf_counter()
    distinct = float((fused.counts_LE > 0).sum(1).float().mean())
    return {
        "serve prefill s": middle - begin,
        "serve decode tok/s": batch * (new - 1) / (end - middle),
        "serve end to end tok/s": batch * new / (end - begin),
        "serve distinct experts": distinct,
        "serve peak GiB": torch.cuda.max_memory_allocated() / 2**30,
    }


def measure_peer(peer, decoder, batches=(1, 64)):
    """The peer as its users run it: eager kernels, dynamic cache, SDPA."""
    found = {}
    with torch.inference_mode():
        for num_tokens in (4096, 32768):
            ids = random_ids(decoder, 1, num_tokens)
            ms = median_ms(lambda ids=ids: peer(ids, use_cache=True, logits_to_keep=1), 3)
            found[f"prefill {num_tokens} ms"] = ms
        for batch in batches:
            ids = random_ids(decoder, batch, DEPTH)
            out = peer(ids, use_cache=True, logits_to_keep=1)
            token, times = out.logits[:, -1:].argmax(-1), []
            for _ in range(25):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                out = peer(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
                torch.cuda.synchronize()
                times.append((time.perf_counter() - begin) * 1e3)
            found[f"decode b{batch} ms"] = sorted(times[5:])[10]
    return found


def measure_compiled(peer, decoder, fused):
    """Decode at batch 1 compiled: the peer's static cache, and our plain step in a CUDA graph."""
    step_ms, error = plain_step_compiled(decoder, fused)
    found = {"plain step, compiled, CUDA graph ms": step_ms, "its logits, rms": error}
    try:
        found |= peer_compiled(peer, decoder)
    except Exception as reason:
        # Not every family compiles over a static cache; its other figures stand without it.
        print(f"  transformers compiled with a static cache: {type(reason).__name__}: {reason}")
    torch.compiler.reset()
    return found


def peer_compiled(peer, decoder):
    """A token of transformers' `generate` over a static cache, which it compiles itself."""
    peer.generation_config.cache_implementation = "static"
    ids = random_ids(decoder, 1, DEPTH)

    def seconds(new):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        peer.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    # The cache is as long as the text will be, and graphs are compiled for its length.
    warm_up = seconds(257)
    times = [seconds(257) - seconds(1) for _ in range(3)]
    return {
        "static cache, warm-up s": warm_up,
        "static cache, compiled ms": sorted(times)[1] / 256 * 1e3,
    }


@torch.no_grad()
def plain_step_compiled(decoder, fused):
    """Milliseconds of the plain decoder's step under torch.compile, and its error from `fused`."""
    ids = random_ids(decoder, 1, DEPTH)
    states = [decoder.init_state(1, DEPTH + 64) for _ in range(2)]
    for state in states:
        fused.prefill(ids, state)
    state = states[0]
    state.freeze()
    step = torch.compile(lambda ids_B: decoder.step_unchecked(ids_B, state), dynamic=False)
    error = rms(step(ids[:, 0]), fused.step(ids[:, 0], states[1]))
    held, stream = ids[:, 0].clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held.copy_(step(held).argmax(-1))
    return median_ms(graph.replay, 40, 5), error


def kernel_choices(sparse):
    """The peer's own kernel sets: its default, then others."""

    def default(peer):
        peer.set_attn_implementation("sdpa")
        if sparse:
            peer.set_experts_implementation("grouped_mm")

    def eager_attention(peer):
        default(peer)
        peer.set_attn_implementation("eager")

    def eager_experts(peer):
        default(peer)
        peer.set_experts_implementation("eager")

    return [default, eager_attention] + ([eager_experts] if sparse else [])


def show(name, entry):
    ours, peer, floor = entry["ours"], entry["peer"], entry["floors"]
    heads = ("ours", "peer", "compiled", "floor", "required", "stretch")
    print(f"\n{name:38} " + " ".join(f"{head:>10}" for head in heads))
    for key, value in ours.items():
        required, stretch = REQUIRED.get((name, key), (None, None))
        compiled = entry["compiled"].get("static cache, compiled ms") if "b1 ms" in key else None
        cells = [value, peer.get(key), compiled, floor.get(key), required, stretch]
        texts = ["-" if c is None else f"{c:.4g}" for c in cells]
        notes = []
        if key in floor:
            rate = key.endswith("tok/s")
            notes.append(f"{value / floor[key] if rate else floor[key] / value:.0%} of the floor")
        if peer.get(key):
            notes.append(f"{peer[key] / value:.1f}x the peer")
        if compiled:
            notes.append(f"{compiled / value:.1f}x the peer compiled")
        print(f"  {key:36} " + " ".join(f"{t:>10}" for t in texts) + "  " + ", ".join(notes))
    for key, value in entry["compiled"].items():
        print(f"  {key:36} {value:10.4g}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["lfm2-1.2b", "lfm2-24b-a2b"])
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-serving", action="store_true")
    args = parser.parse_args()
    read, matmul = ceilings()
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "read_tb_per_s": read / 1e12,
        "matmul_tflop_per_s": matmul / 1e12,
        "attention_tflop_per_s_in_floors": matmul / 1e12,
        "models": {},
    }
    print(f"{result['device']}, torch {torch.__version__}: "
          f"{read / 1e12:.2f} TB/s read, {matmul / 1e12:.0f} TFLOP/s bf16; floors assume "
          f"attention at {matmul / 1e12:.0f} TFLOP/s")  # fmt: skip
    for name in args.models:
        torch.cuda.reset_peak_memory_stats()
        began = time.time()
        decoder = random_decoder(name)
        fused = FusedDecoder(decoder)
        entry = result["models"][name] = {"balance": balance(fused), "checks": {}}
        print(f"\n== {name}, load skew before and after balancing: {entry['balance']}", flush=True)
        check(fused, entry["checks"])
        for where, found in entry["checks"].items():
            print(f"  check {where}: {found}", flush=True)
        serving = not args.no_serving and bool(fused.moes)
        entry["ours"] = measure_ours(fused, serving)
        print(f"  ours after {time.time() - began:.0f} s: {entry['ours']}", flush=True)
        entry["peer"], entry["compiled"] = {}, {}
        if not args.no_peer:
            torch.cuda.empty_cache()
            peer = peer_of(decoder, name)
            ids, choices = random_ids(decoder, 4, 256), kernel_choices(bool(fused.moes))
            entry["parity"] = compare_with_peer(fused, peer, ids, choices)
            # With small embeddings a token's own logit no longer stands out, so that the most
            # likely token depends on what the blocks add.
            decoder.embedding.weight.mul_(0.2)
            entry["parity, small embeddings"] = compare_with_peer(fused, peer, ids, choices)
            decoder.embedding.weight.mul_(5.0)
            for key in ("parity", "parity, small embeddings"):
                print(f"  {key}: {json.dumps(entry[key])}", flush=True)
            entry["peer"] = measure_peer(peer, decoder)
            if not fused.moes:
                entry["compiled"] = measure_compiled(peer, decoder, fused)
                print(f"  compiled after {time.time() - began:.0f} s", flush=True)
            del peer
        distinct = entry["ours"].get("distinct experts b64")
        entry["floors"] = floors(decoder.spec, read, matmul, distinct)
        show(name, entry)
        print(f"  {name} took {time.time() - began:.0f} s", flush=True)
        del decoder, fused
        torch.cuda.empty_cache()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
