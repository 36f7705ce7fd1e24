"""How long a suite takes: python benchmarks/suite_seconds.py [--device cuda] [--packed FILE]

Scores two stacks with random weights, whose replies are as long as they may be: all evaluations of
suite `full` that can be asked here on one of 20 million parameters, and what a trial's proxy is
scored by (held-out windows and five tasks of token rows, 512 examples each) on one of 8 million.
Bytes are the tokens. Drawing the questions is timed apart; `--packed` reads them from a file of
`archloop eval --pack` instead. Prints the slowest evaluations and one JSON line.

    --limit N        examples of each (default: as many as each takes)
    --batch-size N   rows at a time (default 512)
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from archloop.evals import bits_per_byte, packing, runner, suites
from archloop.evals.codecs import ByteCodec
from archloop.evals.decoder_model import DecoderModel
from archloop.stack import cost
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

LAYOUT = ("short_conv", "short_conv", "short_conv", "gqa")
VOCAB = 8192
TASKS = (
    *("in_context_recall", "fuzzy_in_context_recall", "noisy_in_context_recall"),
    *("selective_copying", "multi_query_recall"),
)
NUM_WINDOWS, LENGTH = 256, 1024


def decoder_of(width: int, num_blocks: int, device: str) -> Decoder:
    """A stack of short convolutions with attention in every fourth block."""
    channel = ChannelMixerSpec(name="swiglu", config={"expansion": 2.5})
    blocks = tuple(
        BlockSpec(mixers=(MixerSpec(name=LAYOUT[i % len(LAYOUT)]),), channel_mixer=channel)
        for i in range(num_blocks)
    )
    torch.manual_seed(0)
    spec = StackSpec(d_model=width, vocab_size=VOCAB, blocks=blocks)
    return Decoder(spec).eval().to(device)


def full(asked: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """The whole suite."""
    began = time.monotonic()
    file = asked.packed
    if file is None:
        ready, _ = suites.parted(suites.load("full"))
        file = scratch / "packed.jsonl"
        packing.pack(ready, file, 0, asked.limit)
    evaluations = packing.unpack(file, 0, asked.limit)
    drawn = time.monotonic()
    decoder = decoder_of(384, 12, asked.device)
    codec, batch_size = ByteCodec(), asked.batch_size
    model = DecoderModel(decoder, codec, start=(256,), batch_size=batch_size)
    # What the first use of a card costs belongs to no evaluation.
    model.predict(np.zeros((1, 8), dtype=np.int64), np.ones((1, 8), dtype=bool))
    started = time.monotonic()
    results = runner.run(model, "random", evaluations, scratch / "results", limit=asked.limit)
    seconds = time.monotonic() - started
    for each in sorted(results.values(), key=lambda r: -r.seconds)[:8]:
        print(f"{each.name:28} {each.seconds:6.2f} s")
    return {
        "params": cost.num_params(decoder.spec),
        "evaluations": len(results),
        "seconds": seconds,
        "seconds_of_drawing": drawn - began,
    }


def of_a_trial(asked: argparse.Namespace) -> dict[str, object]:
    """Held-out windows and the tasks of a mixture."""
    decoder = decoder_of(256, 8, asked.device)
    model = DecoderModel(decoder, batch_size=128)
    rng = np.random.default_rng(0)
    windows_NT = rng.integers(VOCAB, size=(NUM_WINDOWS, LENGTH + 1))
    num_bytes_V = np.full(VOCAB, 3)
    model.predict(np.zeros((1, 8), dtype=np.int64), np.ones((1, 8), dtype=bool))
    began = time.monotonic()
    bits_per_byte.measure_parts(model, windows_NT, num_bytes_V)
    for name in TASKS:
        suites.make(name, {}).run(model, limit=asked.limit or 512)
    return {"params": cost.num_params(decoder.spec), "seconds": time.monotonic() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--packed", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=512)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = {"trial": of_a_trial(asked), "full": full(asked, Path(scratch))}
    name = torch.cuda.get_device_name() if asked.device.startswith("cuda") else asked.device
    print(json.dumps({"device": name, "torch": torch.__version__, **found}))


if __name__ == "__main__":
    main()
