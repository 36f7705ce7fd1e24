"""Trials an hour: the trainings of a search on one card and on two, one and several at once.

    python benchmarks/trials_per_hour.py --corpus DIR --arms 1x1,1x6,2x6 --records trials.jsonl

The pilot's shape (12 blocks, 256 wide, equal parameters) and 20 stacks drawn by the prior of
`recipes/h100.yaml`, trained and scored as that recipe says, through the executor that a study has.
An arm of `2x6` is two cards with six trainings at once on each, which share it through NVIDIA's
MPS where it can be started. Kernels are compiled before, by a few steps of each stack, so that no
arm pays them for another; processes start within each arm.

Of an arm is printed what was measured: trials in their wall time, at so many tokens each. What that
comes to at 100 million tokens a trial is reckoned: each training that much longer, scoring and the
rest of a job as they were, all places busy. A training's seconds hold what it spends before its
first step, which does not grow; an arm that was run at two lengths (`--million 6,20`) is reckoned
by what the longer one took more, of one length alone the figure is a lower bound. A profile, which
must have its card alone, is added in whole to one card's share by `--profile-seconds`. A line of
JSON an arm and length; what has one is not run again.
"""

import argparse
import json
import math
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import jobs
from archloop.proxy.record import Rung, TrainJob
from archloop.search import telling
from archloop.search.base import Pending
from archloop.search.executors.base import Ended, Train
from archloop.search.executors.local import Local
from archloop.search.hardware import HardwareEvaluator
from archloop.search.plan import resolve, training_seed
from archloop.search.recipe import recipe as recipes
from archloop.search.recipe.recipe import Recipe
from archloop.stack import cost
from archloop.stack.spec import StackSpec

RECIPE = Path(__file__).parents[1] / "recipes" / "h100.yaml"
TOKENS = 100_000_000
"""Of a trial, as the figures are asked for."""
WARM_STEPS = 12


def main() -> None:
    asked = _arguments()
    began = time.monotonic()
    done = {record["key"] for record in jobs.read(asked.records)}
    base = pilot_shaped(asked.corpus, asked.device, asked.layers, asked.width)
    specs = drawn(base, asked.draws)
    sizes = [cost.num_params(spec) / 1e6 for spec in specs]
    print(f"{len(specs)} stacks of {min(sizes):.2f} to {max(sizes):.2f} million parameters")
    longest = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        if not asked.cold:
            cards = max(int(arm.partition("x")[0]) for arm in asked.arms)
            ended, wall_s, _ = run(base, places(asked.device, cards, 4), specs, WARM_STEPS, scratch)
            longest = wall_s
            print(f"kernels compiled in {wall_s:.0f} s, {_failed(ended)}", flush=True)
        for million, arm in product(asked.million, asked.arms):
            key = f"{arm} {million:g}M"
            if key in done:
                continue
            if time.monotonic() - began + longest > asked.seconds:
                print(f"{key}: no time is left")
                continue
            cards, each = (int(word) for word in arm.split("x"))
            steps = math.ceil(million * 1e6 / tokens_a_step(base))
            ended, wall_s, mps = run(base, places(asked.device, cards, each), specs, steps, scratch)
            longest = max(longest, wall_s)
            record = {"key": key, "arm": arm, "cards": cards, "at_once": cards * each}
            record |= {"cuda_mps": mps} | figures(ended, wall_s)
            with asked.records.open("a") as out:
                out.write(json.dumps(record) + "\n")
            print(f"{key}: {wall_s:.0f} s, {_failed(ended)}", flush=True)
    table(jobs.read(asked.records), asked.profile_seconds)


def pilot_shaped(corpus: Path, device: str, layers: int, width: int) -> Recipe:
    """The first search's recipe with stacks of the pilot's shape and nothing to measure."""
    given = recipes.load(RECIPE).plain()
    space = {
        **given["space"],
        "ship": {"d_model": 4 * width, "vocab_size": 65536},
        "proxy": {"d_model": width},
        "num_blocks": [layers],
        "channel_mixers": {"swiglu": {"expansion": [1.5, 2.0, 2.5, 3.0, 3.5, 4.0]}},
        # As many a block as 11.1 million are in 12 blocks of width 256.
        "budget": {
            "num_params": 65536 * 4 * width + layers * round(12.05e6 * (width / 256) ** 2),
            "free": "swiglu.expansion",
            "trained": True,
        },
    }
    proxy = {**given["proxy"], "device": device}
    proxy["corpus"] = {"source": "files", "paths": [str(corpus.resolve())], "field": "text"}
    reference = {"layout": (["short_conv", "short_conv", "gqa"] * layers)[:layers]}
    changed = {
        **given,
        "name": "trials-per-hour",
        "space": space,
        "proxy": proxy,
        "reference": reference,
        "initial": [],
        "targets": {"none": {"contexts": [64]}},
        "budgets": [],
        "strategy": {"name": "random"},
        "threads": None,
    }
    return recipes.load({key: value for key, value in changed.items() if value is not None})


def drawn(recipe: Recipe, count: int) -> list[StackSpec]:
    """Stacks to train, by the prior of random search."""
    plan = resolve(recipe)
    found, pending = [], []
    for number in range(count):
        # All before it are pending, so that no stack is drawn twice, as in a study.
        proposal = telling.ask(plan.strategy, number, recipe.seed, [], pending, 0)
        pending.append(Pending(number, proposal.genome, None))
        found.append(plan.candidate(proposal).proxy_spec)
    return found


