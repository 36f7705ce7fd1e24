"""What a suite tells of a proxy: varied stacks trained on text and skills, and all scores of each.

    python benchmarks/proxies.py prepare --corpus DIR --data FILE
    python benchmarks/proxies.py reliability --data FILE --records FILE [--seconds S] [--workers N]
    python benchmarks/proxies.py ratios      --data FILE --records FILE [--seconds S] [--workers N]

1. `prepare` turns a corpus (`archloop corpus fetch`) and the training side of the suite's questions
   into tokens, once, on any machine; the file goes to the machine that trains.
2. `reliability` trains 26 stacks with two seeds each, at the whole number of tokens and at a tenth
   of it, and scores each by the suite's generated evaluations, by held-out text and by the tasks of
   its mixture. `ratios` trains six shares of attention among mamba2, equal in parameters.
3. Each training is a line of the records; one that stands there is not done again. The tables are
   printed at the end, and by `proxies_table.py` from records alone.

    --million N      tokens of a training, in millions (default 12)
    --seeds N        default 2; of `ratios` 4
    --limit N        examples of an evaluation, as they were prepared (default 128)
    --width N        of the stacks (default 192: 4 million parameters; 448: 20 million); by its
                     width a stack's rate is scaled
    --whole          no trainings of a tenth
    --blocks N       cut every stack to its first blocks, for a try
"""

import argparse
import functools
import io
import lzma
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jobs
import proxies_table

VOCAB = 4096
LENGTH, ROWS = 1024, 16
RATE, TENTH = 4e-3, 0.1
WIDTH = 192
NUM_WINDOWS = 128
SKILL_TOKENS = 150_000
"""Tokens of each evaluation's solved questions; evaluations with few facts have fewer."""
TASKS: dict[str, dict[str, Any]] = {
    "in_context_recall": {"settings": {"vocab_size": 32}},
    "fuzzy_in_context_recall": {},
    "noisy_in_context_recall": {},
    "selective_copying": {"settings": {"seq_len": 128}},
    "multi_query_recall": {"settings": {"num_pairs": 16, "seq_len": 128}},
    "memorization": {},
    "state_tracking": {"settings": {"group": "s3"}},
}
"""Tasks of token rows in the mixture, 16 rows a step each."""
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "C": ("short_conv", {"kernel": 3}),
    "A": ("gqa", {"head_dim": 32, "queries_per_kv": 2}),
    "W": ("swa", {"head_dim": 32, "queries_per_kv": 2, "window": 64}),
    "M": ("mamba2", {}),
    "G": ("gla", {}),
    "D": ("gated_deltanet", {}),
    "K": ("kda", {}),
    "H": ("hgrn2", {}),
    "S": ("s5", {}),
    "L": ("linear_cfc", {}),
}
STACKS: dict[str, tuple[str, float]] = {
    **{letter * 8: (letter * 8, 2.5) for letter in FAMILIES},
    **{
        layout: (layout, 2.5)
        for layout in (
            *("CCCACCCA", "AACCCCCC", "CCCCCCAA", "CWCACWCA", "CMCACMCA", "CGCACGCA"),
            *("CDCACDCA", "CHCACHCA", "MMMAMMMA", "DDDADDDA", "WWWAWWWA"),
        )
    },
    "CCCA": ("CCCA", 2.5),
    "AAAA": ("AAAA", 2.5),
    "CCCACCCACCCA": ("CCCACCCACCCA", 2.5),
    "CCCACCCA-thin": ("CCCACCCA", 1.0),
    "CCCACCCA-wide": ("CCCACCCA", 5.0),
}
"""By name: the order of mixers and the expansion of the channel mixers."""
RATIOS = {
    "1:0": "AAAAAAAAAAAA",
    "1:1": "MAMAMAMAMAMA",
    "1:3": "MMMAMMMAMMMA",
    "1:5": "MMMAMMMMMAMM",
    "1:11": "MMMMMMAMMMMM",
    "0:1": "MMMMMMMMMMMM",
}
"""Attention to mamba2, as arXiv 2510.04800 compares them (there 1:12 in place of 1:11)."""


def keys(asked: argparse.Namespace) -> list[str]:
    """Names of the trainings, in the order in which they are worth most."""
    end = "" if asked.width == WIDTH else f" {asked.width}"
    if asked.plan == "ratios":
        return [f"ratios {s} {seed} 1{end}" for seed in range(asked.seeds or 4) for s in RATIOS]
    return [
        f"reliability {stack} {seed} {share:g}{end}"
        for share in ((1.0,) if asked.whole else (1.0, TENTH))
        for seed in range(asked.seeds or 2)
        for stack in STACKS
    ]


# --- data ---------------------------------------------------------------------------------------


