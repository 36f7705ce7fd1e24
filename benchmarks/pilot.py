"""What a proxy training tells about a stack: python benchmarks/pilot.py PLAN --corpus DIR [options]

Trains stacks of 12 blocks at width 256, equal in parameters, on an English mix, and writes a record
of each training: held-out bits per byte of all tokens, of those that complete a repeated pair
(recall in real text) and of the others. Several processes share the card. A training whose record
exists is not done again, so a plan goes on where an earlier call stopped.

    noise        four stacks, three rates, more seeds of two: how sure is a ranking?
    tokens       the same stacks and seeds at fewer tokens: does the ranking hold?
    precision    varied stacks under bfloat16 and float32, the same seeds: does rounding matter?
    rounding     the same at 20 million tokens, every second block of them at width 128, which is
                 what three seeds in float32 can be paid for
    report       tables from the records, without training

    --corpus DIR     folder of texts (`archloop corpus fetch`)
    --records DIR    default: pilot-records
    --cache DIR      of the corpus's tokens (default: pilot-cache)
    --workers N      processes on the card (default 2)
    --seconds S      start no training after this (default: no limit)
    --million N      tokens of a training, in millions (default: the plan's)
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NUM_WINDOWS = 256


class Shape(NamedTuple):
    """Of stacks and batches; `every` keeps each second block of a layout, if 2."""

    width: int = 256
    vocab: int = 8192
    length: int = 1024
    rows: int = 32
    every: int = 1


SHAPES = {"rounding": Shape(width=128, vocab=2048, length=512, rows=64, every=2)}
EXPANSIONS = [1 + i / 32 for i in range(128)]
LAYOUTS = {
    "12C": "CCCCCCCCCCCC",
    "10C2A": "CCCACCCCACCC",
    "6C2A4M": "CMCAMCCMACMC",
    "6C2A4G": "CGCAGCCGACGC",
    "12A": "AAAAAAAAAAAA",
    "10C2W": "CCCWCCCCWCCC",
    "6C2A4K": "CKCAKCCKACKC",
    "6C2A4S": "CSCASCCSACSC",
    "10G2A": "GGGAGGGGAGGG",
    "10M2A": "MMMAMMMMAMMM",
    "6C2A4H": "CHCAHCCHACHC",
    "6C2A4L": "CLCALCCLACLC",
}
FAMILIES = {
    "C": ("short_conv", {"kernel": 3}),
    "A": ("gqa", {"head_dim": 64, "queries_per_kv": 2}),
    "W": ("swa", {"head_dim": 64, "queries_per_kv": 2, "window": 64}),
    "M": ("mamba2", {}),
    "G": ("gla", {}),
    "K": ("kda", {}),
    "S": ("s5", {}),
    "H": ("hgrn2", {}),
    "L": ("linear_cfc", {}),
}
FIRST = ["12C", "10C2A", "6C2A4M", "6C2A4G"]
RATES = (1.5e-3, 3e-3, 6e-3)


class Job(NamedTuple):
    """A training."""

    stack: str
    rate: float
    seed: int
    million: float
    precision: str = "bfloat16"

    @property
    def name(self) -> str:
        return f"{self.stack}-{self.rate:g}-{self.seed}-{self.million:g}M-{self.precision}"


def plan(name: str, million: float | None) -> list[Job]:
    """The trainings of a plan, in the order in which they are worth most."""
    if name == "noise":
        m = million or 40
        jobs = [Job(stack, RATES[1], seed, m) for seed in range(3) for stack in FIRST]
        jobs += [Job(stack, rate, 0, m) for rate in (RATES[0], RATES[2]) for stack in FIRST]
        jobs += [Job(s, RATES[1], seed, m) for seed in (3, 4, 5) for s in ("10C2A", "6C2A4M")]
        return jobs
    if name == "tokens":
        m = million or 10
        return [Job(s, rate, seed, m) for rate in (3e-3, 1e-3) for seed in range(4) for s in FIRST]
    m = million or (20 if name == "rounding" else 6)
    stacks = list(LAYOUTS)
    return [
        Job(s, RATES[1], seed, m, p)
        for seed in range(3)
        for s in stacks
        for p in ("float32", "bfloat16")
    ]


# --- one worker ---------------------------------------------------------------------------------


def spec_of(layout: str, shape: Shape):
    """A stack with as many parameters as short convolutions alone at expansion 2.5."""
    from archloop.stack import cost
    from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

    def spec(letters: str, expansion: float) -> StackSpec:
        channel = ChannelMixerSpec(name="swiglu", config={"expansion": expansion})
        return StackSpec(
            d_model=shape.width,
            vocab_size=shape.vocab,
            blocks=tuple(
                BlockSpec(
                    mixers=(MixerSpec(name=FAMILIES[letter][0], config=FAMILIES[letter][1]),),
                    channel_mixer=channel,
                )
                for letter in letters[:: shape.every]
            ),
        )

    wanted = cost.num_params(spec(LAYOUTS["12C"], 2.5))
    specs = [spec(layout, expansion) for expansion in EXPANSIONS]
    return min(specs, key=lambda candidate: abs(cost.num_params(candidate) - wanted))


class Text(NamedTuple):
    """Training and held-out tokens, and the bytes of each id."""

    train_T: np.ndarray
    heldout_T: np.ndarray
    num_bytes_V: np.ndarray


def load(corpus: Path, cache: Path, vocab: int) -> Text:
    """The corpus as tokens, made once; the tokenizer is trained on every tenth document."""
    file = cache / f"tokens-{vocab}.npz"
    if not file.exists():
        from archloop.text import corpora, tokenizers
        from archloop.text.corpora import CorpusConfig

        config = CorpusConfig(source="files", paths=(str(corpus),), field="text")
        read = corpora.load(config, Path())
        tokenizer = tokenizers.train(read.train[::10], vocab)
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"partial-{vocab}.npz")
        np.savez(
            partial,
            train_T=tokenizer.encode_documents(read.train),
            heldout_T=tokenizer.encode_documents(read.heldout),
            num_bytes_V=tokenizer.num_bytes_V,
        )
        partial.rename(file)
    with np.load(file) as arrays:
        return Text(**{name: arrays[name] for name in Text._fields})


def train_one(job: Job, data: Text, shape: Shape) -> dict[str, Any]:
    """Train and score; what the record keeps."""
    import torch

    from archloop.evals import bits_per_byte
    from archloop.evals.decoder_model import DecoderModel
    from archloop.stack.decoder import Decoder
    from archloop.training.batch import Batch, random_windows
    from archloop.training.loop import TrainingConfig, train

    spec = spec_of(LAYOUTS[job.stack], shape)
    torch.manual_seed(job.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = Decoder(spec).to(device)

    def batches(step: int) -> list[Batch]:
        # The seed alone decides the order, so that stacks of one seed see the same batches.
        rng = np.random.default_rng([job.seed, step])
        ids_BT, targets_BT = random_windows(data.train_T, rng, shape.rows, shape.length)
        return [Batch(torch.from_numpy(ids_BT), torch.from_numpy(targets_BT))]

    steps = round(job.million * 1e6 / (shape.rows * shape.length))
    config = TrainingConfig(
        schedule="wsd",
        learning_rate=job.rate,
        base_width=shape.width,
        warmup_steps=max(20, steps // 50),
        decay_share=0.3,
        num_steps=steps,
        batch_size=shape.rows,
        seq_len=shape.length,
        precision=job.precision,
    )
    began = time.monotonic()
    result = train(decoder, batches, config, job.seed)
    trained = time.monotonic()
    windows_NT = bits_per_byte.windows(data.heldout_T, NUM_WINDOWS, shape.length)
    scores = bits_per_byte.measure_parts(DecoderModel(decoder), windows_NT, data.num_bytes_V)
    losses = [loss for _, loss in result.losses]
    return {
        **job._asdict(),
        **shape._asdict(),
        "params": sum(p.numel() for p in decoder.parameters()),
        "tokens": result.num_tokens,
        "diverged": result.diverged,
        "bits": {name: score.value for name, score in scores.items()},
        "error": {name: score.standard_error for name, score in scores.items()},
        "last_loss": float(np.mean(losses[-50:])),
        "losses": [float(np.mean(part)) for part in np.array_split(losses, 40)],
        "seconds_train": trained - began,
        "seconds_eval": time.monotonic() - trained,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def work(args: argparse.Namespace) -> None:
    """Take trainings until none is left."""
    deadline = time.time() + args.seconds
    shape = SHAPES.get(args.plan, Shape())
    data = load(args.corpus, args.cache, shape.vocab)
    for job in plan(args.plan, args.million):
        record = args.records / f"{job.name}.json"
        if time.time() > deadline or record.exists() or not claim(args.records, job):
            continue
        found = train_one(job, data, shape)
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.rename(record)
        bits = " ".join(f"{value:.4f}" for value in found["bits"].values())
        print(
            f"{job.name:36} {bits}  {found['seconds_train']:5.1f} + {found['seconds_eval']:.1f} s",
            flush=True,
        )


def claim(folder: Path, job: Job) -> bool:
    """Whether this process is the first of this run that wants the training."""
    run = os.environ["PILOT_RUN"]
    try:
        os.close(os.open(folder / f".{job.name}.{run}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


# --- tables -------------------------------------------------------------------------------------

MEASURES = {
    "bits_per_byte": "all",
    "bits_per_byte_repeated": "repeated",
    "bits_per_byte_other": "other",
}


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for index, row in enumerate(rows):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")


def cells(records: list[dict[str, Any]]) -> dict[tuple, dict[str, dict[int, dict]]]:
    """Records by (tokens, rate, precision), stack and seed."""
    found: dict[tuple, dict[str, dict[int, dict]]] = defaultdict(lambda: defaultdict(dict))
    for r in records:
        if not r["diverged"]:
            found[r["million"], r["rate"], r["precision"]][r["stack"]][r["seed"]] = r
    return found


def pooled(groups: list[list[float]]) -> tuple[float, int]:
    """Standard deviation within groups, and its degrees of freedom."""
    groups = [g for g in groups if len(g) > 1]
    degrees = sum(len(g) - 1 for g in groups)
    if not degrees:
        return float("nan"), 0
    squares = sum(float(np.var(g, ddof=1)) * (len(g) - 1) for g in groups)
    return (squares / degrees) ** 0.5, degrees


def icc(groups: list[list[float]]) -> float:
    """Share of the variance of one training that is the stack's (one-way, unequal sizes)."""
    sizes = np.array([len(g) for g in groups])
    total, mean = sizes.sum(), np.concatenate(groups).mean()
    between = sum(n * (np.mean(g) - mean) ** 2 for n, g in zip(sizes, groups, strict=True))
    between /= len(groups) - 1
    within, _ = pooled(groups)
    each = (total - (sizes**2).sum() / total) / (len(groups) - 1)
    stacks = max(0.0, (between - within**2) / each)
    return float(stacks / (stacks + within**2))


