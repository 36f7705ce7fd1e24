"""Do the tasks ask for what blocks differ in? Stacks of one mixer, trained on each task alone.

``python benchmarks/skills.py [--device cuda] [--steps 3000] [--tasks recall] [--stacks swa,gqa]``

Prints, for each task and stack, the score at the trained length and at 4 times it, 0 at chance (of
recall: answering by value counts) and 1 at perfect, and one JSON line. A recall task is hard enough
where stacks of short convolutions alone and of sliding windows alone close less than a third of the
way, in bits.
"""

import argparse
import json
import time

import numpy as np
import torch

from archloop.evals.decoder_model import DecoderModel
from archloop.evals.tasks.multi_query_recall import MultiQueryRecall
from archloop.evals.tasks.state_tracking import StateTracking
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.training.batch import Batch
from archloop.training.loop import TrainingConfig, train

NUM_BLOCKS = 6
TASKS = {
    "recall": MultiQueryRecall(),
    **{
        group: StateTracking(StateTracking.Config(group=group))
        for group in ("parity", "mod5", "s3")
    },
}
STACKS = {
    "short_conv": ["short_conv"],
    "swa": ["swa"],
    "gqa": ["gqa"],
    "short_conv+gqa": ["short_conv", "short_conv", "gqa"],
    "mamba2": ["mamba2"],
    "gla": ["gla"],
    "gated_deltanet": ["gated_deltanet"],
    "s5": ["s5"],
}
SETTINGS = {"swa": {"window": 32, "head_dim": 32}, "gqa": {"head_dim": 32}}


def spec(mixers: list[str], width: int, vocab_size: int) -> StackSpec:
    channel = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    names = [mixers[block % len(mixers)] for block in range(NUM_BLOCKS)]
    return StackSpec(
        d_model=width,
        vocab_size=vocab_size,
        blocks=tuple(
            BlockSpec(
                mixers=(MixerSpec(name=name, config=SETTINGS.get(name, {})),),
                channel_mixer=channel,
            )
            for name in names
        ),
    )


def learn(name, mixers, task, arguments):
    torch.manual_seed(arguments.seed)
    decoder = Decoder(spec(mixers, arguments.width, task.vocab_size)).to(arguments.device)

    def batches(step):
        ids_NT, targets_NT = task.examples("train", step, arguments.batch_size)
        return [Batch(torch.from_numpy(ids_NT), torch.from_numpy(targets_NT), 1.0)]

    config = TrainingConfig(
        num_steps=arguments.steps, learning_rate=arguments.rate, warmup_steps=100
    )
    began = time.monotonic()
    result = train(decoder, batches, config, arguments.seed)
    decoder.eval()
    found = {"seconds": time.monotonic() - began, "diverged": result.diverged}
    for factor in (1, 4):
        score = task.at_length(factor).run(DecoderModel(decoder), limit=512)
        found[f"{factor}x"] = {
            "value": score.value,
            "error": score.standard_error,
            "share": score.normalized,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--stacks", default=",".join(STACKS))
    arguments = parser.parse_args()
    results = {}
    for task in arguments.tasks.split(","):
        for stack in arguments.stacks.split(","):
            found = learn(stack, STACKS[stack], TASKS[task], arguments)
            results[f"{task}/{stack}"] = found
            shares = ", ".join(f"{f} {found[f]['share']:6.3f}" for f in ("1x", "4x"))
            print(f"{task:8s} {stack:16s} {shares}   {found['seconds']:.0f} s", flush=True)
    hard = [
        results[f"recall/{stack}"]["1x"]["share"]
        for stack in ("short_conv", "swa")
        if f"recall/{stack}" in results
    ]
    if hard:
        verdict = "less" if max(hard) < 1 / 3 else "more"
        print(f"recall: local mixing closes {max(hard):.3f} of the way, {verdict} than a third")
    print(json.dumps({"settings": vars(arguments), "results": results}, default=np.asarray))


if __name__ == "__main__":
    main()
