"""A proxy on a card: rungs that go on where the last stopped, another card, a shared card."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from archloop.proxy.config import ProxyConfig
from archloop.proxy.mixture import ProxyData, make_task
from archloop.proxy.proxy import train_and_score
from archloop.proxy.record import Rung, TrainJob
from archloop.proxy.trainer import Trainer
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.workers.mps import Mps, MpsError
from proxy.test_proxy_worker import job, root  # noqa: F401  (a fixture)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TASK = {"settings": {"vocab_size": 8, "seq_len": 32}, "batch_size": 8, "num_eval": 32}


def config(**training: object) -> ProxyConfig:
    return ProxyConfig.model_validate(
        {
            "device": "cuda",
            "vocab_size": 300,
            "num_text_windows": 8,
            "tasks": {"in_context_recall": TASK},
            "rungs": [20, 40],
            "training": {"schedule": "wsd", "seq_len": 64, "batch_size": 8, **training},
        }
    )


def data(settings: ProxyConfig) -> ProxyData:
    rng = np.random.default_rng(0)
    text = ((np.arange(6000) * 7) % 50 + rng.integers(3, size=6000)).astype(np.int32)
    task = make_task("in_context_recall", settings.tasks["in_context_recall"].settings)
    return ProxyData(
        300 + task.vocab_size,
        300,
        {"in_context_recall": (task, 300)},
        text[:5000],
        text[5000:],
        np.ones(300, np.int64),
        "digest",
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_training_works_on_another_card_than_the_first() -> None:
    names = ["short_conv", "gqa", "mamba2", "gla"]
    settings = config().model_copy(update={"device": f"cuda:{torch.cuda.device_count() - 1}"})
    held = data(settings)
    blocks = tuple(BlockSpec(mixers=(MixerSpec(name=name),)) for name in names)
    spec = StackSpec(d_model=64, vocab_size=held.vocab_size, blocks=blocks)
    before = torch.cuda.current_device()
    assert before == 0
    try:
        rung = train_and_score(TrainJob(spec=spec, num_steps=4, seed=0), held, settings)
    finally:
        torch.cuda.set_device(before)
    assert not rung.diverged
    assert set(rung.scores) >= {"bits_per_byte", "in_context_recall"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_second_rung_goes_on_where_the_first_stopped(tmp_path: Path, precision: str) -> None:
    settings = config(precision=precision)
    held = data(settings)
    spec = StackSpec(
        d_model=64,
        vocab_size=held.vocab_size,
        blocks=tuple(
            BlockSpec(mixers=(MixerSpec(name=name),), channel_mixer=ChannelMixerSpec(name="swiglu"))
            for name in ("short_conv", "gqa", "gla")
        ),
    )
    kept = tmp_path / "rung-0.checkpoint"
    short, long = (
        TrainJob(spec=spec, rung=rung, num_steps=settings.rungs[rung], seed=3) for rung in (0, 1)
    )
    first = train_and_score(short.model_copy(update={"checkpoint_to": kept}), held, settings)
    second = train_and_score(long.model_copy(update={"resume_from": kept}), held, settings)
    whole = train_and_score(long, held, settings)
    assert second.num_tokens == whole.num_tokens == 2 * first.num_tokens
    assert second.losses[0][0] == 16
    assert second.scores == whole.scores
    assert second.scores["bits_per_byte"].value < first.scores["bits_per_byte"].value


def test_trainings_that_share_a_card_through_mps_are_those_of_a_card_alone(
    root: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    try:
        service = Mps()
    except MpsError as error:
        pytest.skip(str(error))
    asked = [job(root, seed=seed) for seed in range(3)]
    asked = [
        each.model_copy(update={"config": each.config.model_copy(update={"device": "cuda"})})
        for each in asked
    ]

    def trained(number: int, shared: Mps | None) -> Rung:
        name = f"{number}-{shared is not None}"
        with Trainer(300, mps=shared) as trainer:
            return trainer.train(asked[number], tmp_path / name)

    with closing(service), ThreadPoolExecutor(3) as pool:
        folder = Path(service.env["CUDA_MPS_PIPE_DIRECTORY"])
        together = list(pool.map(trained, range(3), [service] * 3))
    assert not folder.exists()
    assert all(rung.cuda_mps for rung in together)
    for number, rung in enumerate(together):
        alone = trained(number, None)
        assert not alone.cuda_mps
        assert (rung.losses, rung.scores) == (alone.losses, alone.scores)