def report_noise(found: dict) -> None:
    for (million, rate, precision), stacks in sorted(found.items()):
        print(f"\n{million:g}M tokens, rate {rate:g}, {precision}: mean (sd over seeds)\n")
        rows = [["stack", "parameters", "trainings", *MEASURES.values(), "s a training"]]
        for stack, seeds in stacks.items():
            each = list(seeds.values())
            row = [stack, f"{each[0]['params'] / 1e6:.2f}M", str(len(each))]
            for measure in MEASURES:
                values = [r["bits"][measure] for r in each]
                spread = f" ({np.std(values, ddof=1):.4f})" if len(values) > 1 else ""
                row.append(f"{np.mean(values):.4f}{spread}")
            rows.append([*row, f"{np.mean([r['seconds_train'] for r in each]):.1f}"])
        table(rows)
        for measure, label in MEASURES.items():
            groups = [[r["bits"][measure] for r in s.values()] for s in stacks.values()]
            sd, degrees = pooled(groups)
            if degrees < 2 or len(groups) < 2:
                continue
            print(
                f"{label}: sd over seeds {sd:.4f} ({degrees} degrees of freedom), reliability of "
                f"one training {icc(groups):.3f}, without the extremes "
                f"{icc([g for name, g in zip(stacks, groups, strict=True) if name != '12C']):.3f}"
            )
        report_order(stacks)


