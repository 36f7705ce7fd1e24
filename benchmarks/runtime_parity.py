"""How far a runtime's logits are from eager PyTorch's: what its `parity_tolerance` rests on.

    python benchmarks/runtime_parity.py torch_cuda bf16 [--seeds 5]

Stacks of several depths, widths and mixers with random weights, several seeds each, compared as
each export is: a prompt in two parts, then decode steps, the largest difference of any logit in
standard deviations of the logits. Beside the distance of the runtime from eager PyTorch in its own
precision stand those of both from float32 on the same rounded weights. Stacks with experts are
measured twice: as they are, where near ties of router scores fall either way, and with experts
decided.
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from archloop import registry
from archloop.runtimes.deciding import decided_experts
from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.parity import distance, eager_logits, session_rows
from archloop.stack import presets
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

PROMPT, STEPS = 40, 6


def stack(layout, d_model, channel="swiglu"):
    """Blocks of a layout such as ``CCA``: convolution, attention."""
    mixers = {
        "C": MixerSpec(name="short_conv"),
        "A": MixerSpec(name="gqa", config={"head_dim": 64}),
    }
    config = {"num_experts": 8, "top_k": 2, "expansion": 1.0} if channel == "moe" else {}
    mixed = ChannelMixerSpec(name=channel, config=config)
    blocks = tuple(BlockSpec(mixers=(mixers[letter],), channel_mixer=mixed) for letter in layout)
    return StackSpec(d_model=d_model, vocab_size=4096, blocks=blocks)


def stacks():
    """Specs by name."""
    small = {f"{d} wide, {n} blocks": stack("CAC" * (n // 3) + "C" * (n % 3), d)
             for d, n in ((128, 3), (256, 3), (256, 16), (512, 16), (256, 40))}  # fmt: skip
    return small | {
        "256 wide, 16 attentions": stack("A" * 16, 256),
        "256 wide, 16 convolutions": stack("C" * 16, 256),
        "256 wide, 3 blocks, experts": stack("CAC", 256, "moe"),
        "256 wide, 16 blocks, experts": stack("CCAC" * 4, 256, "moe"),
        "lfm2-350m": presets.load("lfm2-350m"),
    }


def measure(runtime, quant, spec, seed, decided):
    """Distances (runtime to eager, runtime to float32, eager to float32) of one random decoder."""
    decoder = build_random(spec, seed)
    ids = np.random.default_rng(seed).integers(spec.vocab_size, size=PROMPT + STEPS).tolist()
    prompt, more = ids[:PROMPT], ids[PROMPT:]
    rounded = runtime.reference_dtype(quant)
    choose = decided_experts(decoder) if decided else nullcontext()
    with choose, tempfile.TemporaryDirectory() as folder:
        eager = eager_logits(decoder, prompt, more, rounded)
        exact = eager_logits(decoder, prompt, more, "float32", weights=rounded)
        export(runtime, decoder, Path(folder), quant, parity=False)
        session = runtime.open(Path(folder), torch.get_num_threads(), len(ids))
        found = session_rows(session, [prompt[:-3], prompt[-3:]], more)
        session.close()
    return distance(found, eager), distance(found, exact), distance(eager, exact)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runtime", nargs="?", default="torch_cuda")
    parser.add_argument("quant", nargs="?", default="bf16")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    runtime = registry.get("runtimes", args.runtime)()
    runtime.check(args.quant)
    runtime.start(torch.get_num_threads())
    found = {}
    heads = ("from eager", "from float32", "eager, float32")
    print(f"{args.runtime}, {args.quant}, {args.seeds} seeds: mean, largest")
    print(" " * 39 + " ".join(f"{head:>15}" for head in heads) + "  ratio")
    for name, spec in stacks().items():
        if reason := runtime.unsupported(spec):
            print(f"{name:35} {reason}")
            continue
        for decided in (False, True) if "experts" in name else (False,):
            row = f"{name}, decided" if decided else name
            seeds = range(args.seeds)
            values = np.array([measure(runtime, args.quant, spec, s, decided) for s in seeds])
            found[row] = values.tolist()
            cells = [f"{v.mean():.3f}, {v.max():.3f}" for v in values.T]
            ratio = (values[:, 0] / values[:, 2]).max()
            print(f"{row:38} " + " ".join(f"{c:>15}" for c in cells) + f" {ratio:6.2f}", flush=True)
    print(json.dumps({"runtime": args.runtime, "quant": args.quant, "distances": found}))


if __name__ == "__main__":
    main()
