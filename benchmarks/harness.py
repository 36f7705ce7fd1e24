"""A real model through our own layout and through lm-evaluation-harness: do the scores agree?

    python benchmarks/smollm2.py models/smollm2-135m
    python benchmarks/harness.py models/smollm2-135m --results DIR [--limit 32]

1. The checkpoint is asked by `archloop`'s Llama layout, and by the harness's Hugging Face model
   (`lm_eval.models.huggingface.HFLM`, transformers) behind `lm_harness.FromLM`: the same questions.
2. A task of the harness itself, whose documents are questions of ours, is run by
   `lm_eval.simple_evaluate` on both models: ours as the harness's `LM`, and its own.
3. The table gives both scores of each evaluation, their difference in standard errors, on how many
   examples they differ, and how far our score is above chance.

Needs the extra `evals` with accelerate (the harness's own extra `hf`), float32 on the CPU. Results
are kept as the runner keeps them: the same command goes on where it was stopped.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from archloop.evals import runner, suites
from archloop.evals.base import Evaluation
from archloop.evals.codecs import TokenizerCodec
from archloop.evals.decoder_model import DecoderModel
from archloop.evals.lm_harness import FromLM, as_lm
from archloop.evals.text_tasks import ChoiceTask
from archloop.generation.generation import generate
from archloop.generation.model import Model as TextModel
from archloop.generation.model import load_model

NAMES = (
    *("facts_capital", "facts_continent", "facts_opposite", "facts_past", "facts_group"),
    *("facts_symbol", "agreement_en", "agreement_fr", "agreement_de", "key_value_find"),
    *("multi_hop_kin", "addition", "arithmetic_comparison", "instruction_repeat"),
)
BY_THE_HARNESS = "facts_capital"
"""Asked as a task of the harness, too."""
QUESTION = "The capital of France is"


def ours(loaded: TextModel) -> DecoderModel:
    """The checkpoint by our layout."""
    codec = TokenizerCodec(loaded.tokenizer)
    return DecoderModel(
        loaded.decoder, codec, start=codec.start(), stop_ids=loaded.stop_ids, batch_size=16
    )


def theirs(folder: Path) -> Any:
    """The checkpoint by the harness's own Hugging Face model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8)


def continued(loaded: TextModel, count: int) -> str:
    """What the model says after the question."""
    ids = loaded.tokenizer.encode(QUESTION).ids
    (reply,) = generate(
        loaded.decoder, [ids], count, stop_ids=loaded.stop_ids,
        decode=lambda tokens: str(loaded.tokenizer.decode(list(tokens))),
    )  # fmt: skip
    return reply.text or ""


def harness_task(evaluation: ChoiceTask, limit: int, folder: Path) -> dict[str, Any]:
    """Questions of an evaluation as documents of a task of the harness."""
    file = folder / "questions.jsonl"
    asked = evaluation.questions("test", 0, limit)
    file.write_text("".join(json.dumps(question._asdict()) + "\n" for question in asked))
    return {
        "task": f"archloop_{evaluation.name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }


def by_the_harness(models: dict[str, Any], limit: int) -> dict[str, float]:
    """Accuracy that `lm_eval.simple_evaluate` finds for each model on the same documents."""
    import lm_eval

    (evaluation,) = suites.load("full", [BY_THE_HARNESS]).values()
    assert isinstance(evaluation, ChoiceTask)
    found = {}
    for name, lm in models.items():
        with tempfile.TemporaryDirectory() as scratch:
            task = harness_task(evaluation, limit, Path(scratch))
            done = lm_eval.simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)
        found[name] = float(done["results"][task["task"]]["acc,none"])
    return found


def printed(evaluations: dict[str, Evaluation], a: dict[str, Any], b: dict[str, Any]) -> bool:
    """The table; whether every pair agrees within one standard error."""
    print("\n| evaluation | n | ours (se) | harness | differ in | apart, se | above chance, se |")
    print("|---|---|---|---|---|---|---|")
    agree = True
    for name in evaluations:
        one, other = a[name], b[name]
        apart = (one.score.value - other.score.value) / one.score.standard_error
        differ = sum(x != y for x, y in zip(one.grades, other.grades, strict=True))
        agree &= abs(apart) <= 1
        print(
            f"| {name} | {one.score.num_examples} | {one.score.value:.3f} "
            f"({one.score.standard_error:.3f}) | {other.score.value:.3f} | {differ} | "
            f"{apart:+.2f} | {one.score.signal:.1f} |"
        )
    return agree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--tasks", default=",".join(NAMES))
    asked = parser.parse_args()
    evaluations = suites.load("full", asked.tasks.split(","))
    loaded = load_model(asked.folder, torch.float32, "cpu")
    print(f"{QUESTION}{continued(loaded, 8)}", flush=True)
    our_model, harness_model = ours(loaded), theirs(asked.folder)
    results = {}
    for label, model in (("ours", our_model), ("harness", FromLM(harness_model))):
        results[label] = runner.run(
            model, f"{asked.folder.name} {label}", evaluations, asked.results / label,
            limit=asked.limit,
            on_result=lambda r, _, label=label: print(
                f"{label} {r.name} {r.score.value:.3f} {r.seconds:.0f} s", flush=True
            ),
        )  # fmt: skip
    agree = printed(evaluations, results["ours"], results["harness"])
    print("every pair agrees within one standard error" if agree else "some pairs do not agree")
    accuracies = by_the_harness({"ours": as_lm(our_model), "harness": harness_model}, asked.limit)
    print(f"{BY_THE_HARNESS} as a task of the harness: {accuracies}")
    scores = {k: {n: r.score.model_dump() for n, r in v.items()} for k, v in results.items()}
    print(json.dumps({"scores": scores, "by_the_harness": accuracies, "limit": asked.limit}))


if __name__ == "__main__":
    main()