def report_order(stacks: dict[str, dict[int, dict]]) -> None:
    """Whether differences between stacks vary less when both saw the same batches."""
    names = [name for name, seeds in stacks.items() if len(seeds) > 2]
    if len(names) < 2:
        return
    rows = [["pair", "difference", "sd of a difference, same seed", "if seeds were independent"]]
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            both = sorted(set(stacks[a]) & set(stacks[b]))
            one, two = (
                np.array([stacks[s][seed]["bits"]["bits_per_byte"] for seed in both])
                for s in (a, b)
            )
            apart = (one.var(ddof=1) + two.var(ddof=1)) ** 0.5
            rows.append(
                [
                    f"{a} - {b}",
                    f"{(one - two).mean():+.4f}",
                    f"{(one - two).std(ddof=1):.4f} ({len(both)} seeds)",
                    f"{apart:.4f}",
                ]
            )
    print()
    table(rows)


def report_rates(found: dict) -> None:
    by_stack: dict[tuple, dict[float, float]] = defaultdict(dict)
    for (million, rate, precision), stacks in found.items():
        for stack, seeds in stacks.items():
            if 0 in seeds and precision == "bfloat16":
                by_stack[million, stack][rate] = seeds[0]["bits"]["bits_per_byte"]
    rows = [["tokens", "stack", "bits per byte by rate (seed 0)", "best rate", "curvature"]]
    for (million, stack), values in sorted(by_stack.items()):
        if len(values) < 3:
            continue
        x = np.log2(sorted(values))
        y = np.array([values[rate] for rate in sorted(values)])
        a, b, _ = np.polyfit(x, y, 2)
        best = f"{2 ** (-b / (2 * a)):.2g}" if a > 0 else "at an edge"
        listed = ", ".join(f"{rate:g}: {values[rate]:.4f}" for rate in sorted(values))
        rows.append([f"{million:g}M", stack, listed, best, f"{a:.4f}"])
    if len(rows) > 1:
        print("\nRates; curvature in bits per byte for each squared factor of two\n")
        table(rows)