def skills() -> dict[str, Any]:
    """The suite's evaluations whose questions are drawn and may be trained on, by name."""
    from archloop.evals import suites
    from archloop.evals.text_tasks import ChoiceTask, ReplyTask

    return {
        name: each
        for name, each in suites.load("full").items()
        if isinstance(each, ChoiceTask | ReplyTask) and each.licence == "generated"
    }


def solved_questions(evaluation: Any) -> Iterator[str]:
    """Questions of its training side with their right answers, without end."""
    from archloop.evals.text_tasks import ChoiceTask

    seed = 0
    while True:
        for asked in evaluation.questions("train", seed, 256):
            if isinstance(evaluation, ChoiceTask):
                yield asked.context + asked.choices[asked.right]
            else:
                yield f"{asked.prompt} {asked.answers[0]}\n\n"
        seed += 1


def prepare(asked: argparse.Namespace, scratch: Path) -> None:
    """Text and skills as tokens, the tokenizer, and the questions to be asked, in one file."""
    from archloop.evals import packing
    from archloop.text import corpora, tokenizers
    from archloop.text.corpora import CorpusConfig

    config = CorpusConfig(source="files", paths=(str(asked.corpus),), field="text")
    read = corpora.load(config, Path())
    samples = [text for e in skills().values() for text in islice(solved_questions(e), 64)]
    tokenizer = tokenizers.train([*read.train[::10], *samples], VOCAB)
    order = np.random.default_rng(0).permutation(len(read.train))
    parts, size = [], 0
    for place in order:
        parts.append(tokenizer.encode_documents([read.train[place]]))
        size += len(parts[-1])
        if size > asked.text_million * 1e6:
            break
    print(f"text: {size / 1e6:.1f}M tokens of {len(parts)} documents", flush=True)
    for name, evaluation in skills().items():
        known: set[str] = set()
        size = 0
        # Where there are few different questions, they are not repeated for long.
        for number, text in enumerate(solved_questions(evaluation)):
            if size > SKILL_TOKENS or number > 20 * len(known) + 64:
                break
            known.add(text)
            parts.append(tokenizer.encode_documents([text]))
            size += len(parts[-1])
        print(f"{name}: {size / 1e3:.0f}k tokens of {len(known)} questions", flush=True)
    questions = scratch / "questions.jsonl"
    packing.pack(skills(), questions, seed=0, limit=asked.limit)
    # Documents in any order, so that a window holds text and skills.
    mixed = np.random.default_rng(1).permutation(len(parts))
    heldout_T = tokenizer.encode_documents(read.heldout)[: 4 * NUM_WINDOWS * LENGTH]
    arrays = {
        "train_T": np.concatenate([parts[i] for i in mixed]).astype(np.uint16),
        "heldout_T": heldout_T.astype(np.uint16),
        "tokenizer": np.frombuffer(tokenizer.to_json().encode(), np.uint8),
        "questions": np.frombuffer(questions.read_bytes(), np.uint8),
    }
    unpacked = io.BytesIO()
    np.savez(unpacked, **arrays)
    asked.data.write_bytes(lzma.compress(unpacked.getvalue(), preset=6))
    size = asked.data.stat().st_size
    print(f"{len(arrays['train_T']) / 1e6:.1f}M tokens, {size / 2**20:.0f} MiB")


class Data(NamedTuple):
    """What all trainings share: text and tasks, their settings, and the evaluations in text."""

    mixture: Any
    config: Any
    evaluations: dict[str, Any]


@functools.cache
def load(file: Path, limit: int) -> Data:
    """The prepared file as a proxy's data and settings; read once a process."""
    from archloop.evals import packing
    from archloop.proxy.config import ProxyConfig, TaskShare
    from archloop.proxy.mixture import ProxyData, make_task
    from archloop.text import tokenizers
    from archloop.training.loop import TrainingConfig

    with np.load(io.BytesIO(lzma.decompress(file.read_bytes()))) as arrays:
        train_T, heldout_T = (arrays[k].astype(np.int32) for k in ("train_T", "heldout_T"))
        tokenizer = tokenizers.from_json(arrays["tokenizer"].tobytes().decode())
        with tempfile.TemporaryDirectory() as scratch:
            questions = Path(scratch) / "questions.jsonl"
            questions.write_bytes(arrays["questions"].tobytes())
            evaluations = packing.unpack(questions, seed=0, limit=limit)
    shares = {name: TaskShare(batch_size=16, weight=0.2, **each) for name, each in TASKS.items()}
    tasks, first = {}, VOCAB
    for name, share in shares.items():
        task = make_task(name, share.settings)
        tasks[name] = (task, first)
        first += task.vocab_size
    config = ProxyConfig(
        vocab_size=VOCAB,
        tasks=shares,
        text_parts=True,
        num_text_windows=NUM_WINDOWS,
        training=TrainingConfig(seq_len=LENGTH, batch_size=ROWS),
    )
    data = ProxyData(
        first, VOCAB, tasks, train_T, heldout_T, tokenizer.num_bytes_V, file.name, tokenizer
    )
    return Data(data, config, evaluations)