def tokens_a_step(recipe: Recipe) -> int:
    """Of text and tasks."""
    proxy = recipe.proxy
    lengths = [
        share.batch_size * int(share.settings.get("seq_len", 0)) for share in proxy.tasks.values()
    ]
    return proxy.training.batch_size * proxy.training.seq_len + sum(lengths)


def places(device: str, cards: int, each: int) -> list[str]:
    """A device for each training at once."""
    names = [f"{device}:{card}" for card in range(cards)] if device == "cuda" else [device] * cards
    return names * each


def run(
    base: Recipe, devices: list[str], specs: list[StackSpec], steps: int, scratch: str
) -> tuple[list[Ended], float, str]:
    """Every stack trained once; also the wall time from the first start, and whether MPS was on."""
    executor = {"devices": devices, "workers": len(devices)}
    recipe = recipes.load({**_filled(base.plain()), "executor": executor})
    folder = Path(tempfile.mkdtemp(dir=scratch))
    evaluator = HardwareEvaluator(recipe, folder)
    executor = Local(evaluator, time.monotonic, len(devices))
    try:
        mps = evaluator.prepare()["cuda_mps"]
        began = time.monotonic()
        for number, spec in enumerate(specs):
            job = TrainJob(spec=spec, num_steps=steps, seed=training_seed(recipe.seed, number))
            executor.submit(Train(job, folder / str(number)))
        ended = [executor.wait() for _ in specs]
        return ended, time.monotonic() - began, mps
    finally:
        executor.close()
        evaluator.close()


def _filled(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def figures(ended: list[Ended], wall_s: float) -> dict[str, Any]:
    """What an arm measured."""
    rungs = [(each.value, each.seconds) for each in ended if isinstance(each.value, Rung)]
    return {
        "trials": len(rungs),
        "failed": [str(each.error) for each in ended if each.error is not None],
        "wall_s": wall_s,
        "tokens": sum(rung.num_tokens for rung, _ in rungs),
        "train_s": [round(rung.train_s, 2) for rung, _ in rungs],
        "eval_s": [round(rung.eval_s, 2) for rung, _ in rungs],
        "job_s": [round(seconds, 2) for _, seconds in rungs],
        "diverged": sum(rung.diverged for rung, _ in rungs),
        "shared": sum(rung.cuda_mps for rung, _ in rungs),
        "trials_an_hour": 3600 * len(rungs) / wall_s,
        "tokens_a_second": sum(rung.num_tokens for rung, _ in rungs) / wall_s,
    }


def reckoned(found: dict[str, Any], records: list[dict[str, Any]]) -> float:
    """Trials an hour at `TOKENS` each, by an arm and what it took at fewer tokens, if it was run.

    All trainings of an arm together: which of them ran beside which differs from run to run.
    """
    each, token_s = found["tokens"] / found["trials"], sum(found["train_s"]) / found["tokens"]
    alike = [r for r in records if r["arm"] == found["arm"] and r["trials"] == found["trials"]]
    if shorter := [record for record in alike if record["tokens"] < found["tokens"]]:
        least = min(shorter, key=lambda record: int(record["tokens"]))
        more_s = sum(found["train_s"]) - sum(least["train_s"])
        token_s = more_s / (found["tokens"] - least["tokens"])
    job_s = sum(found["job_s"]) / found["trials"] + token_s * (TOKENS - each)
    return float(3600 * found["at_once"] / job_s)


def table(records: list[dict[str, Any]], profile_s: float) -> None:
    """Print the arms, the first of one card as the measure of the others."""
    print(
        "cards x at once, tokens | MPS | wall s | trials/h as run | Mtok/s in sum | "
        "trials/h at 100M, reckoned | with profiles"
    )
    rates = {found["key"]: reckoned(found, records) for found in records if found["trials"]}
    for found in (each for each in records if each["trials"]):
        cards, rate = found["cards"], rates[found["key"]]
        # Its card trains nothing meanwhile; the others do.
        alone_s = 3600 / (rate / cards) + profile_s
        profiled = 3600 / alone_s + rate * (cards - 1) / cards
        print(
            f"{found['key']:>23} | {found['cuda_mps'][:3]} | {found['wall_s']:6.1f} | "
            f"{found['trials_an_hour']:8.1f} | {found['tokens_a_second'] / 1e6:6.3f} | "
            f"{rate:8.1f} | {profiled:8.1f}"
        )
    for found in records:
        one = f"1x{found['key'].partition('x')[2]}"
        if found["cards"] > 1 and one in rates and found["key"] in rates:
            single = next(record for record in records if record["key"] == one)
            as_run = single["wall_s"] / found["wall_s"]
            ratio = rates[found["key"]] / rates[one]
            print(f"{found['key']} against {one}: {as_run:.2f} as run, {ratio:.2f} reckoned")
    print(json.dumps({"benchmark": "trials_per_hour", "profile_s": profile_s, "arms": records}))


def _failed(ended: list[Ended]) -> str:
    failed = [str(each.error) for each in ended if each.error is not None]
    return f"{len(failed)} failed" + (f": {failed[0]}" if failed else "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of text")
    parser.add_argument("--records", type=Path, default=Path("trials-per-hour.jsonl"))
    parser.add_argument("--arms", type=lambda text: text.split(","), default=["1x1", "1x6", "2x6"])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument(
        "--million",
        type=lambda text: [float(each) for each in text.split(",")],
        default=[6.0, 20.0],
        help="tokens of a training, one length or more",
    )
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="begin no arm that would end later"
    )
    parser.add_argument(
        "--profile-seconds", type=float, default=25.8, help="of a candidate's profile"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--cold", action="store_true", help="compile nothing beforehand")
    return parser.parse_args()


if __name__ == "__main__":
    main()