def report_precision(found: dict) -> None:
    exact = {k[:2]: v for k, v in found.items() if k[2] == "float32"}
    for key, stacks in exact.items():
        rounded = found.get((*key, "bfloat16"), {})
        pairs, means, groups = [], [], []
        for stack, seeds in stacks.items():
            both = [s for s in seeds if s in rounded.get(stack, {})]
            if both:
                f = [seeds[s]["bits"]["bits_per_byte"] for s in both]
                b = [rounded[stack][s]["bits"]["bits_per_byte"] for s in both]
                pairs += [y - x for x, y in zip(f, b, strict=True)]
                means.append((np.mean(f), np.mean(b)))
                groups += [f, b]
        if len(means) < 3:
            continue
        from scipy.stats import spearmanr, t

        x, y = np.array(means).T
        rho = spearmanr(x, y).statistic
        low, high = np.tanh(
            np.arctanh(min(rho, 0.9999))
            + np.array([-1, 1]) * 1.96 * (1.06 / max(len(x) - 3, 1)) ** 0.5
        )
        error = np.std(pairs, ddof=1) / len(pairs) ** 0.5
        half = t.ppf(0.975, len(pairs) - 1) * error
        sd, degrees = pooled(groups)
        print(
            f"\n{key[0]:g}M tokens, rate {key[1]:g}: bfloat16 - float32 {np.mean(pairs):+.4f} "
            f"+- {half:.4f} (95%, {len(pairs)} pairs of one seed, sd of a pair "
            f"{np.std(pairs, ddof=1):.4f}); sd over seeds {sd:.4f} ({degrees} degrees of freedom); "
            f"rank correlation of {len(x)} stacks {rho:.3f} [{low:.2f}, {high:.2f}]"
        )


def report(folder: Path) -> None:
    records = records_of(folder)
    found = cells(records)
    print(f"{len(records)} trainings, {sum(r['diverged'] for r in records)} diverged")
    report_noise(found)
    report_rates(found)
    report_precision(found)
    trained = sum(r["tokens"] for r in records if r["precision"] == "bfloat16")
    seconds = sum(r["seconds_train"] for r in records if r["precision"] == "bfloat16")
    if seconds:
        rate = trained / seconds / 1e6
        print(f"\n{trained / 1e6:.0f}M tokens in bfloat16, {rate:.2f}M a process and s")
    print(json.dumps({"benchmark": "pilot", "trainings": len(records)}))


def spawn(args: argparse.Namespace) -> Iterator[subprocess.Popen]:
    for _ in range(args.workers):
        yield subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--worker"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", choices=["noise", "tokens", "precision", "rounding", "report"])
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--records", type=Path, default=Path("pilot-records"))
    parser.add_argument("--cache", type=Path, default=Path("pilot-cache"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--million", type=float)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    if args.plan != "report":
        args.records.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PILOT_RUN", str(os.getpid()))
        text = load(args.corpus, args.cache, SHAPES.get(args.plan, Shape()).vocab)
        print(
            f"{len(text.train_T) / 1e6:.1f}M tokens to train on, {len(text.heldout_T) / 1e6:.2f}M "
            f"held out, {text.num_bytes_V[text.heldout_T].mean():.2f} bytes a token",
            flush=True,
        )
        codes = [process.wait() for process in list(spawn(args))]
        if any(codes):
            sys.exit(f"a process failed: {codes}")
    report(args.records)


if __name__ == "__main__":
    main()
