"""How fast proxies are trained on one GPU: python benchmarks/proxy_training.py [options]

Trains the two proxies that the project holds itself to (54M at 64 x 1,024 tokens a step, 6.3M at
256 x 256) and the first with each other family in place of short convolution, all through
`training.loop.train`, so that drawing the batches, clipping, the optimiser and reading the losses
are in the figures. Of these two it also says how long the card waits for data: the time of a step
over that of one whose batch has been drawn before, in turns. Beside them transformers' LFM2 of the
same shape, eager and compiled. Prints a table and one JSON line.

    --families a,b   families in place of short convolution (all: every one but cfc; none)
    --peers          transformers' LFM2 too
    --profile        where a step of each spends its time, by kernel
    --steps N        steps of a group, of which three are timed (default 10)
"""

import argparse
import gc
import itertools
import json
import statistics
import time

import numpy as np
import torch

from archloop import registry
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.training.batch import Batch, Batches, random_windows
from archloop.training.loop import TrainingConfig, train

BIG, SMALL = "54M", "6.3M"
SHAPES = {BIG: (64, 1024), SMALL: (256, 256)}
ATTENTION = {BIG: {2, 5, 8, 10, 12, 14}, SMALL: {2, 5}}
WINDOW = 64
"""Of sliding-window attention: the widest that a proxy of this length is for."""


def spec_of(size: str, family: str = "short_conv") -> StackSpec:
    width, blocks, vocab = (512, 16, 8192) if size == BIG else (256, 8, 512)
    expansion = 2.75 if size == BIG else 8 / 3
    settings = {"gqa": {"head_dim": 64, "queries_per_kv": 2}, "swa": {"window": WINDOW}}

    def block(index: int) -> BlockSpec:
        name = "gqa" if index in ATTENTION[size] else family
        return BlockSpec(
            mixers=(MixerSpec(name=name, config=settings.get(name, {})),),
            channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": expansion}),
        )

    return StackSpec(
        d_model=width, vocab_size=vocab, blocks=tuple(block(index) for index in range(blocks))
    )


def batches_of(spec: StackSpec, rows: int, length: int):
    tokens = np.random.default_rng(0).integers(spec.vocab_size, size=10_000_000, dtype=np.int32)

    def batches(step: int) -> list[Batch]:
        ids, targets = random_windows(tokens, np.random.default_rng([0, step]), rows, length)
        return [Batch(torch.from_numpy(ids), torch.from_numpy(targets))]

    return batches


def step_seconds(
    decoder: Decoder, batches: Batches, config: TrainingConfig, steps: int
) -> tuple[list[float], float]:
    """Seconds a step in each group but the first, which captures its step, and the last loss."""
    times: list[float] = []

    def note(step: int, loss: float) -> None:
        times.append(time.perf_counter())

    result = train(decoder, batches, config, 0, note, wait_every=steps)
    # Told in groups.
    ends = times[steps - 1 :: steps]
    return [(b - a) / steps for a, b in itertools.pairwise(ends)], result.losses[-1][1]


def data_wait(decoder: Decoder, batches: Batches, config: TrainingConfig, steps: int) -> dict:
    """Share of a step that is spent waiting for its batch, with its standard error.

    Steps that draw their batches and steps on one that is there already, three times in turns.
    """
    held = batches(0)
    shares = []
    for _ in range(3):
        drawn_s, held_s = (
            statistics.median(step_seconds(decoder, each, config, steps)[0])
            for each in (batches, lambda step: held)
        )
        shares.append(drawn_s / held_s - 1)
    return {
        "data_wait_share": statistics.mean(shares),
        "data_wait_error": statistics.stdev(shares) / len(shares) ** 0.5,
    }


