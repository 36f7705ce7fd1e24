"""A whole study on a card: measured, tuned, trained over two rungs, killed and taken up again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from archloop import registry
from archloop.store import reading

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(570),
]

MIXERS = registry.shipped("mixers")
SETTINGS = {"swa": {"window": {"ship": 32, "proxy": 8}}, "short_conv": {"kernel": [3, 7]}}

RECIPE = {
    "name": "card",
    "seed": 3,
    # Fewer than three trials that finished a rung send none to the next.
    "num_trials": 3,
    "reference": {"layout": ["short_conv", "gqa"]},
    # Two that can learn to recall as the reference does: what adds nothing is not promoted.
    "initial": [
        ["gqa", "short_conv"],
        ["short_conv", "gqa", "short_conv"],
        ["short_conv", "short_conv", "gqa"],
    ],
    "space": {
        "ship": {"d_model": 128, "vocab_size": 1024},
        "proxy": {"d_model": 64},
        "num_blocks": [2, 3],
        "mixers": {name: SETTINGS.get(name, {}) for name in MIXERS},
        "channel_mixers": {"swiglu": {"expansion": [2.0, 3.0]}},
    },
    "targets": {
        "card": {"device": "host", "runtime": "torch_cuda", "quant": "bf16", "contexts": [64]}
    },
    # Wide: they are the reference point, behind which a stack adds nothing.
    "budgets": [
        {"metric": "ttft_ms", "limit": 10.0, "relative": True},
        {"metric": "decode_p50_ms", "limit": 10.0, "relative": True},
        {"metric": "peak_memory_bytes", "limit": 10.0, "relative": True},
    ],
    "profile": {"processes": 2, "warmup_steps": 2, "timed_steps": 8, "prefill_repeats": 1},
    "proxy": {
        "device": "cuda",
        "vocab_size": 512,
        "num_text_windows": 16,
        "tasks": {
            "in_context_recall": {
                "settings": {"vocab_size": 8, "seq_len": 32},
                "batch_size": 32,
                "num_eval": 128,
            }
        },
        # Long enough to tell a stack that recalls from one of short convolutions.
        "rungs": [1000, 2000],
        "training": {
            "schedule": "wsd",
            "seq_len": 64,
            "batch_size": 8,
            "precision": "bfloat16",
        },
    },
    "promote_share": 1.0,
    "reference_seeds": 2,
    "replicates": 0,
    "tuning": {"learning_rates": [1e-3, 3e-3, 9e-3], "num_steps": 20},
    "threads": 1,
    # Trainings of different mixers compile beside each other.
    "executor": {"per_device": 3},
}


def start(folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "archloop", "search", str(folder / "card.yaml")]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, "--runs", str(folder / "runs")],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
        )


def of_trainings_under_way(home: Path) -> set[Path]:
    """Folders in which trainings work; each goes once its result lies beside it."""
    return {path for path in home.glob("*/**/rung-*") if path.is_dir()}


def results(home: Path) -> dict[Path, bytes]:
    """What finished stages left of the reference, the anchor stacks and the trials."""
    passing = of_trainings_under_way(home)
    return {
        file: file.read_bytes()
        for part in ("reference", "anchors", "trials")
        for file in home.glob(f"{part}/**/*.json")
        if not passing.intersection(file.parents)
    }


def test_a_killed_study_goes_on_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(RECIPE))
    home, log = tmp_path / "runs" / "card", tmp_path / "log"
    process = start(tmp_path, log)
    deadline = time.monotonic() + 500
    # Killed while a trial trains its second rung: the first rung's checkpoint is what goes on.
    while "(rung 1)" not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = results(home)
    for stage in ("profile", "rung-0"):
        assert len(kept.keys() & set(home.glob(f"trials/*/{stage}.json"))) == 3
    assert not list(home.glob("trials/*/rung-1.json"))
    process = start(tmp_path, log)
    assert process.wait(timeout=deadline - time.monotonic()) == 0, log.read_text()[-3000:]
    for file, content in kept.items():
        assert file.read_bytes() == content, file
    assert not of_trainings_under_way(home)
    record = reading.read(home)
    assert len(record.trials) == 3
    assert all(trial.state == "complete" for trial in record.trials), log.read_text()[-3000:]
    climbed = [trial for trial in record.trials if len(trial.rungs) == 2]
    assert climbed
    for trial in climbed:
        first, second = trial.rungs
        assert (first.num_steps, second.num_steps) == tuple(RECIPE["proxy"]["rungs"])
        assert second.num_tokens == 2 * first.num_tokens
        text = [rung.scores["bits_per_byte"].value for rung in trial.rungs]
        assert 0 < text[1] < text[0] < 8