# --- one training -------------------------------------------------------------------------------


def spec_of(layout: str, expansion: float, vocab: int, width: int) -> Any:
    from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

    channel = ChannelMixerSpec(name="swiglu", config={"expansion": expansion})
    mixers = [MixerSpec(name=FAMILIES[x][0], config=FAMILIES[x][1]) for x in layout]
    blocks = tuple(BlockSpec(mixers=(mixer,), channel_mixer=channel) for mixer in mixers)
    return StackSpec(d_model=width, vocab_size=vocab, blocks=blocks)


def chosen_spec(asked: argparse.Namespace, stack: str, vocab: int) -> Any:
    """Of `ratios` each has as many parameters as attention alone at an expansion of 2.5."""
    from archloop.stack import cost

    blocks, width = asked.blocks, asked.width
    if asked.plan == "reliability":
        layout, expansion = STACKS[stack]
        return spec_of(layout[:blocks], expansion, vocab, width)
    wanted = cost.num_params(spec_of(RATIOS["1:0"][:blocks], 2.5, vocab, width))
    fits = [spec_of(RATIOS[stack][:blocks], 0.5 + i / 32, vocab, width) for i in range(128)]
    return min(fits, key=lambda spec: abs(cost.num_params(spec) - wanted))


def train_and_score(asked: argparse.Namespace, key: str) -> jobs.Record:
    """Train and score; what the record keeps."""
    import torch

    from archloop.proxy import scoring
    from archloop.proxy.mixture import batches_of_step
    from archloop.stack import cost
    from archloop.stack.decoder import Decoder
    from archloop.training.loop import TrainingConfig, train

    stack, seed, share = key.split()[1:4]
    data = load(asked.data, asked.limit)
    spec = chosen_spec(asked, stack, data.mixture.vocab_size)
    torch.manual_seed(int(seed))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = Decoder(spec).to(device)
    steps = max(2, round(asked.million * 1e6 * float(share) / (ROWS * LENGTH)))
    config = TrainingConfig(
        schedule="wsd", learning_rate=RATE, base_width=WIDTH, warmup_steps=max(2, steps // 50),
        decay_share=0.3, num_steps=steps, batch_size=ROWS, seq_len=LENGTH,
        precision="bfloat16" if device.type == "cuda" else "float32",
    )  # fmt: skip
    began = time.monotonic()

    def batches(step: int) -> Any:
        return batches_of_step(data.config, data.mixture, int(seed), step)

    result = train(decoder, batches, config, int(seed))
    trained = time.monotonic()
    scores = {}
    if not result.diverged:
        scores = scoring.evaluate(decoder, data.mixture, data.config)
        if asked.plan == "reliability":
            scores |= suite_scores(decoder, data, asked.limit)
    return {
        "plan": asked.plan,
        "stack": stack,
        "seed": int(seed),
        "share": float(share),
        "million": asked.million,
        "tokens": result.num_tokens,
        "diverged": result.diverged,
        "params": cost.num_params(spec),
        "state_bytes": cost.state_bytes(spec, LENGTH),
        "decode_flops": cost.decode_flops(spec, LENGTH),
        "scores": {
            name: [score.value, score.standard_error, score.normalized, score.category]
            for name, score in scores.items()
        },
        "seconds_train": trained - began,
        "seconds_eval": time.monotonic() - trained,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def suite_scores(decoder: Any, data: Data, limit: int) -> dict[str, Any]:
    """Every generated evaluation of the suite, asked in the tokenizer of the training."""
    from archloop.evals.decoder_model import DecoderModel

    tokenizer = data.mixture.tokenizer
    end = (tokenizer.end_of_text,)
    model = DecoderModel(decoder, tokenizer, start=end, stop_ids=end, batch_size=limit)
    return {name: each.run(model, limit=limit) for name, each in data.evaluations.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", choices=("prepare", "reliability", "ratios"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--text-million", type=float, default=14)
    parser.add_argument("--records", type=Path, default=Path("proxies.jsonl"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--million", type=float, default=12)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--blocks", type=int)
    asked = parser.parse_args()
    if asked.plan == "prepare":
        with tempfile.TemporaryDirectory() as scratch:
            prepare(asked, Path(scratch))
        return
    train = functools.partial(train_and_score, asked)
    jobs.run(keys(asked), train, asked.records, workers=asked.workers, seconds=asked.seconds)
    proxies_table.main([str(asked.records)])


if __name__ == "__main__":
    main()