def measure(
    spec: StackSpec, rows: int, length: int, precision: str, steps: int, waits: bool
) -> dict:
    """Tokens a second once steps are captured, and seconds until then."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    batches = batches_of(spec, rows, length)
    batches(0)
    torch.manual_seed(0)
    decoder = Decoder(spec).cuda()

    def config(num_steps: int) -> TrainingConfig:
        return TrainingConfig(
            num_steps=num_steps, batch_size=rows, seq_len=length, precision=precision
        )

    torch.cuda.synchronize()
    began = time.perf_counter()
    train(decoder, batches, config(1), 0)
    first = time.perf_counter() - began
    groups, loss = step_seconds(decoder, batches, config(4 * steps), steps)
    seconds = statistics.median(groups)
    waited = data_wait(decoder, batches, config(4 * steps), steps) if waits else {}
    return {
        "params": sum(p.numel() for p in decoder.parameters()),
        "batch": rows,
        "length": length,
        "tok_per_s": rows * length / seconds,
        "step_ms": 1e3 * seconds,
        "step_ms_spread": 1e3 * (max(groups) - min(groups)),
        "first_step_s": first,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
        "last_loss": loss,
        **waited,
    }


def tried(name: str, spec: StackSpec, rows: int, length: int, args, waits: bool = False) -> dict:
    while True:
        try:
            found = measure(spec, rows, length, args.precision, args.steps, waits)
            break
        except torch.OutOfMemoryError:
            rows //= 2
        except Exception as error:  # the table goes on without it, and says why
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
            break
    if "error" in found:
        print(f"{name:16} {found['error']}", flush=True)
    else:
        print(
            f"{name:16} {found['params'] / 1e6:6.1f}M {found['batch']:4} x {found['length']:5} "
            f"{found['tok_per_s'] / 1e6:7.3f}M tok/s {found['step_ms']:7.2f} ms "
            f"first {found['first_step_s']:5.1f} s {found['peak_memory_bytes'] / 2**30:5.1f} GiB",
            flush=True,
        )
        if "data_wait_share" in found:
            share, error = found["data_wait_share"], found["data_wait_error"]
            print(f"{'':16} waits for data {share:.2%} +- {error:.2%} of a step", flush=True)
    if args.profile and "error" not in found:
        profile(spec, rows, length, args.precision)
    return found


def profile(spec: StackSpec, rows: int, length: int, precision: str) -> None:
    """Milliseconds a step by kernel, the longest first."""
    decoder, batches = Decoder(spec).cuda(), batches_of(spec, rows, length)
    config = TrainingConfig(num_steps=8, batch_size=rows, seq_len=length, precision=precision)
    marks: list[torch.profiler.profile] = []

    def at(step: int, loss: float) -> None:
        if step == 3:
            marks.append(torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]))
            marks[0].__enter__()

    train(decoder, batches, config, 0, at, wait_every=4)
    torch.cuda.synchronize()
    marks[0].__exit__(None, None, None)
    events = sorted(marks[0].key_averages(), key=lambda e: -e.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    print(f"    {total / 4e3:.2f} ms a step")
    for event in events[:16]:
        each = event.self_device_time_total / 4e3
        print(f"    {each:7.2f} {event.count / 4:6.0f} {event.key[:100]}")


def peer(size: str, compiled: bool, steps: int) -> dict:
    """transformers' LFM2 of the same shape, under autocast with a fused optimiser."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    gc.collect()
    torch.cuda.empty_cache()
    torch._dynamo.reset()
    spec, (rows, length) = spec_of(size), SHAPES[size]
    hidden = spec.blocks[0].channel_mixer.config["expansion"] * spec.d_model
    config = Lfm2Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.d_model,
        intermediate_size=round(hidden / 8) * 8,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=spec.num_blocks,
        num_attention_heads=spec.d_model // 64,
        num_key_value_heads=spec.d_model // 128,
        layer_types=[
            "full_attention" if index in ATTENTION[size] else "conv"
            for index in range(spec.num_blocks)
        ],
    )
    torch.manual_seed(0)
    model = Lfm2ForCausalLM(config).cuda()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    run = torch.compile(model) if compiled else model
    ids = torch.randint(0, spec.vocab_size, (rows, length), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    times = []
    for _ in range(4):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) / steps)
    seconds = statistics.median(times[1:])
    found = {
        "params": sum(p.numel() for p in model.parameters()),
        "tok_per_s": rows * length / seconds,
        "step_ms": 1e3 * seconds,
        "first_step_s": first,
    }
    name = f"lfm2 {size} {'compiled' if compiled else 'eager'}"
    print(
        f"{name:20} {found['params'] / 1e6:5.1f}M {found['tok_per_s'] / 1e6:7.3f}M tok/s "
        f"{found['step_ms']:7.2f} ms first {first:5.1f} s",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default="none")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.precision}")
    found: dict[str, dict] = {}
    try:
        fill(found, args)
    finally:  # what there is, if it is stopped
        record = {"benchmark": "proxy_training", "device": torch.cuda.get_device_name()}
        print(json.dumps(record | {"torch": torch.__version__, "results": found}))


def fill(found: dict[str, dict], args: argparse.Namespace) -> None:
    """Measure everything asked for."""
    began = time.perf_counter()
    for size in (BIG, SMALL):
        found[size] = tried(size, spec_of(size), *SHAPES[size], args, waits=True)
    # The same blocks in another order: a stack that was not seen, of blocks that were.
    reordered = spec_of(BIG)
    reordered = reordered.replace(blocks=reordered.blocks[::-1])
    found["54M reversed"] = tried("54M reversed", reordered, *SHAPES[BIG], args)
    if args.peers:
        for size in (BIG, SMALL):
            for compiled in (False, True):
                key = f"peer {size} {'compiled' if compiled else 'eager'}"
                found[key] = peer(size, compiled, args.steps)
    names = [] if args.families == "none" else args.families.split(",")
    if args.families == "all":
        names = [n for n in registry.names("mixers") if n not in ("cfc", "gqa", "short_conv")]
    for name in names:
        found[name] = tried(name, spec_of(BIG, name), *SHAPES[BIG], args)
        print(f"{'':16} after {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
